"""The state of training on disk, and the shuffled batches it continues with: from any point again, in bounded memory.

A pool is filled with ``pool_tokens`` positions, permuted, served, and filled again where the
stream stopped. Nothing of a pool is kept on disk: a position (pool number, block, row, batches served) says
all, since the blocks and the permutation of a pool are functions of their numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError
from lens_tui.records.disk import write_text, write_with
from lens_tui.records.read_files import explained, regular_size
from lens_tui.records.sanitise import one_line
from lens_tui.records.training import ActivationSource, Evaluation, Place, SourceFacts, TrainConfig, TrainReport

from ..formats.writers import write_circuit_tracer, write_gemma_scope, write_saelens
from .objective import Normalizer, Parameters, State, flatten_state, scalar, unflatten_state


@dataclass(frozen=True, slots=True)
class PoolPosition:
    """``block`` and ``row``: where the current pool begins in the stream; ``served``: batches taken from it."""

    number: int = 0
    block: int = 0
    row: int = 0
    served: int = 0

    def to_dict(self) -> dict[str, int]:
        """Plain data for a checkpoint."""
        return asdict(self)


class Pool:
    """Batches ``(batch, d)`` of activations that are not special, in the model's dtype, without end.

    Those of several ``places`` stand side by side in a row.
    """

    def __init__(
        self,
        source: ActivationSource,
        places: Sequence[Place],
        batch: int,
        pool_tokens: int,
        seed: int,
        position: PoolPosition | None = None,
        pause: Callable[[int, int], None] | None = None,
    ) -> None:
        self._source, self._places, self._batch, self._seed = source, tuple(places), batch, seed
        self._pause = pause
        self._batches = max(1, pool_tokens // batch)
        self.position = position or PoolPosition()
        self._next: tuple[int, int] = (0, 0)
        self._values: Any = None
        self._order: Any = None

    def next(self) -> mx.array:
        """The next batch. Raises ``LensError`` if the source has nothing but special positions."""
        if self._values is None:
            self._fill()
        start = self.position.served * self._batch
        chosen = mx.take(self._values, self._order[start : start + self._batch], axis=0)
        self.position = replace(self.position, served=self.position.served + 1)
        if self.position.served == self._batches:
            self.position = PoolPosition(self.position.number + 1, *self._next)
            self._values = None
        return chosen

    def _fill(self) -> None:
        size = self._batches * self._batch
        at = self.position
        self._values, self._next = take_rows(self._source, self._places, size, at.block, at.row, self._pause)
        generator = np.random.Generator(np.random.PCG64([self._seed, self.position.number]))
        self._order = mx.array(generator.permutation(size).astype(np.int32))
        mx.eval(self._order)


def take_rows(
    source: ActivationSource,
    places: Sequence[Place],
    count: int,
    block: int = 0,
    row: int = 0,
    pause: Callable[[int, int], None] | None = None,
) -> tuple[mx.array, tuple[int, int]]:
    """``count`` positions that are not special, ``(count, d)``, from row ``row`` of block ``block`` on.

    The activations of several places stand side by side. Also gives the block and row that come next. Blocks are
    evaluated one at a time; ``pause`` is called before each with how many positions there are and are wanted, and may
    raise.
    """
    parts: list[mx.array] = []
    missing, barren = count, 0
    for item in source.blocks(block):
        if pause is not None:
            pause(count - missing, count)
        kept = np.flatnonzero(~item.special)[row:]
        barren = barren + 1 if len(kept) == 0 else 0
        if barren > max(source.n_blocks, 1):
            raise LensError("The text has no position to train on.", "Give more or longer documents.")
        used = kept[:missing]
        if len(used):
            rows = mx.array(used.astype(np.int32))
            part = mx.concatenate([mx.take(item.values[place], rows, axis=0) for place in places], axis=1)
            mx.eval(part)
            parts.append(part)
            missing -= len(used)
        if missing == 0:
            values = mx.concatenate(parts, axis=0)
            mx.eval(values)
            done = len(used) == len(kept)
            return values, (item.index + 1, 0) if done else (item.index, row + len(used))
        row = 0
    raise LensError("The activations ended before training did.", "Give a source that starts over at its end.")


NEVER_FIRED = -10.0
"""``log10`` density given to latents that did not fire, as SAELens does (``log10(1e-10)``)."""


def write_outputs(
    folder: Path,
    folded: Parameters,
    report: TrainReport,
    density: NDArray[np.float64],
    norm: Normalizer,
    trained_on: SourceFacts,
    measured_on: SourceFacts,
) -> None:
    """Write the SAE or transcoder and the report into ``folder``; ``density (f,)`` is each latent's firing rate."""
    facts = training_facts(report, norm, trained_on, measured_on)
    place: dict[str, Any] = {"layer": report.layer, "site": report.site, "model_name": report.model_name}
    place["site_out"] = report.site_out
    l0 = report.final.l0 if report.final else float(report.config.k)
    log_density = np.where(density > 0, np.log10(np.maximum(density, 1e-10)), NEVER_FIRED).astype(np.float32)
    write_saelens(
        folder / "sae_lens",
        folded,
        **place,
        bos=trained_on.bos,
        context=trained_on.context,
        log_density=mx.array(log_density),
        facts=facts,
    )
    if report.site_out:
        write_circuit_tracer(folder / "circuit_tracer", folded, layer=report.layer, model_name=report.model_name)
    write_text(folder / "training" / "report.json", json.dumps(asdict(report), indent=1) + "\n")
    write_gemma_scope(folder, folded, **place, l0=round(l0, 3), facts=facts)


