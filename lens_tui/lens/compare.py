"""Arms in lock step: the baseline and every steered arm decoded in one batch, one row each."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field

from lens_tui.records import ArmEnd, Candidate, Dose, Intervention, LensError, Sampling, Token

from .capture import CaptureResult
from .checks import checked
from .generation import RowDecoder, Step
from .meter import Meter
from .positions import reach
from .program import Key
from .registry import Entry, Plan
from .stops import Writing, writing_options
from .tokens import Tokens


@dataclass
class _Progress:
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
        return self.decoder.run.plan

    def hold(self, keys: set[Key]) -> None:
        """Install what the sites need, and take away what is not needed any more."""
        registry = self.decoder.registry
        registry.need(keys - self.keys)
        registry.release(self.keys - keys)
        self.keys = set(keys)

    def emit(self, step: Step) -> Iterator[Token | ArmEnd]:
        baseline = self.decoder.options.baseline
        alive = [index for index, row in enumerate(self.rows) if not row.reason]
        with_kl = baseline is not None and baseline in alive
        for index in alive:
            text = self.rows[index].write(step.ids[index])
            kl = max(0.0, step.kl[index]) if with_kl and step.kl is not None else None
            yield self.token(index, step, text, kl)
        for index in alive:
            row = self.rows[index]
            if row.reason:
                yield ArmEnd(index, row.reason, len(row.ids), row.text, self.doses(index))

    def token(self, index: int, step: Step, text: str, kl: float | None) -> Token:
        token = step.ids[index]
        top: tuple[Candidate, ...] = ()
        if step.top_ids is not None and step.top_logprobs is not None:
            pairs = zip(step.top_ids[index], step.top_logprobs[index], strict=True)
            top = tuple(Candidate(at, self.tokens.display(at), value) for at, value in pairs)
        return Token(
            index=len(self.rows[index].ids) - 1,
            token_id=token,
            token=self.tokens.display(token),
            text=text,
            logprob=step.logprobs[index],
            arm=index,
            kl=kl,
            top=top,
            version=step.version,
            scales=step.scales[index],
        )

    def doses(self, row: int) -> tuple[Dose, ...]:
        meter = self.decoder.run.meter
        keys = [entry.key for entry in self.plan.rows[row] if getattr(entry.item, "enabled", True)]
        return meter.doses(row, keys) if meter is not None and keys else ()

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

    def finish(self) -> None:
        """Close the books: reasons, captures without what ran ahead, proxies."""
        for row in self.rows:
            row.reason = row.reason or "stopped"
        longest = max(len(row.ids) for row in self.rows)
        for recorder in self.plan.recorders:
            if isinstance(recorder, CaptureResult) and longest:
                recorder.cut(len(self.decoder.ids) + longest - 1)
        self.hold(set())


def _events(progress: _Progress) -> Generator[Token | ArmEnd]:
    """The events of a run; proxies are up from the first request to the end, however it ends."""
    progress.hold(progress.plan.keys)
    try:
        for step in progress.decoder.steps():
            progress.check_moved()
            yield from progress.emit(step)
            if all(row.reason for row in progress.rows):
                break
    finally:
        progress.finish()


class Rows:
    """A run of one or several rows: what ``Generation`` and ``Comparison`` share.

    Nothing is computed or installed before the first token is asked for; a run
    that ends, fails, is closed or is dropped leaves the model as it was.
    """

    def __init__(self, decoder: RowDecoder, tokens: Tokens, names: Sequence[str]) -> None:
        sampling = decoder.options.sampling
        rows = [Writing(**writing_options(tokens, sampling, decoder.ids[-1])) for _ in names]
        self._progress = _Progress(decoder, tokens, tuple(names), rows)
        self._progress.check_reach()
        self._events = _events(self._progress)

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The prompt as the model sees it."""
        return self._progress.decoder.ids

    @property
    def prompt_tokens(self) -> tuple[str, ...]:
        """The prompt's tokens in their display form."""
        return tuple(self._progress.tokens.display(token) for token in self.prompt_ids)

    @property
    def prompt_spans(self) -> tuple[tuple[str, int, int], ...] | None:
        """The chat roles of the prompt as ``(role, start, stop)``; ``None`` for raw prompts."""
        return self._progress.decoder.run.spans

    @property
    def reused(self) -> int:
        """How many of the prompt's tokens came, for every row, from a prefix that was kept from before."""
        return self._progress.decoder.reused

    @property
    def sampling(self) -> Sampling:
        """The settings of the run, the seed included."""
        return self._progress.decoder.options.sampling

    def close(self) -> None:
        """End the run where it stands; nothing stays installed."""
        self._events.close()

    def change(self, row: int, interventions: Sequence[Intervention]) -> None:
        """Give a row these interventions from its next step on. Raises :class:`LensError`."""
        progress = self._progress
        if not 0 <= row < len(progress.rows):
            raise LensError(f"There is no arm {row}: the run has {len(progress.rows)}.")
        registry = progress.decoder.registry
        progress.plan.set_row(row, [Entry(registry, checked(item, registry)) for item in interventions])
        if progress.keys:
            progress.hold(progress.plan.keys)
        if progress.decoder.run.meter is None:
            progress.decoder.run.meter = Meter()

    def doses(self, row: int) -> tuple[Dose, ...]:
        """How far each steered site of a row was moved, under the interventions that hold now."""
        return self._progress.doses(row)


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
        return self._progress.rows[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The generated token ids so far, the end-of-text token included."""
        return tuple(self._progress.rows[0].ids)

    @property
    def reason(self) -> str | None:
        """Why it ended: ``stop``, ``length``, ``stopped``; ``None`` while it goes on."""
        return self._progress.rows[0].reason or None

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
        return self._progress.names

    @property
    def baseline(self) -> int | None:
        """The row that KL is measured against."""
        return self._progress.decoder.options.baseline

    @property
    def texts(self) -> tuple[str, ...]:
        """Each arm's text so far."""
        return tuple(row.text for row in self._progress.rows)

    @property
    def token_ids(self) -> tuple[tuple[int, ...], ...]:
        """Each arm's generated token ids so far."""
        return tuple(tuple(row.ids) for row in self._progress.rows)

    def dial(self, arm: int, interventions: Sequence[Intervention]) -> None:
        """Replace the interventions of one arm from its next step on (one step is always under way)."""
        self.change(arm, interventions)
