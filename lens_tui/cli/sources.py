"""Where the verbs get their models, SAEs and vectors from."""

from __future__ import annotations

import sys
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from lens_tui import demo
from lens_tui.records import Arm, Intervention, LensError, SAEInfo, SteeringVector, paths
from lens_tui.records.modes import acting, positions_of
from lens_tui.records.sae_names import split_place
from lens_tui.records.sanitise import one_line

from .arms import ArmSpec, Term
from .long_work import Meter

if TYPE_CHECKING:
    from lens_tui.lens import LensModel
    from lens_tui.records.info import Dequantize
    from lens_tui.sae import SAE

asked_dequantize: ContextVar[Dequantize | None] = ContextVar("asked_dequantize", default=None)
"""What ``--dequantize`` says, which stands before the verb."""


def read_text(argument: str) -> str:
    """The text of an argument: itself, or standard input for ``-``. Raises :class:`LensError` if empty."""
    text = _standard_input() if argument == "-" else argument
    if not text.strip():
        raise LensError("The text is empty.", "Give some words, or '-' to read standard input.")
    return text


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
    from lens_tui.lens import LensModel
    from lens_tui.tui.preferences import preferences

    return LensModel(name, dequantize=asked_dequantize.get() or preferences().dequantize)


def open_sae(name: str, model: str) -> SAE:
    """An SAE by path, bundled name or the name of one trained here, with ``@LAYER:SITE`` where its files do not say it.

    For the bundled model no name stands for the default one.
    """
    from lens_tui.sae import load_sae

    name, layer, site = split_place(name)
    meter = Meter()
    try:
        return load_sae(_sae_path(name, model), layer=layer, site=site, progress=lambda *n: meter.say(*_fetched(*n)))
    finally:
        meter.end()


def find_sae(name: str, model: str) -> SAEInfo:
    """What is known of an SAE, named as for :func:`open_sae`; one on this machine is not read for it."""
    from lens_tui.sae import sae_info

    name, layer, site = split_place(name)
    path = _sae_path(name, model)
    return sae_info(path, layer=layer, site=site) if Path(path).expanduser().exists() else open_sae(path, model).info


def _fetched(done: int, total: int) -> tuple[str, str]:
    return "download", f"{done / 1e6:.1f} of {total / 1e6:.1f} MB"


def _sae_path(name: str, model: str) -> str:
    bundled = demo.sae_paths()
    if not name:
        if model != demo.NAME:
            raise LensError(f"No SAE is named for {model!r}.", "Name one with --sae: a file or a folder.")
        name = demo.default_sae()
    own = paths.saes_folder() / name
    plain = Path(name).name == name and not Path(name).exists()
    return str(own) if plain and own.is_dir() else str(bundled.get(name, name))


def _vector_path(named: str, model: str) -> Path | str:
    """A vector's file (``FILE:NAME`` too): the one that is there, or that of the bundled vector of this name."""
    from lens_tui.records.vector_formats import vector_file

    named = str(Path(named).expanduser())
    if vector_file(named)[0].exists() or model != demo.NAME:
        return named
    ready = demo.ready_vector(named)
    if ready is None:
        known = ", ".join(f"{vector.name}*{vector.scale:g}" for vector in demo.vectors())
        raise LensError(
            f"There is no file {one_line(named, 120)}, nor a bundled vector of that name.", f"Bundled: {known}."
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
        return Arm(spec.name, tuple(self._record(f"{spec.name}:{i}", term) for i, term in enumerate(spec.terms)))

    def _record(self, name: str, term: Term) -> Intervention:
        vector = self.vector(term)
        layer = vector.layer if term.layer is None else term.layer
        return acting(term.mode, name, vector, layer, term.scale, positions_of(term.positions))

    def vector(self, term: Term) -> SteeringVector:
        """The vector that a term names, checked."""
        if term.kind == "feature":
            return self.sae.vector(int(term.source))
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
    def sae(self) -> SAE:
        """The SAE that features are of."""
        if self._sae is None:
            self._sae = open_sae(self._name, self._model)
        return self._sae
