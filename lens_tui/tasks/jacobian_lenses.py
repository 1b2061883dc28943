"""Jacobian lenses of a corpus: fitted in windows of its documents, taken up again after a stop or a kill, and found.

While a fit goes on, what it has summed up lies beside the lens's file, under its name and ``.fit``. It is written at
most every half minute and at the end, and removed once the lens is there. Runs on the model's thread.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lens_tui import demo
from lens_tui.lens.read import jacobian as fit
from lens_tui.lens.read.activations import WindowBatches, Windowing, tokenize
from lens_tui.lens.read.jacobian import JacobianSums
from lens_tui.records import LensError, ModelInfo, paths
from lens_tui.records.corpus import open_corpus
from lens_tui.records.disk import write_bytes
from lens_tui.records.errors import AskedToStop
from lens_tui.records.jacobian_lens import JacobianLens, read_jacobian_lens, write_jacobian_lens
from lens_tui.records.paths import expanded
from lens_tui.records.read_files import explained, parse_json, short_path

if TYPE_CHECKING:
    from lens_tui.lens.model import LensModel

STATE = ".fit"
_STATE_FORMAT = "mlx-lens-tui.jacobian-fit"
_SAVE_EVERY = 30.0


@dataclass(frozen=True, slots=True)
class FitStep:
    """How far a fit is: texts done and wanted, the largest error of a layer so far (``None``: of one text)."""

    done: int
    total: int
    error: float | None


def fit_on_corpus(
    model: LensModel,
    corpus: str | Path,
    out: str | Path | None = None,
    *,
    n_texts: int = 100,
    layers: Sequence[int] | None = None,
    context: int = 128,
    skip: int | None = None,
    rows: int | None = None,
    seed: int = 0,
    text_key: str = "text",
    progress: Callable[[FitStep], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[Path, JacobianLens | None]:
    """Fit a Jacobian lens to windows of a corpus and write it; stopped or killed, the same call goes on.

    Args:
        model: The model.
        corpus: A folder, a ``.txt`` or a ``.jsonl`` file.
        out: The lens's file, by default the one in which :func:`lens_of` finds it.
        n_texts: Windows to average over, drawn at random.
        layers: By default all but the last.
        context: Tokens in a window, BOS included.
        skip: Positions left out at the start of each window; by default 16.
        rows: Rows of the matrices in one pass backwards, by default as many as memory is sensibly used for.
        seed: Which windows are drawn depends on it.
        text_key: In JSONL, the key that holds the text.
        progress: Called after each window.
        should_stop: Asked between passes.

    Returns:
        The file, and the lens; ``None`` if it was stopped.

    Raises:
        LensError: For a file that holds something else, and what ``fit_jacobian_lens`` refuses.
    """
    start = fit.SKIP if skip is None else skip
    chosen = fit.fitted_layers(model, layers)
    windows = _Windows(model, corpus, n_texts, context, start, seed, text_key)
    file = expanded(out) if out is not None else place_of(model.info)
    facts = {**windows.facts, "skip": start, "layers": list(chosen), "n_texts": n_texts}
    if file.exists():
        return file, _same(file, facts)
    state = file.with_name(file.name + STATE)
    sums = _taken_up(state, facts, chosen)

    saving = _Saving(state, facts, progress)
    with _stopping(model, should_stop):
        try:
            options: dict[str, Any] = {"layers": chosen, "skip": start, "rows": rows, "progress": saving.after}
            found = fit.fit_jacobian_lens(model, windows.ids(sums.n_texts), sums=sums, facts=facts, **options)
        except AskedToStop:
            saving.save(sums)
            return file, None
    write_jacobian_lens(found, file)
    state.unlink(missing_ok=True)
    return file, read_jacobian_lens(file)


@dataclass(eq=False)
class _Saving:
    """Writes down what has been summed up, at most every half minute."""

    state: Path
    facts: Mapping[str, Any]
    progress: Callable[[FitStep], None] | None
    saved: float = field(default_factory=time.monotonic)

    def after(self, held: JacobianSums) -> None:
        if self.progress is not None:
            error = held.history[-1][1] if held.history else None
            self.progress(FitStep(held.n_texts, self.facts["n_texts"], error))
        if time.monotonic() - self.saved > _SAVE_EVERY:
            self.save(held)

    def save(self, held: JacobianSums) -> None:
        _keep(self.state, self.facts, held)
        self.saved = time.monotonic()


def place_of(info: ModelInfo) -> Path:
    """Where the lens of a model that is fitted here is kept: a file named after it."""
    name = re.sub(r"[^\w.-]+", "-", info.name, flags=re.ASCII).strip("-.").lower()[:80] or "model"
    return paths.jacobian_lenses_folder() / f"{name}.safetensors"


def lens_of(info: ModelInfo) -> JacobianLens:
    """The Jacobian lens of a model: the one fitted here, a published ``.pt`` in its place, or the bundled model's.

    Raises :class:`LensError` where there is none, and for one that does not fit.
    """
    fitted = place_of(info)
    published = fitted.with_suffix(".pt")
    file = published if published.exists() and not fitted.exists() else fitted
    bundled = demo.jacobian_lens_path()
    if not file.exists() and Path(info.path) == demo.model_path() and bundled.exists():
        file = bundled
    if not file.exists():
        raise LensError(
            f"There is no Jacobian lens of {info.name}.",
            f"Fit one: `mlx-lens-tui jlens fit TEXT --model {info.name}`, or copy a published one to {published}.",
        )
    found = open_lens(file, info.name)
    found.check_fits(info.d_model, info.n_layers, info.name)
    return found


def open_lens(file: str | Path, model: str = "") -> JacobianLens:
    """The lens of a file, read anew only when the file changed."""
    place = expanded(file)
    with explained(place):
        facts = place.stat()
    return _opened(place, facts.st_mtime_ns, facts.st_size, model)


@lru_cache(maxsize=1)
def _opened(file: Path, changed: int, size: int, model: str) -> JacobianLens:
    return read_jacobian_lens(file, model=model)


class _Windows:
    """Windows of a corpus in a fixed random order, those too short left out."""

    def __init__(
        self, model: LensModel, corpus: str | Path, n_texts: int, context: int, skip: int, seed: int, text_key: str
    ) -> None:
        if n_texts < 1 or context < skip + 2:
            raise LensError(
                f"{n_texts} windows of {context} tokens leave nothing behind the first {skip}.",
                "Give a larger context=, or a smaller skip=.",
            )
        documents = open_corpus(corpus, text_key=text_key)
        # Many documents are shorter than a window: twice the tokens that full ones have are drawn.
        store = tokenize(documents, model.tokens, max_tokens=2 * n_texts * context, seed=seed)
        windowing = Windowing(context=context, rows=1, packed=False, shuffle=True, seed=seed)
        self._batches = WindowBatches(store, model.tokens, windowing)
        self._least, self._most = skip + 2, n_texts
        self.facts = {
            "corpus_sha256": documents.sha256,
            "context": context,
            "seed": seed,
            "precision": model.info.quantization or model.info.dtype,
            "weights": model.info.weights,
        }

    def ids(self, done: int) -> Iterator[list[int]]:
        """The token ids of the windows behind the first ``done``."""
        number = 0
        for index in range(self._batches.per_pass):
            ids: list[int] = self._batches.batch(index).ids[0].tolist()
            if len(ids) < self._least:
                continue
            number += 1
            if number > self._most:
                return
            if number > done:
                yield ids


@contextmanager
def _stopping(model: LensModel, should_stop: Callable[[], bool]) -> Iterator[None]:
    """Inside, the question is asked between passes, and yes raises ``AskedToStop``."""
    before = model.registry.between

    def between() -> None:
        before()
        if should_stop():
            raise AskedToStop

    model.registry.between = between
    try:
        yield
    finally:
        model.registry.between = before


def _same(file: Path, facts: Mapping[str, Any]) -> JacobianLens:
    """The lens of a file that this very fit has written."""
    found = read_jacobian_lens(file)
    if any(found.facts.get(key) != value for key, value in facts.items()):
        raise LensError(f"{short_path(file)} holds another Jacobian lens.", "Name another file, or remove it.")
    return found


def _keep(state: Path, facts: Mapping[str, Any], sums: JacobianSums) -> None:
    from safetensors.numpy import save

    tensors = {f"{side}.{layer}": matrix for side, half in enumerate(sums.halves) for layer, matrix in half.items()}
    record = {
        "facts": dict(facts),
        "counts": sums.counts,
        "positions": sums.positions,
        "history": sums.history,
    }
    tensors = tensors or {"none": np.zeros(1, np.float32)}
    write_bytes(state, save(tensors, {"format": _STATE_FORMAT, "record": json.dumps(record)}))


def _taken_up(state: Path, facts: Mapping[str, Any], layers: tuple[int, ...]) -> JacobianSums:
    """What a fit that was broken off has summed up, or a new one."""
    from safetensors import safe_open

    if not state.exists():
        return JacobianSums(layers)
    with explained(state, "Remove it to begin anew."), safe_open(state, framework="np") as opened:
        record: Any = parse_json((opened.metadata() or {})["record"], short_path(state), "Remove it to begin anew.")
        if record["facts"] != dict(facts):
            raise LensError(
                f"{short_path(state)} is of a fit with other settings or another text.",
                "Remove it, or name another file.",
            )
        halves = tuple(
            {layer: opened.get_tensor(f"{side}.{layer}") for layer in layers} if count else {}
            for side, count in enumerate(record["counts"])
        )
        history = [(int(n), float(error)) for n, error in record["history"]]
        return JacobianSums(layers, (halves[0], halves[1]), list(record["counts"]), record["positions"], 0, history)