def training_facts(
    report: TrainReport, norm: Normalizer, trained_on: SourceFacts, measured_on: SourceFacts
) -> dict[str, Any]:
    """What config.json says beyond Gemma Scope's keys. All plain JSON; shares are between 0 and 1.

    ``bos_included`` is whether activations at BOS were learnt from (never: special positions are left out),
    ``bos_prepended`` whether the model saw a BOS before each window.
    """
    final = report.final
    figures: dict[str, Any] = {}
    if final is not None:
        figures = {
            "fvu": final.fvu,
            "measured_l0": final.l0,
            "loss_clean": final.loss_clean,
            "loss_spliced": final.loss_spliced,
            "loss_zero_ablated": final.loss_zero,
            "loss_recovered": final.loss_recovered,
            "dead_share": final.dead,
            "dense_share": final.dense,
            "evaluation_tokens": final.n_tokens,
            "evaluation_held_out": measured_on != trained_on,
        }
    config = report.config
    return {
        **figures,
        "bos_included": report.bos_included,
        "bos_prepended": trained_on.bos,
        "skipped_positions": trained_on.skipped,
        "context": trained_on.context,
        "corpus_sha256": trained_on.corpus_sha256,
        "trained_as": config.architecture,
        "target_l0": config.k,
        "training_tokens": report.tokens,
        "training_steps": report.step,
        "matryoshka_prefixes": list(config.matryoshka),
        "normalization_folded": config.normalize,
        "normalization_scale": scalar(norm.scale),
        "seed": config.seed,
    }


FILE = "checkpoint.safetensors"
_VERSION = 1
_RESIZABLE = ("evaluate_every",)
"""Settings that may differ between a run and its resumption: they change no number."""
_BEFORE: dict[str, Any] = {"kind": "sae", "skip": False}
"""Settings that checkpoints made before they existed do not name, as they were then."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that a run needs to continue: state, normaliser, stream position, evaluations, seconds spent."""

    state: State
    norm: Normalizer
    position: PoolPosition
    history: tuple[Evaluation, ...]
    seconds: float


def save_checkpoint(folder: Path, point: Checkpoint, config: TrainConfig, facts: dict[str, Any]) -> None:
    """Replace the run's checkpoint. ``facts`` say what it learns from, see ``run_facts``."""
    arrays = {f"state.{name}": value for name, value in flatten_state(point.state).items()}
    arrays |= {"norm.mean": point.norm.mean, "norm.scale": point.norm.scale}
    if point.norm.out is not None:
        arrays |= {"norm.out_mean": point.norm.out.mean, "norm.out_scale": point.norm.out.scale}
    mx.eval(arrays)
    metadata = {
        "version": str(_VERSION),
        "config": config.to_json(),
        "facts": json.dumps(facts, sort_keys=True),
        "position": json.dumps(point.position.to_dict()),
        "history": json.dumps([asdict(item) for item in point.history]),
        "seconds": repr(point.seconds),
    }
    write_with(folder / FILE, lambda file: mx.save_safetensors(file, arrays, metadata))


def load_checkpoint(folder: Path, config: TrainConfig, facts: dict[str, Any]) -> Checkpoint | None:
    """The run's checkpoint, ``None`` if there is none.

    Raises ``LensError`` if it is of other settings or learns from something else, saying which, or cannot be read.
    """
    path = folder / FILE
    if not path.exists():
        return None
    hint = "Give another folder, or the run's own settings."
    name = one_line(folder.name, 60)
    try:
        with explained(path):
            regular_size(path)
            loaded: Any = mx.load(str(path), return_metadata=True)
            arrays, metadata = loaded
            saved, then = json.loads(metadata["config"]), json.loads(metadata["facts"])
            position = PoolPosition(**json.loads(metadata["position"]))
            history = tuple(_evaluation(item) for item in json.loads(metadata["history"]))
            seconds = float(metadata["seconds"])
            state = unflatten_state({n.removeprefix("state."): a for n, a in arrays.items() if n.startswith("state.")})
            out = Normalizer(arrays["norm.out_mean"], arrays["norm.out_scale"]) if "norm.out_mean" in arrays else None
            norm = Normalizer(arrays["norm.mean"], arrays["norm.scale"], out)
            if not isinstance(saved, dict) or not isinstance(then, dict):
                raise TypeError("settings")
    except LensError as error:
        raise LensError(f"The checkpoint in {name} cannot be read.", "Delete it to start over.") from error
    now = json.loads(config.to_json())
    saved = _BEFORE | saved
    other = [key for key in sorted(set(now) | set(saved)) if now.get(key) != saved.get(key)]
    other = [key for key in other if key not in _RESIZABLE]
    if other:
        raise LensError(f"The run in {name} has other settings: {one_line(', '.join(other), 200)}.", hint)
    current = json.loads(json.dumps(facts))
    other = [key for key in sorted(set(current) | set(then)) if current.get(key) != then.get(key)]
    if other:
        raise LensError(f"The run in {name} learns from something else: {one_line(', '.join(other), 200)}.", hint)
    return Checkpoint(state, norm, position, history, seconds)


def run_facts(facts: SourceFacts, layer: int, site: str, place_out: Place | None = None) -> dict[str, Any]:
    """What decides the activations of a run, as plain data; ``place_out`` is what a transcoder learns to give."""
    apart = {} if place_out is None else {"layer_out": place_out[0], "site_out": place_out[1]}
    return {**asdict(facts), "layer": layer, "site": site, **apart}


def _evaluation(item: dict[str, Any]) -> Evaluation:
    return Evaluation(**{**item, **{name: tuple(item[name]) for name in ("density_edges", "density_counts")}})
