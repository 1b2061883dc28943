"""What the arguments of a verb name: a model, an SAE, a text, the vectors of an arm."""

from __future__ import annotations

import sys
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lens_tui import demo
from lens_tui.records import Arm, Intervention, LensError, SAEInfo, SteeringVector
from lens_tui.records.arm_syntax import ArmSpec, GateTerm, Term
from lens_tui.records.chat import Turn, parse_chat, read_chat
from lens_tui.records.gates import Gate, Monitor, monitor_of
from lens_tui.records.interventions import positions_of
from lens_tui.records.paths import expanded, vectors_folder
from lens_tui.records.run import LIMITS
from lens_tui.records.sanitise import one_line
from lens_tui.records.vector_sets import load_vector_set, set_interventions
from lens_tui.tui.preferences import preferences

from .output import Meter, note

if TYPE_CHECKING:
    from lens_tui.lens.architecture.ranks import ShardMode
    from lens_tui.lens.model import LensModel
    from lens_tui.records.info import Dequantize
    from lens_tui.sae.load_sae import SAE

Model = Annotated[str, typer.Option("--model", "-m", help="A folder, a hub id, or 'demo' for the bundled model.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON value on standard output.")]
SAEName = Annotated[
    str,
    typer.Option(
        "--sae",
        "-s",
        help="An SAE: a path, org/name/folder at the hub, or a name (bundled or trained here); then @LAYER:SITE.",
    ),
]
Convention = Annotated[
    str, typer.Option(help="How promoted tokens are found: norm (final norm's gain folded in) or raw.")
]
Chat = Annotated[
    str,
    typer.Option(
        "--chat",
        help='A JSON file of messages, [{"role": "user", "content": ...}, ...]; a prompt beside it is said next.',
    ),
]
TextKey = Annotated[str, typer.Option(help="In JSONL, the key that holds the text.")]


def within(name: str, says: str) -> Any:
    """An option of this sampling setting, refused outside its limits."""
    low, high = LIMITS[name]
    return typer.Option(min=low, max=high, help=says)


Temp = Annotated[float, within("temp", "Temperature; 0 is greedy.")]
TopP = Annotated[float, within("top_p", "Sample among the likeliest tokens of this probability together; 0: off.")]
MinP = Annotated[
    float, within("min_p", "Sample among tokens of this share of the likeliest one's probability; 0: off.")
]
TopK = Annotated[int, within("top_k", "Sample among this many of the likeliest tokens; 0: all.")]

asked_dequantize: ContextVar[Dequantize | None] = ContextVar("asked_dequantize", default=None)
"""What ``--dequantize`` says, which comes before the verb."""
asked_adapter: ContextVar[str] = ContextVar("asked_adapter", default="")
"""What ``--adapter`` says, which comes before the verb."""

asked_shard: ContextVar[ShardMode | None] = ContextVar("asked_shard", default=None)
"""What ``--shard`` says, which comes before the verb."""


def read_conversation(file: str, prompt: str = "") -> tuple[Turn, ...]:
    """The conversation of ``--chat``, with what the user says next if a prompt is given beside it.

    Raises :class:`LensError` for a file that is not one, and where nobody asks anything.
    """
    turns = parse_chat(read_text("-"), "standard input") if file == "-" else read_chat(file)
    if prompt:
        turns = (*turns, Turn("user", read_text(prompt)))
    if turns[-1].role == "assistant":
        raise LensError("The conversation ends with the assistant.", "Give what the user says next as the prompt.")
    return turns


def read_text(argument: str) -> str:
    """The text of an argument: itself, or standard input for ``-``. Raises :class:`LensError` if empty."""
    text = _standard_input() if argument == "-" else argument
    if not text.strip():
        if argument == "-":
            raise LensError("Standard input is empty.", "Pipe a text into it, or give one as the argument.")
        raise LensError("The text is empty.", "Give some words, or '-' to read standard input.")
    if argument != "-" and _is_there(argument):
        what = "folder" if Path(argument).is_dir() else "file"
        note(f"{one_line(repr(argument), 80)} is read as a text, though there is a {what} of that name.")
    return text


def _is_there(name: str) -> bool:
    """Whether a file or folder has this name. One whose name is several words is not meant by them."""
    try:
        return not any(char.isspace() for char in name) and Path(name).exists()
    except (OSError, ValueError):  # no name that a file can have
        return False


def _standard_input() -> str:
    """All of it, byte for byte. Raises :class:`LensError` unless it is UTF-8."""
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise LensError(
            f"Standard input is not UTF-8 at byte {error.start}.", "Convert it, for example with iconv -t UTF-8."
        ) from None


def open_model(name: str) -> LensModel:
    """The model a verb works on, its weights held as ``--dequantize`` says, or the settings."""
    from lens_tui.lens.model import LensModel

    fetch_model(name)
    how = asked_dequantize.get() or preferences().dequantize
    model = LensModel(name, dequantize=how, adapter=asked_adapter.get(), shard=asked_shard.get())
    if model.info.adapter:  # every number is of the two together, and answers give the model's name alone
        note(f"{one_line(model.info.name, 40)} has the LoRA in {one_line(model.info.adapter, 120)}")
    return model


def fetch_model(name: str) -> None:
    """Have a model's files here, if it is a hub's, with a bar."""
    from lens_tui.records.hub_fetch import model_from_hub
    from lens_tui.sae.from_hub import is_hub_id

    if name.count("/") == 1 and is_hub_id(name) and not Path(name).exists():
        with Meter() as meter:  # the library would draw a bar of its own
            model_from_hub(name, progress=meter.fetched)


