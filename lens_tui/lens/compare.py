"""Arms in lock step: the baseline and every steered arm decoded in one batch, one row each."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field

from lens_tui.records import ArmEnd, Candidate, Dose, Intervention, LensError, Token

from .capture import CaptureResult
from .checks import checked
from .generation import RowDecoder, Step
from .positions import reach
from .program import Key
from .registry import Entry, Plan, Registry
from .tokens import Detokenizer, Tokens


@dataclass
class _Row:
    """What one arm has come to."""

    detokenizer: Detokenizer
    ids: list[int] = field(default_factory=list)
    text: str = ""
    reason: str | None = None


class Rows:
    """The rows of a run while they are decoded; what ``Generation`` and ``Comparison`` share.

    Proxies are installed when the first token is asked for and taken away when
    the last has come or :meth:`close` is called, whatever happens in between.
    """

    def __init__(self, decoder: RowDecoder, tokens: Tokens, names: Sequence[str]) -> None:
        self._decoder = decoder
        self._registry: Registry = decoder.registry
        self._tokens = tokens
        self._names = tuple(names)
        self._rows = [_Row(tokens.detokenizer()) for _ in names]
        self._keys: set[Key] = set()
        self._events = self._run()
        self._check_reach()

    @property
    def plan(self) -> Plan:
        """The interventions of the run, row by row."""
        return self._decoder.run.plan

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The prompt as the model sees it."""
        return self._decoder.ids

    @property
    def prompt_tokens(self) -> tuple[str, ...]:
        """The prompt's tokens in their display form."""
        return tuple(self._tokens.display(token) for token in self._decoder.ids)

    def close(self) -> None:
        """End the run where it stands; nothing stays installed."""
        self._events.close()

    def change(self, row: int, interventions: Sequence[Intervention]) -> None:
        """Give a row these interventions from its next step on. Raises :class:`LensError`."""
        if not 0 <= row < len(self._rows):
            raise LensError(f"There is no arm {row}: the run has {len(self._rows)}.")
        registry = self._registry
        self.plan.set_row(row, [Entry(registry, checked(item, registry)) for item in interventions])
        if self._keys:
            self._hold(self.plan.keys)

    def doses(self, row: int) -> tuple[Dose, ...]:
        """How far each steered site of a row was moved, under the interventions that hold now."""
        meter = self._decoder.run.meter
        keys = [entry.key for entry in self.plan.rows[row] if getattr(entry.item, "enabled", True)]
        return meter.doses(row, keys) if meter is not None and keys else ()

    # -- the run -----------------------------------------------------------

    def _run(self) -> Generator[Token | ArmEnd]:
        self._hold(self.plan.keys)
        try:
            for step in self._decoder.steps():
                self._check_moved()
                yield from self._emit(step)
                if all(row.reason for row in self._rows):
                    break
        finally:
            self._finish()

    def _emit(self, step: Step) -> Iterator[Token | ArmEnd]:
        limit = self._decoder.options.sampling.max_tokens
        baseline = self._decoder.options.baseline
        alive = [index for index, row in enumerate(self._rows) if row.reason is None]
        with_kl = baseline is not None and baseline in alive
        for index in alive:
            row, token = self._rows[index], step.ids[index]
            row.ids.append(token)
            stop = token in self._tokens.stops
            last = stop or len(row.ids) >= limit
            text = self._text(row, token, stop=stop, last=last)
            row.text += text
            if last:
                row.reason = "stop" if stop else "length"
            kl = max(0.0, step.kl[index]) if with_kl and step.kl is not None else None
            yield self._token(index, step, text, kl)
        for index in alive:
            row = self._rows[index]
            if row.reason is not None:
                yield ArmEnd(index, row.reason, len(row.ids), row.text, self.doses(index))

    def _token(self, index: int, step: Step, text: str, kl: float | None) -> Token:
        row = self._rows[index]
        token = row.ids[-1]
        top: tuple[Candidate, ...] = ()
        if step.top_ids is not None and step.top_logprobs is not None:
            pairs = zip(step.top_ids[index], step.top_logprobs[index], strict=True)
            top = tuple(Candidate(at, self._tokens.display(at), value) for at, value in pairs)
        return Token(
            index=len(row.ids) - 1,
            token_id=token,
            token=self._tokens.display(token),
            text=text,
            logprob=step.logprobs[index],
            arm=index,
            kl=kl,
            top=top,
            version=step.version,
            scales=step.scales[min(index, len(step.scales) - 1)],
        )

    def _text(self, row: _Row, token: int, *, stop: bool, last: bool) -> str:
        """What a token adds to the text; the end-of-text token adds only what was held back."""
        if not stop:
            row.detokenizer.add_token(token)
        if last:
            row.detokenizer.finalize()
        return row.detokenizer.last_segment

    # -- checks and bookkeeping --------------------------------------------

    def _check_reach(self) -> None:
        """Refuse positions that no token of this run can have."""
        n_prompt = len(self._decoder.ids)
        last = n_prompt + self._decoder.options.sampling.max_tokens - 2
        for row in self.plan.rows:
            for entry in row:
                positions = getattr(entry.item, "positions", None)
                if positions is not None and not reach(positions, n_prompt, last):
                    raise LensError(
                        f"{entry.item.id!r} touches no position of this run (0 to {last}).", "Change its positions."
                    )

    def _check_moved(self) -> None:
        meter = self._decoder.run.meter
        if meter is None or not meter.pending:
            return
        meter.settle()
        for key, program in self._registry.programs(self.plan).items():
            for row, must in enumerate(program.must_move):
                if must:
                    meter.check_moved(row, [key], f"The arm {self._names[row]!r}" if self._names[row] else "Steering")

    def _hold(self, keys: set[Key]) -> None:
        self._registry.need(keys - self._keys)
        self._registry.release(self._keys - keys)
        self._keys = set(keys)

    def _finish(self) -> None:
        for row in self._rows:
            row.reason = row.reason or "stopped"
        longest = max(len(row.ids) for row in self._rows)
        for recorder in self.plan.recorders:
            if isinstance(recorder, CaptureResult) and longest:
                recorder.cut(len(self._decoder.ids) + longest - 1)
        self._hold(set())


