"""What the jobs of one worker share: the model, its SAEs, the text last encoded."""

from __future__ import annotations

import gc
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens_tui.records import Arm, LensError, SAEInfo, Token

from .. import jobs

if TYPE_CHECKING:
    from lens_tui.lens.decode.compare import Comparison
    from lens_tui.lens.model import LensModel
    from lens_tui.records.run_store import RunStore, State
    from lens_tui.sae.load_sae import SAE


@dataclass(slots=True)
class Reading:
    """The text last encoded: its token ids, and its activations by (layer, site), each of shape (tokens, width)."""

    token_ids: tuple[int, ...]
    residuals: dict[tuple[int, str], Any] = field(default_factory=dict)


@dataclass(slots=True)
class Context:
    """Held on the MLX thread alone."""

    model: LensModel | None = None
    saes: dict[str, SAE] = field(default_factory=dict)
    known: dict[str, SAEInfo] = field(default_factory=dict)
    reading: Reading | None = None
    norms: dict[tuple[int, str], float] = field(default_factory=dict)
    history: Path | None = None
    _runs: RunStore | None = None

    def need_model(self) -> LensModel:
        """The model, or a :class:`LensError` that says none is loaded."""
        if self.model is None:
            raise LensError("No model is loaded.", "Load one first.")
        return self.model

    def runs(self, patience: float) -> RunStore:
        """The history, opened when first asked for; waits ``patience`` seconds for another process, now and after.

        Raises :class:`LensError`.
        """
        from lens_tui.records.run_store import RunStore
        from lens_tui.records.store import Store

        if self._runs is None:
            store = Store(self.history, patience)
            try:
                self._runs = RunStore(store)
            except LensError:
                store.close()
                raise
        self._runs.store.wait(patience)
        return self._runs

    def forget(self) -> None:
        """Drop everything; memory comes back when Python and MLX see fit."""
        self.model = None
        self.saes.clear()
        self.known.clear()
        self.norms.clear()
        self.reading = None
        if self._runs is not None:
            self._runs.store.close()
            self._runs = None

    def free(self) -> None:
        """Drop the model, its SAEs and what was read with them, and give their memory back now."""
        import mlx.core as mx

        model = self.model
        self.forget()
        if model is not None:
            model.close()
            del model
        gc.collect()  # a model and its layers refer to each other
        mx.clear_cache()


_log = logging.getLogger(__name__)
_AGAIN = 2.0
"""Seconds until a history that was in use is tried again."""


class Keeper:
    """One run's way into the history. ``run`` is its number there, 0 while none is kept; ``problem`` why not.

    No token waits for the disk: while another process has the history locked,
    what is to be written stays here, and at the end of the run there is time to wait.
    """

    def __init__(self, context: Context, job: jobs.Compare, model: str, comparison: Comparison) -> None:
        self.run = 0
        self.problem = ""
        self._tokens: list[Token] = []
        self._acts: deque[Callable[[RunStore], object]] = deque()
        self._context = context
        self._not_before = 0.0
        if context.history is None:
            return
        # The library puts a baseline in front where the job has none.
        arms = job.arms if len(job.arms) == len(comparison.arms) else (Arm(comparison.arms[0]), *job.arms)
        ids, settings = comparison.prompt_ids, job.sampling

        def begin(store: RunStore) -> None:
            self.run = store.begin(model, job.prompt, arms, settings, raw=job.raw, prompt_ids=ids)

        self._do(begin)

    def add(self, token: Token) -> None:
        """Keep a token; written with the others of its step."""
        self._tokens.append(token)

    def flush(self) -> None:
        """Write the step that is complete."""
        if tokens := self._tokens:
            self._tokens = []
            self._do(lambda store: store.add(self.run, tokens))

    def end_arm(self, arm: int, reason: str, dose: float | None) -> None:
        """Say how an arm ended."""
        self._do(lambda store: store.end_arm(self.run, arm, reason, dose))

    def end(self, state: State) -> None:
        """Close the run; waits for a history that is in use."""
        self.flush()
        self._do(lambda store: store.end(self.run, state), patient=True)

    def _do(self, act: Callable[[RunStore], object], *, patient: bool = False) -> None:
        """Do what waits and then ``act``, in this order, as far as the disk lets us."""
        from lens_tui.records.store import PATIENCE, SHORT, Busy

        if self._context.history is None or self.problem:
            return
        self._acts.append(act)
        if not patient and time.monotonic() < self._not_before:
            return
        try:
            store = self._context.runs(PATIENCE if patient else SHORT)
            while self._acts:
                self._acts[0](store)
                self._acts.popleft()
        except Busy as error:
            self._not_before = time.monotonic() + _AGAIN
            if patient:
                self._give_up(error)
        except LensError as error:
            self._give_up(error)

    def _give_up(self, error: LensError) -> None:
        _log.warning("the run is not kept: %s", error)
        self.problem = str(error)
        self._acts.clear()