def open_sae(name: str, model: str) -> SAE:
    """An SAE by path, bundled name or the name of one trained here, with ``@LAYER:SITE`` where its files do not say it.

    For the bundled model no name stands for the default one.
    """
    from lens_tui.sae.load_sae import load_sae
    from lens_tui.tasks.models import named_sae

    path, layer, site = named_sae(name or _default_sae(model))
    with Meter() as meter:
        return load_sae(path, layer=layer, site=site, progress=meter.fetched)


def find_sae(name: str, model: str) -> SAEInfo:
    """What is known of an SAE, named as for :func:`open_sae`; one on this machine is not read for it."""
    from lens_tui.sae.load_sae import sae_info
    from lens_tui.tasks.models import named_sae

    path, layer, site = named_sae(name or _default_sae(model))
    return sae_info(path, layer=layer, site=site) if expanded(path).exists() else open_sae(name, model).info


def _default_sae(model: str) -> str:
    if model != demo.NAME:
        raise LensError(f"No SAE is named for {model!r}.", "Name one with --sae: a file or a folder.")
    return demo.default_sae()


def _vector_path(named: str, model: str) -> Path | str:
    """A vector's file (``FILE:NAME`` too): the one that is there, or a bundled or kept one of that name."""
    from lens_tui.records.vector_formats import vector_file

    named = str(expanded(named))
    if vector_file(named)[0].exists():
        return named
    ready = demo.ready_vector(named) if model == demo.NAME else None
    kept = vectors_folder() / f"{named}.safetensors"
    if ready is None and kept.name == f"{named}.safetensors" and kept.is_file():
        return kept
    if ready is None and model != demo.NAME:
        return named
    if ready is None:
        known = ", ".join(f"{vector.name}*{vector.scale:g}" for vector in demo.vectors())
        raise LensError(
            f"There is no file {one_line(named, 120)}, nor a bundled or kept vector of that name.",
            f"Bundled: {known}.",
        )
    return ready.path


class Vectors:
    """Finds the vectors that arms name; opens the SAE only when a feature is asked for."""

    def __init__(self, lens: LensModel, sae: str, model: str) -> None:
        self._lens = lens
        self._name = sae
        self._model = model
        self._sae: SAE | None = None

    def arm(self, spec: ArmSpec) -> Arm:
        """The arm that ``spec`` describes, its vectors found and checked."""
        found = (self._records(f"{spec.name}:{i}", term) for i, term in enumerate(spec.terms))
        return Arm(spec.name, tuple(record for records in found for record in records))

    def _records(self, name: str, term: Term) -> tuple[Intervention, ...]:
        """What a term does: one record, or one for each layer of a set."""
        gate = None if term.gate is None else self.gate(term.gate)
        if term.kind == "head":
            return (term.heads_off(name, gate),)
        if term.kind == "edge":
            return (term.edge_cut(name, gate),)
        if not term.every:
            return (term.row(name, self.vector(term), gate).intervention(),)

        path = _vector_path(term.source, self._model)
        vectors = load_vector_set(path, d_model=self._lens.d_model, n_layers=self._lens.n_layers)
        positions = positions_of(term.positions)
        return set_interventions(name, vectors, term.scale, mode=term.mode, positions=positions, gate=gate)

    def gate(self, written: GateTerm) -> Gate:
        """The gate of a term."""
        return written.gate(self.monitor(written))

    def monitor(self, written: GateTerm) -> Monitor:
        """What a gate, or ``--monitor``, reads; the SAE of a feature that is read is given to the model."""
        if written.kind == "feature":
            info, feature = self.sae.info, int(written.source)
            self._lens.attach_sae(info.id, self.sae)
            layer = info.layer if written.layer is None else written.layer
            return Monitor(f"f{feature}", layer, info.site, sae=info.id, feature=feature)
        vector = self.vector(Term(written.kind, written.source, written.layer, 0.0))
        layer = vector.layer if written.layer is None else written.layer
        return replace(monitor_of(vector), layer=layer)

    def vector(self, term: Term) -> SteeringVector:
        """The vector that a term names, checked."""
        if term.kind == "head":
            raise LensError(f"head:{term.source} is no vector.", "Name heads in --arm, to take them away.")
        if term.kind == "edge":
            raise LensError(f"edge:{term.source} is no vector.", "Name edges in --arm, to cut them.")
        if term.kind == "feature":
            return self.sae.vector(term.feature)
        if term.kind == "random":
            from lens_tui.lens.vectors import random_unit

            if term.layer is None:
                raise LensError(f"random:{term.source} has no layer.", f"Write random:{term.source}@LAYER*SCALE.")
            return random_unit(self._lens, f"random {term.source}", term.layer, seed=int(term.source))
        from lens_tui.records.vector_formats import load_one

        path = _vector_path(term.source, self._model)
        n_layers, layer = self._lens.n_layers, term.layer
        layer = layer + n_layers if layer is not None and layer < 0 else layer
        return load_one(path, layer=layer, elsewhere=True, d_model=self._lens.d_model, n_layers=n_layers)

    @property
    def opened(self) -> list[SAEInfo]:
        """The SAE that features are of, if one was asked for."""
        return [] if self._sae is None else [self._sae.info]

    @property
    def sae(self) -> SAE:
        """The SAE that features are of."""
        if self._sae is None:
            self._sae = open_sae(self._name, self._model)
        return self._sae
