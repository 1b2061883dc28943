"""A run of one or several rows in progress: its decoder, what each row has written, and the proxies it holds."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace

from lens_tui.records import ArmEnd, Candidate, Dose, LensError, Token

from .capture import CaptureResult
from .finite import check_chosen, origin_in
from .generation import RowDecoder
from .positions import reach
from .program import Key
from .registry import Entry, Plan
from .steered import Passage
from .steps import Step
from .stops import Writing
from .tokens import Tokens


@dataclass
class Progress:
    """A run in progress: its decoder, its rows, and the proxies it holds.

    Apart from :class:`Rows`, so that a run nobody refers to any more ends at once
    instead of waiting for the garbage collector to find a circle.
    """

    decoder: RowDecoder
    tokens: Tokens
    names: tuple[str, ...]
    rows: list[Writing]
    keys: set[Key] = field(default_factory=set)

    @property
    def plan(self) -> Plan:
        """What acts on each row."""
        return self.decoder.run.plan

    def hold(self, keys: set[Key]) -> None:
        """Install what the sites need, and take away what is not needed any more."""
        registry = self.decoder.registry
        registry.need(keys - self.keys)
        registry.release(self.keys - keys)
        self.keys = set(keys)

    def emit(self, step: Step) -> Iterator[Token | ArmEnd]:
        """A step's tokens of the rows that go on, then the ends of those that have ended with it."""
        alive = [index for index, row in enumerate(self.rows) if not row.reason]
        for index in alive:
            yield self.token(index, step, self.rows[index].write(step.ids[index]))
        for index in alive:
            row = self.rows[index]
            if row.reason:
                yield ArmEnd(index, row.reason, len(row.ids), row.text, self.doses(index))

    def token(self, index: int, step: Step, text: str) -> Token:
        """One row's token of a step, which has been written already."""
        token = step.ids[index]
        plain = step.plain[index] if step.plain is not None else None
        top: tuple[Candidate, ...] = ()
        if step.top_ids is not None and step.top_logprobs is not None:
            found = zip(step.top_ids[index], step.top_logprobs[index], strict=True)
            pairs = [pair for pair in found if pair[1] > -math.inf]
            top = tuple(Candidate(at, self.tokens.display(at), value) for at, value in pairs)
        return Token(
            index=len(self.rows[index].ids) - 1,
            token_id=token,
            token=self.tokens.display(token),
            text=text,
            logprob=step.logprobs[index],
            arm=index,
            kl=None if plain is None else plain.kl,
            top=top,
            version=step.version,
            scales=step.scales[index],
            reverse_kl=None if plain is None else plain.reverse_kl,
            plain_logprob=None if plain is None else plain.logprob,
        )

    def doses(self, row: int) -> tuple[Dose, ...]:
        """How far each steered site of a row was moved."""
        meter = self.decoder.run.meter
        keys = [entry.key for entry in self.entries(row) if getattr(entry.item, "enabled", True)]
        return meter.doses(row, keys) if meter is not None and keys else ()

    def entries(self, row: int) -> list[Entry]:
        """What acts on a row now. Raises :class:`LensError` for a row that there is not."""
        if not 0 <= row < len(self.rows):
            raise LensError(f"There is no arm {row}: the run has {len(self.rows)}.")
        return self.plan.rows[row]

    def passage(self, row: int) -> Passage:
        """What of a row has gone through the model."""
        decoder, run = self.decoder, self.decoder.run
        assert isinstance(run.n_prompt, int)
        return Passage(
            (*decoder.ids, *self.rows[row].ids[:-1]),
            run.n_prompt,
            decoder.start,
            decoder.registry.bos,
            run.spans,
            decoder.thinking,
            decoder.inside,
        )

    def check_reach(self) -> None:
        """Refuse positions that no token of this run can have."""
        n_prompt = self.decoder.run.n_prompt
        assert isinstance(n_prompt, int)
        last = n_prompt + self.decoder.options.sampling.max_tokens - 2
        for row in self.plan.rows:
            for entry in row:
                positions = getattr(entry.item, "positions", None)
                if positions is not None and not reach(positions, n_prompt, last):
                    name = entry.item.id
                    raise LensError(f"{name!r} touches no position of this run (0 to {last}).", "Change its positions.")

    def check_moved(self) -> None:
        """Refuse to go on when what had to move something was measured and did not."""
        meter = self.decoder.run.meter
        if meter is None or not (meter.pending or meter.unchecked):
            return
        meter.unchecked = False
        meter.settle()
        for key, program in self.decoder.registry.programs(self.plan).items():
            for row, must in enumerate(program.must_move):
                if must:
                    meter.check_moved(row, [key], f"The arm {self.names[row]!r}" if self.names[row] else "Steering")

    def check_finite(self, step: Step) -> None:
        """Refuse to go on with a row whose logits are no numbers; raises ``NotFinite`` with where that begins."""
        for index, row in enumerate(self.rows):
            if not row.reason:
                name = f"The logits of the arm {self.names[index]!r}" if self.names[index] else "The model's logits"
                check_chosen(step.logprobs[index], name, lambda at=index: self._origin(at))  # type: ignore[misc]
                plain = step.plain[index] if step.plain is not None else None
                if plain is not None:
                    name = f"The plain model's logits on the text of the arm {self.names[index]!r}"
                    check_chosen(plain.logprob, name, lambda at=index: self._origin(at, plain=True))  # type: ignore[misc]

    def _origin(self, row: int, *, plain: bool = False) -> str:
        whole = replace(self.passage(row), ids=(*self.decoder.ids, *self.rows[row].ids))
        return origin_in(self.decoder.registry, whole, () if plain else self.plan.rows[row])

    def finish(self) -> None:
        """Close the books: reasons, captures without what ran ahead, proxies."""
        for row in self.rows:
            row.reason = row.reason or "stopped"
        longest = max(len(row.ids) for row in self.rows)
        for recorder in self.plan.recorders:
            if isinstance(recorder, CaptureResult) and longest:
                recorder.cut(len(self.decoder.ids) + longest - 1)
        self.hold(set())


def events_of(progress: Progress) -> Generator[Token | ArmEnd]:
    """The events of a run; proxies are up from the first request to the end, however it ends."""
    progress.hold(progress.plan.keys)
    try:
        for step in progress.decoder.steps():
            progress.check_finite(step)
            progress.check_moved()
            yield from progress.emit(step)
            if all(row.reason for row in progress.rows):
                break
    finally:
        progress.finish()
