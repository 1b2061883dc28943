"""A batch that stays open: rows come and go for as long as a server runs, and one that fails ends alone.

A :class:`~.batch.Batch` belongs to one call: it keeps its rows to the end, and what goes wrong ends it. Here a row is
forgotten as it ends, so that memory stays flat; a step is taken by who calls, between whose steps other work can be
done; and whatever a row cannot do is an event of that row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from lens_tui.records import ArmEnd, LensError, Request, Token
from lens_tui.records.sanitise import one_line

from ..room import check_run
from ..tokens import EncodedPrompt
from .batch import Batch, share
from .batch_rows import Row
from .batch_start import RowMaker
from .sampling import LogitsProcessor


class StepFailed(LensError):
    """A step could not be done, by no fault of a row."""


@dataclass(frozen=True)
class RowFailed:
    """A row has ended by an error of its own (``arm`` is its number), or by one of a step that it was part of."""

    arm: int
    error: LensError


BatchEvent = Token | ArmEnd | RowFailed


@dataclass(eq=False, kw_only=True)
class OpenBatch(Batch):
    """Rows that are decoded together, step by step, without an end.

    ``make_row`` makes a row of a request. Rows count from 0 and are known until they end.
    """

    make_row: RowMaker
    _count: int = 0
    _lone: tuple[Row, Iterator[Token | ArmEnd]] | None = field(default=None)

    def enter(
        self,
        request: Request,
        encoded: EncodedPrompt | None = None,
        *,
        top: int = 0,
        processors: Sequence[LogitsProcessor] = (),
    ) -> Row:
        """Let a request join; nothing of it is computed before the next step.

        Args:
            request: Its prompt, interventions and sampling.
            encoded: Its prompt as token ids, where that is known already.
            top: Candidates that each of its tokens carries.
            processors: Its own logits processors.

        Returns:
            Its row, whose ``index`` its events carry.

        Raises:
            LensError: For the first thing that is wrong with it, and where it would not fit into memory beside the
                others.
        """
        common = replace(self.make_row.common, top=top, processors=tuple(processors))
        row = replace(self.make_row, common=common)(self._count, request, encoded)
        sizes = [(len(each.plan.prompt.ids), each.sampling.max_tokens) for each in (row, *self.rows.values())]
        hint = "Lower max_tokens, give a shorter prompt, or ask again when others are done."
        check_run(self.registry, sizes, "This request beside those that run", hint, together=False)
        self.join(row)
        self._count += 1
        return row

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.rows

    def drop(self, index: int) -> None:
        """End a row where it stands, without an event; nothing happens if it has ended."""
        row = self.rows.get(index)
        if row is not None:
            with suppress(LensError):
                self.leave(row)
            self._forget(row)
            if self._lone is not None and self._lone[0] is row:
                self._end_lone()

    def step(self) -> list[BatchEvent]:
        """Do a step of all rows (a token of those that write, a part of the prompt of others); what came of it."""
        if self.idle:
            return []
        return self._step_alone() if self.way == "alone" else self._step_together()

    def close(self) -> None:
        """End every row; nothing stays installed."""
        self._end_lone()
        self._finish()

    def _step_together(self) -> list[BatchEvent]:
        found: list[BatchEvent] = []
        try:
            if self._generator is None:
                self._open()
            found += self._enter_waiting()
            _, responses = self._generator.next()
        except Exception as error:  # of the model or the machine: whoever was in this step has no next token
            return [*found, *self._all_failed(error)]
        for response in responses:
            row = self.rows.get(self._uids.get(response.uid, -1))
            if row is None or row.reason or not row.launched:
                continue
            chosen, at = row.launched.popleft()
            found += self._taken(row, self._emit(row, int(response.token), chosen, at))
            if row.reason:
                if response.finish_reason is None:
                    self._generator.remove([response.uid])
                self._forget(row)
        return found

    def _enter_waiting(self) -> list[BatchEvent]:
        """Hand over the rows that have joined; those that cannot begin end."""
        found: list[BatchEvent] = []
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return found
        self.prefixes.follow(self.registry.decoder.root)
        for row in waiting:
            self._hold(row)
        with suppress(LensError):  # else each is computed by itself
            share([row.plan for row in waiting], self._filler)
        for row in waiting:
            try:
                self._insert_row(row)
            except LensError as error:
                found.append(self._failed(row, error))
        return found

    def _step_alone(self) -> list[BatchEvent]:
        """A token of the row whose turn it is, in a model that mlx-lm cannot batch."""
        if self._lone is None or self._lone[0].reason:
            self._end_lone()
            row = self._waiting.pop(0)
            self._lone = row, self._row_alone(row)
        row, events = self._lone
        found: list[BatchEvent] = []
        try:
            found += self._taken(row, events, 1)
        except Exception as error:
            found.append(self._failed(row, _as_sentence(error)))
        if row.reason:
            self._end_lone()
            if not any(isinstance(event, RowFailed | ArmEnd) for event in found):
                found.append(row.end())
            self._forget(row)
        return found

    def _end_lone(self) -> None:
        if self._lone is not None:
            close = getattr(self._lone[1], "close", None)
            self._lone = None
            if close is not None:
                close()

    def _taken(self, row: Row, events: Iterator[Token | ArmEnd], most: int = 0) -> list[BatchEvent]:
        """A row's events (the first ``most`` of them), or that it has failed."""
        found: list[BatchEvent] = []
        try:
            for event in events:
                found.append(event)
                if len(found) == most:
                    break
        except LensError as error:
            found.append(self._failed(row, error))
        return found

    def _failed(self, row: Row, error: LensError) -> RowFailed:
        if not row.reason:
            row.reason = "failed"
            with suppress(LensError):  # doses that are not numbers: it has failed already
                self._settle(row)
        if row.index in self.rows and row.index not in self._uids.values():
            self._forget(row)
        return RowFailed(row.index, error)

    def _all_failed(self, error: Exception) -> list[BatchEvent]:
        """Every row of a step that could not be done ends, and the next step begins with a new generator."""
        said = _as_sentence(error)
        rows = list(self.rows.values())
        self._waiting.clear()
        self._uids.clear()
        if self._generator is not None:
            self._generator.close()
            self._generator = None
        return [self._failed(row, said) for row in rows]

    def _forget(self, row: Row) -> None:
        """Nothing is kept of a row that has ended."""
        self.rows.pop(row.index, None)
        self.plans.pop(row.index, None)
        for uid in [uid for uid, index in self._uids.items() if index == row.index]:
            del self._uids[uid]
        for rows in [rows for rows in self.model.compositions if row.index in rows]:
            del self.model.compositions[rows]
        live = [entry for each in self.rows.values() for entry in each.plan.entries]
        self.sites.change({key for entry in live for key in entry.keys})


def _as_sentence(error: Exception) -> LensError:
    if isinstance(error, LensError):
        return error
    reason = one_line(f"{type(error).__name__}: {error}", 200).rstrip(".")
    return StepFailed(
        f"The model could not compute this step ({reason}).", "Ask again, with fewer or shorter requests."
    )
