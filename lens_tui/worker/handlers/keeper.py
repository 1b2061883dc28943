"""Write a run into the history while it happens. A disk that refuses must not stop a run: it is said at its end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from lens_tui.records import Arm, LensError, Token
from lens_tui.worker import jobs

from .context import Context

if TYPE_CHECKING:
    from lens_tui.lens import Comparison
    from lens_tui.records.runs import RunStore, State

_log = logging.getLogger(__name__)


class Keeper:
    """One run's way into the history. ``run`` is its number there, 0 where none is kept; ``problem`` why not."""

    def __init__(self, context: Context, job: jobs.Compare, model: str, comparison: Comparison) -> None:
        self.run = 0
        self.problem = ""
        self._waiting: list[Token] = []
        self._store: RunStore | None = None
        # The library puts a baseline in front where the job has none.
        arms = job.arms if len(job.arms) == len(comparison.arms) else (Arm(comparison.arms[0]), *job.arms)

        def begin() -> None:
            self._store = context.runs()
            if self._store is not None:
                self.run = self._store.begin(
                    model, job.prompt, arms, job.sampling, raw=job.raw, prompt_ids=comparison.prompt_ids
                )

        self._try(begin)

    def add(self, token: Token) -> None:
        """Keep a token; written with the others of its step."""
        if self._store is not None:
            self._waiting.append(token)

    def flush(self) -> None:
        """Write the step that is complete."""
        store, tokens = self._store, self._waiting
        if store is not None and tokens:
            self._waiting = []
            self._try(lambda: store.add(self.run, tokens))

    def end_arm(self, arm: int, reason: str, dose: float | None) -> None:
        """Say how an arm ended."""
        if (store := self._store) is not None:
            self._try(lambda: store.end_arm(self.run, arm, reason, dose))

    def end(self, state: State) -> None:
        """Close the run."""
        self.flush()
        if (store := self._store) is not None:
            self._try(lambda: store.end(self.run, state))

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except LensError as error:
            _log.warning("the run is not kept: %s", error)
            self.problem, self._store = str(error), None
