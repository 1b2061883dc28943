"""Train an SAE from a stream of activations: the loop, its checkpoints, evaluations and output."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError
from lens_tui.records.errors import AskedToStop
from lens_tui.records.training import ActivationSource, Evaluation, Place, TrainConfig, TrainProgress, TrainReport

from .checkpoint import (
    Checkpoint,
    Pool,
    PoolPosition,
    load_checkpoint,
    run_facts,
    save_checkpoint,
    take_rows,
    write_outputs,
)
from .objective import (
    Normalizer,
    Parameters,
    State,
    Step,
    StepFigures,
    decode_folded,
    encode_folded,
    fold,
    initial_parameters,
    initial_state,
    initial_transcoder,
    normalizer,
    pair_normalizer,
    reconstruct,
    row_parts,
    scalar,
    starting_parameters,
    threshold_of,
)
from .peers import Peers, peers_of

OFTEN = 0.1
"""A latent that fires on more than this share of the tokens counts as dense in a report of training.

Pages and lists leave out what an index calls dense, which is more: :data:`lens_tui.records.features.DENSE`.
"""

_EDGES = tuple(float(edge) for edge in np.linspace(-6.0, 0.0, 25))
REPORT_SECONDS = 0.5
"""How often progress is reported; each report waits for the device once."""


def train(
    source: ActivationSource,
    config: TrainConfig,
    folder: str | Path,
    *,
    evaluation: ActivationSource | None = None,
    place: Place | None = None,
    place_out: Place | None = None,
    progress: Callable[[TrainProgress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    checkpoint_seconds: float = 60.0,
    parallel: bool = False,
) -> TrainReport:
    """Train an SAE or a transcoder on ``source`` and write it to ``folder``.

    The folder gets the SAE in Gemma Scope 2's layout (``config.json``, ``params.safetensors``), in SAELens' layout
    under ``sae_lens/``, a transcoder in circuit-tracer's under ``circuit_tracer/``, and under ``training/`` the report
    and the checkpoint. A folder
    with a checkpoint of the same settings and source is taken up where it stopped, with the
    same numbers as an unbroken run (bitwise on one machine and MLX version); a kill loses at most
    ``checkpoint_seconds``.

    ``place`` (layer and site) may be left out if the source has one only; a transcoder is to give ``place_out`` for
    it, which the source has too. ``evaluation`` is text that is held
    out; without it the figures are on the training text. ``progress`` is called a few times a second,
    ``should_stop`` before every step and every block of activations: when it says so, or the source raises
    ``AskedToStop``, a checkpoint is written and the report says ``stopped``.

    ``parallel``: the processes that ``mlx.launch`` started train together, each on its rows of every batch
    (``nn.average_gradients``), which gives what one of them gives on the whole batches. Each reads the whole source;
    rank 0 writes.

    Raises ``LensError`` for settings that do not fit the source or an earlier run in the folder, and when the
    loss stops being finite.
    """
    place = place or _only_place(source)
    for needed in (place, *([] if place_out is None else [place_out])):
        if needed not in source.places:
            raise LensError(f"The source has no activations of layer {needed[0]}, {needed[1]}.", "Read that place.")
    if (place_out is not None) != (config.kind == "transcoder"):
        raise LensError(f"The kind to train is {config.kind}.", "Give place_out for a transcoder, and for it alone.")
    hooks = _TrainingCallbacks(progress or (lambda _: None), should_stop or (lambda: False), checkpoint_seconds)
    run = _TrainingRun(source, evaluation or source, config, (place, place_out), Path(folder), hooks)
    run.peers = peers_of(config.batch, config.architecture) if parallel else None
    return run.go()


@dataclass(frozen=True, slots=True)
class _TrainingCallbacks:
    progress: Callable[[TrainProgress], None]
    should_stop: Callable[[], bool]
    checkpoint_seconds: float


@dataclass
class _Pace:
    """Speed over the steps of this sitting."""

    started: float
    first_step: int

    def figures(self, step: int, config: TrainConfig) -> tuple[float, float]:
        """``(tokens a second, seconds left)``."""
        elapsed = max(time.monotonic() - self.started, 1e-9)
        rate = (step - self.first_step) / elapsed
        return rate * config.batch, (config.steps - step) / rate if rate else 0.0


class _TrainingRun:
    """One training run: what changes while it goes, and the few things that are done to it."""

    def __init__(
        self,
        source: ActivationSource,
        evaluation: ActivationSource,
        config: TrainConfig,
        places: tuple[Place, Place | None],
        folder: Path,
        hooks: _TrainingCallbacks,
    ) -> None:
        self._source, self._evaluation, self._config = source, evaluation, config
        self._place, self._place_out = places
        self._places = [place for place in places if place is not None]
        self._folder, self._hooks = folder, hooks
        self._facts = run_facts(source.facts, *self._place, self._place_out)
        self._begun = self._said = time.monotonic()
        self._spent, self._step = 0.0, 0
        self._history: tuple[Evaluation, ...] = ()
        self._state: State = {}
        self._norm: Normalizer
        self._pool: Pool
        self._sample: mx.array
        self.peers: Peers | None = None

    @property
    def _training(self) -> Path:
        return self._folder / "training"

    def go(self) -> TrainReport:
        """Train to the end, or until told to stop."""
        try:
            self._prepare()
            self._loop()
            self._save()
            return self._finish()
        except AskedToStop:
            if self._state:
                self._save()
            return self._report(stopped=True)

    def _prepare(self) -> None:
        point = load_checkpoint(self._training, self._config, self._facts)
        if point is not None:
            self._adopt(point)
        self._say("prepare")
        self._sample, _ = take_rows(self._source, self._places, self._config.calibration_tokens, pause=self._taking)
        if point is None:
            self._adopt(self._fresh())

    def _adopt(self, point: Checkpoint) -> None:
        config = self._config
        self._state, self._norm, self._history, self._spent = point.state, point.norm, point.history, point.seconds
        self._step = int(scalar(point.state["step"]))
        self._pool = Pool(
            self._source, self._places, config.batch, config.pool_tokens, config.seed, point.position, self._taking
        )

    def _pause(self) -> None:
        """Called wherever the run may be interrupted: between steps and between blocks of activations."""
        if self._hooks.should_stop():
            raise AskedToStop

    def _taking(self, taken: int, wanted: int) -> None:
        """Between two blocks of activations: stop if asked to, and say now and then how many are there."""
        self._pause()
        if time.monotonic() - self._said >= REPORT_SECONDS:
            self._say("fill" if self._state else "prepare", figures={"taken": taken, "wanted": wanted})

    def _finish(self) -> TrainReport:
        folded, final, density = self._evaluate()
        self._say("save", evaluation=final)
        report = self._report(stopped=False, final=final)
        facts = self._source.facts, self._evaluation.facts
        write_outputs(self._folder, folded, report, density, self._norm, *facts)
        return report

    def _loop(self) -> None:
        step = Step(self._config, self._norm, peers=self.peers)
        pace = _Pace(time.monotonic(), self._step)
        saved = time.monotonic()
        figures: StepFigures | None = None
        while self._step < self._config.steps:
            if self._due():
                self._evaluate()
            self._pause()
            before = figures
            batch = self._pool.next()
            self._state, figures = step(self._state, batch if self.peers is None else self.peers.part(batch))
            _start(self._state, figures.error, figures.variance, figures.l0)
            self._step += 1
            if before is not None:
                mx.eval(before.error)  # one step in flight: the host is never far ahead of the device
            now = time.monotonic()
            if now - self._said >= REPORT_SECONDS or self._step == self._config.steps:
                self._say_training(figures, pace)
            if now - saved >= self._hooks.checkpoint_seconds:
                self._save()
                saved = time.monotonic()

    def _due(self) -> bool:
        every, step = self._config.evaluate_every, self._step
        done = bool(self._history) and self._history[-1].step == step
        return every > 0 and step > 0 and step % every == 0 and not done

    def _fresh(self) -> Checkpoint:
        if self._place_out is None:
            norm, b_dec = normalizer(self._sample, self._config)
            p = initial_parameters(self._config, b_dec)
        else:
            norm, b_out = pair_normalizer(self._sample, self._config, self._source.d_model(self._place))
            p = initial_transcoder(self._config, b_out, *norm.pair(self._sample))
        state = initial_state(starting_parameters(p, norm, self._sample, self._config))
        mx.eval(state)
        return Checkpoint(state, norm, PoolPosition(), (), 0.0)

    def _folded(self) -> Parameters:
        p = self._state["parameters"]
        folded = fold(p, self._norm, threshold_of(p, self._norm, self._sample, self._config))
        mx.eval(folded)
        return folded

    def _evaluate(self) -> tuple[Parameters, Evaluation, NDArray[np.float64]]:
        self._say("evaluate")
        folded, tokens = self._folded(), self._config.evaluation_tokens
        result, density = measure(
            folded, self._evaluation, self._place, tokens, self._step, self._pause, self._place_out
        )
        if not self._history or self._history[-1].step != self._step:
            self._history = (*self._history, result)
        self._say("train", evaluation=result)
        return folded, result, density

    def _save(self) -> None:
        if not bool(mx.all(mx.isfinite(self._state["parameters"]["w_enc"])).item()):
            raise self._diverged()  # keeps the last good checkpoint
        point = Checkpoint(self._state, self._norm, self._pool.position, self._history, self._seconds)
        save_checkpoint(self._training, point, self._config, self._facts)

    @property
    def _seconds(self) -> float:
        return self._spent + time.monotonic() - self._begun

    def _say(self, stage: str, evaluation: Evaluation | None = None, figures: dict[str, Any] | None = None) -> None:
        steps, tokens = self._config.steps, self._step * self._config.batch
        at = TrainProgress(stage=stage, step=self._step, steps=steps, tokens=tokens, evaluation=evaluation)
        self._hooks.progress(replace(at, **(figures or {})))
        self._said = time.monotonic()

    def _say_training(self, figures: StepFigures, pace: _Pace) -> None:
        error, variance = scalar(figures.error), scalar(figures.variance)
        if not error < float("inf"):
            raise self._diverged()
        rate, left = pace.figures(self._step, self._config)
        dead = mx.mean(self._state["idle"] > self._config.dead_after)
        last = {"fvu": error / variance if variance else None, "l0": scalar(figures.l0), "dead": scalar(dead)}
        self._say("train", figures={"tokens_per_s": rate, "seconds_left": left, **last})

    def _diverged(self) -> LensError:
        hint = "Lower the learning rate and start in a new folder."
        return LensError(f"The loss is no longer finite at step {self._step}.", hint)

    def _report(self, *, stopped: bool, final: Evaluation | None = None) -> TrainReport:
        facts = self._source.facts
        return TrainReport(
            config=self._config,
            layer=self._place[0],
            site=self._place[1],
            d_model=self._source.d_model(self._place),
            model_name=facts.model_name,
            corpus_sha256=facts.corpus_sha256,
            bos_included=False,
            step=self._step,
            tokens=self._step * self._config.batch,
            seconds=self._seconds,
            stopped=stopped,
            final=final,
            history=self._history,
            folder=str(self._folder),
            site_out="" if self._place_out is None else self._place_out[1],
        )


def _only_place(source: ActivationSource) -> Place:
    if len(source.places) != 1:
        raise LensError("The source has more than one layer and site.", "Say which one to train on.")
    return source.places[0]


def _start(*arrays: Any) -> None:
    run: Any = mx.async_eval
    run(*arrays)


def measure(
    folded: Parameters,
    source: ActivationSource,
    place: Place,
    n_tokens: int,
    step: int,
    pause: Callable[[], None] = lambda: None,
    place_out: Place | None = None,
) -> tuple[Evaluation, NDArray[np.float64]]:
    """An :class:`Evaluation` over the first blocks of ``source`` that hold at least ``n_tokens`` positions.

    ``place_out`` is what a transcoder gives; its reconstruction and zeros are put there. Also gives each latent's
    firing rate, ``(f,)``. The model's losses are measured over the same blocks.
    ``pause`` is called between blocks and may raise. Raises ``LensError`` if the source has no position to
    measure on.
    """
    sums = _Sums(folded)
    blocks = 0
    for block in source.blocks(0, source.n_blocks):
        pause()
        kept = np.flatnonzero(~block.special).astype(np.int32)
        blocks += 1
        if len(kept):
            rows = [mx.take(block.values[one], mx.array(kept), axis=0) for one in (place, place_out or place)]
            sums.add(*rows)
        if sums.n >= n_tokens:
            break
    if not sums.n:
        raise LensError("The evaluation text has no position to measure on.", "Give more or longer documents.")
    losses = []
    apart: dict[str, Any] = {} if place_out is None else {"read": place}
    width = folded["w_dec"].shape[1]
    for splice in (None, lambda x: reconstruct(folded, x), lambda x: mx.zeros((x.shape[0], width))):
        pause()
        losses.append(source.loss_with(place_out or place, splice, blocks, **apart))
    return sums.result(step, losses), sums.density


class _Sums:
    """Running sums in float64: tokens, fired counts, moments of ``y - b_dec``, squared error."""

    def __init__(self, folded: Parameters) -> None:
        width, d = folded["w_dec"].shape
        self._folded = folded
        self.n = 0
        self._fired: NDArray[np.int64] = np.zeros(width, np.int64)
        self._sum: NDArray[np.float64] = np.zeros(d, np.float64)
        self._square = 0.0
        self._error = 0.0

    def add(self, x: mx.array, y: mx.array) -> None:
        width = len(self._fired)
        for rows, wanted in zip(row_parts(x, width), row_parts(y, width), strict=True):
            z = encode_folded(self._folded, rows)
            raw = wanted.astype(mx.float32)
            shifted = raw - self._folded["b_dec"]  # keeps the moments small where the mean is large
            error = mx.sum(mx.square(raw - decode_folded(self._folded, z, rows)), axis=-1)
            fired = mx.sum((z > 0).astype(mx.int32), axis=0)
            total, square = mx.sum(shifted, axis=0), mx.sum(mx.square(shifted), axis=-1)
            mx.eval(error, fired, total, square)
            self.n += rows.shape[0]
            self._fired += np.asarray(fired, np.int64)
            self._sum += np.asarray(total, np.float64)
            self._square += float(np.asarray(square, np.float64).sum())
            self._error += float(np.asarray(error, np.float64).sum())

    @property
    def density(self) -> NDArray[np.float64]:
        return self._fired / max(self.n, 1)

    def result(self, step: int, losses: Sequence[float]) -> Evaluation:
        variance = self._square - float(self._sum @ self._sum) / max(self.n, 1)
        rate = self.density
        counts, _ = np.histogram(np.log10(rate[rate > 0]), bins=np.asarray(_EDGES))
        return Evaluation(
            step=step,
            n_tokens=self.n,
            l0=float(rate.sum()),
            fvu=self._error / variance if variance > 0 else float("inf"),
            dead=float(np.mean(self._fired == 0)),
            dense=float(np.mean(rate > OFTEN)),
            density_edges=_EDGES,
            density_counts=tuple(int(count) for count in counts),
            loss_clean=losses[0],
            loss_spliced=losses[1],
            loss_zero=losses[2],
        )
