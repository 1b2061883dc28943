"""Train an SAE from a stream of activations: the loop, its checkpoints, evaluations and output."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError
from lens_tui.records.activations import ActivationSource, Place
from lens_tui.records.training import Evaluation, TrainConfig, TrainProgress, TrainReport

from .checkpoint import Checkpoint, load_checkpoint, run_facts, save_checkpoint
from .evaluate import measure, starting_parameters, threshold_of
from .export import write_outputs
from .parameters import Parameters, fold, initial_parameters, normalizer, scalar
from .pool import Pool, PoolPosition, take_rows
from .step import State, Step, StepFigures, initial_state

REPORT_SECONDS = 0.5
"""How often progress is reported; each report waits for the device once."""


def train(
    source: ActivationSource,
    config: TrainConfig,
    folder: str | Path,
    *,
    evaluation: ActivationSource | None = None,
    place: Place | None = None,
    progress: Callable[[TrainProgress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    checkpoint_seconds: float = 60.0,
) -> TrainReport:
    """Train an SAE on ``source`` and write it to ``folder``.

    The folder gets the SAE in Gemma Scope 2's layout (``config.json``, ``params.safetensors``), in SAELens' layout
    under ``sae_lens/``, and under ``training/`` the report and the checkpoint. A folder
    with a checkpoint of the same settings and source is taken up where it stopped, with the
    same numbers as an unbroken run (bitwise on one machine and MLX version); a kill loses at most
    ``checkpoint_seconds``.

    ``place`` (layer and site) may be left out if the source has one only. ``evaluation`` is text that is held
    out; without it the figures are on the training text. ``progress`` is called a few times a second,
    ``should_stop`` before every step: when it says so, a checkpoint is written and the report says ``stopped``.

    Raises ``LensError`` for settings that do not fit the source or an earlier run in the folder, and when the
    loss stops being finite.
    """
    place = place or _only_place(source)
    if place not in source.places:
        raise LensError(f"The source has no activations of layer {place[0]}, {place[1]}.", "Read that place.")
    run = _Run(source, evaluation or source, config, place, Path(folder), progress or _silent, checkpoint_seconds)
    return run.go(should_stop or _never)


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


class _Run:
    """One training run: what changes while it goes, and the few things that are done to it."""

    def __init__(
        self,
        source: ActivationSource,
        evaluation: ActivationSource,
        config: TrainConfig,
        place: Place,
        folder: Path,
        progress: Callable[[TrainProgress], None],
        checkpoint_seconds: float,
    ) -> None:
        self._source, self._evaluation, self._config, self._place = source, evaluation, config, place
        self._folder, self._progress, self._checkpoint_seconds = folder, progress, checkpoint_seconds
        self._facts = run_facts(source.facts, *place)
        self._begun = time.monotonic()
        self._say("prepare", 0)
        self._sample, _ = take_rows(source, place, config.calibration_tokens)
        point = load_checkpoint(self._training, config, self._facts) or self._fresh()
        self._state: State = point.state
        self._norm, self._history, self._spent = point.norm, point.history, point.seconds
        self._step = int(point.state["step"].item())
        self._pool = Pool(source, place, config.batch, config.pool_tokens, config.seed, point.position)

    @property
    def _training(self) -> Path:
        return self._folder / "training"

    def go(self, should_stop: Callable[[], bool]) -> TrainReport:
        """Train to the end, or until told to stop."""
        if not self._loop(should_stop):
            self._save()
            return self._report(stopped=True)
        self._save()
        folded, final, density = self._evaluate()
        self._say("save", self._step, evaluation=final)
        report = self._report(stopped=False, final=final)
        facts = self._source.facts, self._evaluation.facts
        write_outputs(self._folder, folded, report, density, self._norm, *facts)
        return report

    def _loop(self, should_stop: Callable[[], bool]) -> bool:
        step = Step(self._config, self._norm)
        pace = _Pace(time.monotonic(), self._step)
        said = saved = time.monotonic()
        figures: StepFigures | None = None
        while self._step < self._config.steps:
            if should_stop():
                return False
            before = figures
            self._state, figures = step(self._state, self._pool.next())
            _start(self._state, figures.error, figures.variance, figures.l0)
            self._step += 1
            if before is not None:
                mx.eval(before.error)  # one step in flight: the host is never far ahead of the device
            now = time.monotonic()
            if now - said >= REPORT_SECONDS or self._step == self._config.steps:
                self._say_training(figures, pace)
                said = now
            if self._due() and self._step < self._config.steps:
                self._evaluate()
            if now - saved >= self._checkpoint_seconds:
                self._save()
                saved = time.monotonic()
        return True

    def _due(self) -> bool:
        return bool(self._config.evaluate_every) and self._step % self._config.evaluate_every == 0

    def _fresh(self) -> Checkpoint:
        norm, b_dec = normalizer(self._sample, self._config)
        p = initial_parameters(self._config, b_dec)
        state = initial_state(starting_parameters(p, norm, self._sample, self._config))
        mx.eval(state)
        return Checkpoint(state, norm, PoolPosition(), (), 0.0)

    def _folded(self) -> Parameters:
        p = self._state["parameters"]
        folded = fold(p, self._norm, threshold_of(p, self._norm, self._sample, self._config))
        mx.eval(folded)
        return folded

    def _evaluate(self) -> tuple[Parameters, Evaluation, NDArray[np.float64]]:
        self._say("evaluate", self._step)
        folded, tokens = self._folded(), self._config.evaluation_tokens
        result, density = measure(folded, self._evaluation, self._place, tokens, self._step)
        if not self._history or self._history[-1].step != self._step:
            self._history = (*self._history, result)
        self._say("train", self._step, evaluation=result)
        return folded, result, density

    def _save(self) -> None:
        if not bool(mx.all(mx.isfinite(self._state["parameters"]["w_enc"])).item()):
            raise self._diverged()  # keeps the last good checkpoint
        point = Checkpoint(self._state, self._norm, self._pool.position, self._history, self._seconds)
        save_checkpoint(self._training, point, self._config, self._facts)

    @property
    def _seconds(self) -> float:
        return self._spent + time.monotonic() - self._begun

    def _say(self, stage: str, step: int, evaluation: Evaluation | None = None) -> None:
        config = self._config
        self._progress(
            TrainProgress(stage=stage, step=step, steps=config.steps, tokens=step * config.batch, evaluation=evaluation)
        )

    def _say_training(self, figures: StepFigures, pace: _Pace) -> None:
        error, variance = scalar(figures.error), scalar(figures.variance)
        if not error < float("inf"):
            raise self._diverged()
        rate, left = pace.figures(self._step, self._config)
        dead = mx.mean(self._state["idle"] > self._config.dead_after)
        self._progress(
            TrainProgress(
                stage="train",
                step=self._step,
                steps=self._config.steps,
                tokens=self._step * self._config.batch,
                tokens_per_s=rate,
                seconds_left=left,
                fvu=error / variance if variance else None,
                l0=scalar(figures.l0),
                dead=scalar(dead),
            )
        )

    def _diverged(self) -> LensError:
        hint = "Lower the learning rate and begin in a new folder."
        return LensError(f"The loss is no longer finite at step {self._step}.", hint)

    def _report(self, *, stopped: bool, final: Evaluation | None = None) -> TrainReport:
        facts = self._source.facts
        return TrainReport(
            config=self._config,
            layer=self._place[0],
            site=self._place[1],
            d_model=int(self._norm.mean.shape[0]),
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
        )


def _only_place(source: ActivationSource) -> Place:
    if len(source.places) != 1:
        raise LensError("The source has more than one layer and site.", "Say which one to train on.")
    return source.places[0]


def _start(*arrays: Any) -> None:
    run: Any = mx.async_eval
    run(*arrays)


def _silent(progress: TrainProgress) -> None:
    pass


def _never() -> bool:
    return False