class Generation(Rows, Iterator[Token]):
    """One generation in progress: an iterator of :class:`Token`.

    The interventions that held when it was asked for hold to its end, also after
    their ``with`` block; :meth:`dial` changes them for the tokens not yet
    computed (one is always under way). ``text`` is what has come so far.
    """

    def __next__(self) -> Token:
        while isinstance(event := next(self._events), ArmEnd):
            pass
        return event

    @property
    def text(self) -> str:
        """The text so far, exactly as the tokenizer decodes it."""
        return self._rows[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The generated token ids so far, the end-of-text token included."""
        return tuple(self._rows[0].ids)

    @property
    def reason(self) -> str | None:
        """Why it ended: ``stop``, ``length``, ``stopped``; ``None`` while it goes on."""
        return self._rows[0].reason

    @property
    def dose(self) -> tuple[Dose, ...]:
        """How far each steered site was moved."""
        return self.doses(0)

    def dial(self, *interventions: Intervention) -> None:
        """Replace the interventions from the next step on; none at all leaves the model plain."""
        self.change(0, interventions)


class Comparison(Rows, Iterator[Token | ArmEnd]):
    """A comparison in progress: an iterator of :class:`Token` and, for each arm that ends, :class:`ArmEnd`.

    Tokens come step by step, arms in order within a step. ``arms`` names the rows.
    """

    def __next__(self) -> Token | ArmEnd:
        return next(self._events)

    @property
    def arms(self) -> tuple[str, ...]:
        """The names of the rows, in order."""
        return self._names

    @property
    def baseline(self) -> int | None:
        """The row that KL is measured against."""
        return self._decoder.options.baseline

    @property
    def texts(self) -> tuple[str, ...]:
        """Each arm's text so far."""
        return tuple(row.text for row in self._rows)

    @property
    def token_ids(self) -> tuple[tuple[int, ...], ...]:
        """Each arm's generated token ids so far."""
        return tuple(tuple(row.ids) for row in self._rows)

    def dial(self, arm: int, interventions: Sequence[Intervention]) -> None:
        """Replace the interventions of one arm from its next step on (one step is always under way)."""
        self.change(arm, interventions)
