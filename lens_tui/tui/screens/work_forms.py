"""Index a text and train from the app: what is asked, what is gone on with, and what is said of it while it goes.

Work that was begun and is not done can be gone on with after a stop, a restart or a kill. What the work itself needs to
continue lies in its own folder; here is what was asked for, to ask for it again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lens_tui.records import LensError, ModelInfo, SAEInfo, paths
from lens_tui.records.disk import write_text
from lens_tui.records.paths import expanded
from lens_tui.records.read_files import read_json
from lens_tui.records.sanitise import one_line
from lens_tui.records.training import TrainProgress, read_layers
from lens_tui.records.wording import many
from lens_tui.tui.format import count
from lens_tui.tui.host import LensHost
from lens_tui.worker.events import Event, JobDone, JobFailed, Progress, SAETrained, TextIndexed, TrainingAt
from lens_tui.worker.jobs import IndexText, Job, TrainSAE

from .form import Check, Choice, ChoiceScreen, Field, FormScreen, optional, whole

Kind = Literal["index", "train"]
MOST = 20
"""Works that are remembered; the one begun first is forgotten first."""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """``kind`` of work on ``model`` (its id), the ``values`` of its form, and what it is called, safe to show.

    ``share`` is how much was done when that was last known, 0 to 1.
    """

    kind: Kind
    model: str
    title: str
    values: Mapping[str, str] = field(default_factory=dict)
    share: float = 0.0

    def is_same(self, other: Unfinished) -> bool:
        """Whether both ask for the same thing."""
        return (self.kind, self.model, dict(self.values)) == (other.kind, other.model, dict(other.values))


def unfinished(model: str = "", file: Path | None = None) -> tuple[Unfinished, ...]:
    """The works of a model (of all for ``""``), last begun first. What cannot be read is nothing."""
    found = [work for work in _read(file or paths.unfinished_file()) if model in ("", work.model)]
    return tuple(reversed(found))


def begin(work: Unfinished, file: Path | None = None) -> None:
    """Note a work as begun, or how far it is. Raises :class:`LensError` where nothing can be written."""
    place = file or paths.unfinished_file()
    _write(place, [*(other for other in _read(place) if not other.is_same(work)), work][-MOST:])


def finish(work: Unfinished, file: Path | None = None) -> None:
    """Forget a work: it is done, or nobody wants it. Raises :class:`LensError` where nothing can be written."""
    place = file or paths.unfinished_file()
    found = _read(place)
    left = [other for other in found if not other.is_same(work)]
    if len(left) < len(found):
        _write(place, left)


def _write(place: Path, works: list[Unfinished]) -> None:
    rows = [{**asdict(work), "values": dict(work.values)} for work in works]
    write_text(place, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")


def _read(place: Path) -> list[Unfinished]:
    try:
        rows = read_json(place)
    except LensError:
        return []
    found = [_work(row) for row in rows] if isinstance(rows, list) else []
    return [work for work in found if work is not None]


def _work(row: Any) -> Unfinished | None:
    if not isinstance(row, dict) or row.get("kind") not in ("index", "train"):
        return None
    values, share = row.get("values"), row.get("share")
    texts = (row.get("model"), row.get("title"))
    if not isinstance(values, dict) or not all(isinstance(text, str) for text in (*texts, *values.values())):
        return None
    known = float(share) if isinstance(share, int | float) and 0 <= share <= 1 else 0.0
    return Unfinished(row["kind"], row["model"], one_line(row["title"], 120), values, known)


_log = logging.getLogger(__name__)
SLOT = "long"
ALL = "all of them"
BUNDLED = "bundled"
KEEP = {"every activation, for co-active features": True, "statistics and examples": False}
KINDS = {"SAE": ("sae", False), "transcoder": ("transcoder", False), "transcoder with skip": ("transcoder", True)}
SITES = ("resid_post", "resid_pre", "attn_out", "mlp_out")
ARCHITECTURES = ("batchtopk", "topk", "jumprelu")
Values = Mapping[str, str]


def ask_work(lens: LensHost) -> None:
    """Ask what is to be done: index, train, or go on with what was stopped."""
    session = lens.store.session
    model = session.model
    if model is None:
        lens.say(f"Indexing and training need a model: {lens.key_text('load.open')} on Load loads one.")
        return
    barred = "" if session.saes else "needs an SAE: load one, or train one"
    begun = unfinished(model.name)[:5]
    choices = [
        Choice("index", "index a text", "what every feature does in it", barred),
        Choice("train", "train", "an SAE, or transcoders of MLPs"),
        *(Choice(f"on:{at}", f"go on · {work.share:.0%}", work.title) for at, work in enumerate(begun)),
    ]

    def chosen(answer: str | None) -> None:
        if answer == "index":
            _ask(lens, "index", {})
        elif answer == "train":
            _ask(lens, "train", {})
        elif answer is not None:
            work = begun[int(answer.partition(":")[2])]
            start(lens, work)

    lens.push_screen(ChoiceScreen("Index or train", choices), chosen)


def index_fields(model: ModelInfo, saes: Sequence[SAEInfo], sae: str | None, typed: Values) -> list[Field]:
    """The fields of an index, with what was typed before."""
    names = [one.name for one in saes]
    used = next((one.name for one in saes if one.id == sae), names[0] if names else "")
    fields = [
        _text_field(model),
        Field("sae", "SAE", used, options=(*names, *([ALL] if len(names) > 1 else []))),
        Field("tokens", "tokens", hint="at most so many; empty: all", check=optional(whole(1))),
        Field("keep", "keep", options=tuple(KEEP)),
    ]
    return [replace(item, value=typed.get(item.id, item.value)) for item in fields]


def train_fields(model: ModelInfo, typed: Values) -> list[Field]:
    """The fields of a training, with what was typed before."""
    fields = [
        _text_field(model),
        Field("kind", "train", options=tuple(KINDS)),
        Field("layers", "layer", str(model.n_layers // 2), "0-3,6 or all for transcoders", _layers_of(model.n_layers)),
        Field("site", "site", options=SITES),
        Field("architecture", "architecture", options=ARCHITECTURES),
        Field("width", "width", hint=f"empty: {16 * model.d_model}", check=optional(whole(1))),
        Field("k", "k (L0)", "32", check=whole(1)),
        Field("tokens", "tokens", "2000000", check=whole(1)),
    ]
    return [replace(item, value=typed.get(item.id, item.value)) for item in fields]


def _text_field(model: ModelInfo) -> Field:
    ready = BUNDLED if model.name == "demo" else ""
    return Field("text", "text", ready, f"a file or folder (.txt .jsonl), or {BUNDLED}", _a_text)


def _a_text(text: str) -> str:
    path = text.strip()
    there = bool(path) and (path == BUNDLED or expanded(path).exists())
    return "" if there else f"a file or folder that is there, or {BUNDLED}"


def _layers_of(n_layers: int) -> Check:
    def check(text: str) -> str:
        try:
            read_layers(text, n_layers)
        except LensError:
            return f"a layer from 0 to {n_layers - 1}; for transcoders 0-3,6 or all"
        return ""

    return check


def job_of(work: Unfinished, model: ModelInfo, saes: Sequence[SAEInfo]) -> Job:
    """The job that the values of a form mean. Raises ``LensError`` where its SAE is not beside the model any more."""
    values = work.values
    if work.kind == "index":
        wanted = values["sae"]
        found = tuple(one.id for one in saes if wanted in (ALL, one.name))
        if not found:
            raise LensError(f"The SAE {one_line(wanted, 60)} is not beside the model.", "Load it first.")
        tokens = int(values["tokens"]) if values["tokens"].strip() else 0
        return IndexText(found, values["text"].strip(), KEEP[values["keep"]], tokens)
    kind, skip = KINDS[values["kind"]]
    return TrainSAE(
        values["text"].strip(),
        read_layers(values["layers"], model.n_layers),
        kind,
        skip,
        values["site"],
        values["architecture"],
        int(values["width"]) if values["width"].strip() else 0,
        int(values["k"]),
        int(values["tokens"]),
    )


def _ask(lens: LensHost, kind: str, typed: Values, problem: str = "") -> None:
    session = lens.store.session
    model = session.model
    if model is None:
        return
    if kind == "index":
        fields = index_fields(model, session.saes, session.sae, typed)
        title, note = (
            "Index a text",
            "A run goes first; x stops it, what was read is kept, and the same goes on.",
        )
    else:
        fields = train_fields(model, typed)
        title, note = "Train on a text", "A transcoder maps an MLP's input to its output, whatever the site."

    def done(values: dict[str, str] | None) -> None:
        if values is not None:
            start(lens, Unfinished("index" if kind == "index" else "train", model.name, title_of(kind, values), values))

    lens.push_screen(FormScreen(title, fields, note, problem), done)


def title_of(kind: str, values: Values) -> str:
    """What the work is called in a list."""
    text = one_line(Path(values["text"].strip()).name, 40)
    if kind == "index":
        return f"index {text} for {one_line(values['sae'], 40)}"
    return f"train {values['kind']} of layer {values['layers'].strip()} on {text}"


def start(lens: LensHost, work: Unfinished) -> None:
    """Begin or go on: the job finds what it kept by itself."""
    session = lens.store.session
    if session.model is None:
        return
    try:
        job = job_of(work, session.model, session.saes)
    except (LensError, KeyError, ValueError) as error:
        hint = error.hint if isinstance(error, LensError) else "Ask for it again."
        lens.show_error(error.message if isinstance(error, LensError) else "What was asked cannot be read.", hint)
        return
    _note(begin, work)
    if lens.book.busy:
        lens.say("It begins when what runs now is done.")
    lens.submit(job, SLOT, Following(lens, work).take)


def _note(act: Callable[[Unfinished], None], work: Unfinished) -> None:
    try:
        act(work)
    except LensError:  # going on later has to be asked for in full; the work itself is not in danger
        _log.warning("unfinished work is not noted", exc_info=True)


NOTED = 0.01
"""The share of a work after which it is noted again how far it is."""


class Following:
    """Follows a long job: what is said while it goes, what is noted of it, and what its end means to the screens."""

    def __init__(self, lens: LensHost, work: Unfinished) -> None:
        self._lens, self._work, self._ended = lens, work, False
        self._noted = work.share

    def take(self, event: Event) -> bool:
        """Take an event of the job."""
        lens = self._lens
        match event:
            case Progress(_, stage, done, total) if stage.startswith(("indexing", "training")) and total:
                self._work = replace(self._work, share=done / total)
                if abs(self._work.share - self._noted) >= NOTED:  # whoever is killed says nothing at the end
                    self._noted = self._work.share
                    _note(begin, self._work)
            case TrainingAt(_, layer, progress):
                lens.store.update(work=training_line(layer, progress))
            case TextIndexed(_, saes, _, n_tokens):
                self._finished(f"Indexed {many(n_tokens, 'token', count(n_tokens))} for {many(len(saes), 'SAE')}.")
            case SAETrained(_, folders, sentence):
                self._finished(f"Trained: {sentence}. {lens.key_text('app.load')} Load lists {len(folders)} of it.")
            case JobDone() | JobFailed():
                lens.store.update(work="")
                if not self._ended:
                    _note(begin, self._work)
                    key = lens.key_text("load.work")
                    lens.say(f"Stopped at {self._work.share:.0%}; what was done is kept: {key} goes on.")
        return False

    def _finished(self, sentence: str) -> None:
        self._ended = True
        _note(finish, self._work)
        session = self._lens.store.session
        self._lens.store.update(work_done=session.work_done + 1)
        self._lens.tell(sentence)


def training_line(layer: int, progress: TrainProgress) -> str:
    """Layer, step and the figures of the last batch in one line."""
    return " · ".join((f"layer {layer}", f"step {progress.step} of {progress.steps}", *progress.qualities))
