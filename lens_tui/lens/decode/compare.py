"""Generations and comparisons in progress: what each row has written, and the sites that are held meanwhile."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lens_tui.records import ArmEnd, Candidate, Dose, Echo, Intervention, LensError, Monitor, Sampling, Steered, Token

from ..forward import echo_of
from ..hooks.capture_result import CaptureResult
from ..hooks.passage import Passage, steered
from ..hooks.program import DoseMeter
from ..hooks.registry import Holding, Plan, PlanEntry
from ..hooks.steering import check_chosen, check_moved, check_reach, entries_of, origin_in
from ..tokens import Detokenizer, Tokens
from .generation import DecodeStep, RowDecoder, mlx_lm_generate
from .sampling import candidates


@dataclass(eq=False)
class Stops:
    """Texts that end a row; what may be the beginning of one is held back until it is known not to be.

    The texts are looked for in what is written, however it is cut into tokens.
    """

    texts: tuple[str, ...]
    _state: Any = None

    def __post_init__(self) -> None:
        if self.texts:
            machine = mlx_lm_generate().TextStateMachine
            self._state = machine({"normal": [(text, None) for text in self.texts]}).make_state()

    def feed(self, text: str, last: bool) -> tuple[str, bool]:
        """What may be shown of the text so far that was not yet, and whether a stop text is complete."""
        if not self.texts:
            return text, False
        machine = mlx_lm_generate().TextStateMachine
        self._state, segments = machine.split(self._state, text)
        certain = segments[0][1]
        if self._state[0] is None:
            return certain, True
        if last:
            self._state, rest, _ = machine.flush(self._state)
            certain += rest
        return certain, False


@dataclass(eq=False, kw_only=True)
class Writing:
    """What a row has written so far: the state that turns its token ids into text and ends it, not a token itself.

    ``reason`` is ``""`` while it runs.
    """

    detokenizer: Detokenizer
    stops: Stops
    stop_ids: frozenset[int]
    max_tokens: int
    ids: list[int] = field(default_factory=list)
    text: str = ""
    reason: str = ""

    def write(self, token: int) -> str:
        """Add a token; returns what it adds to the text. ``reason`` is set if it was the last one.

        A token that ends the row adds only what the detokenizer held back.
        """
        self.ids.append(token)
        stop = token in self.stop_ids
        last = stop or len(self.ids) >= self.max_tokens
        if not stop:
            self.detokenizer.add_token(token)
        if last:
            self.detokenizer.finalize()
        text, stopped = self.stops.feed(self.detokenizer.last_segment, last)
        self.text += text
        if last or stopped:
            self.reason = "stop" if stop or stopped else "length"
        return text


def writing_options(tokens: Tokens, sampling: Sampling, last_prompt_id: int) -> dict[str, Any]:
    """What a :class:`Writing` is made of. Raises :class:`LensError` for stops that this model cannot have."""
    if sampling.stop and tokens.tokenizer is None:
        raise LensError("This model was given without a tokenizer, so it makes no text to stop at.", "Use stop_ids.")
    own = frozenset(tokens.check(sampling.stop_ids)) if sampling.stop_ids else frozenset()
    return {
        "detokenizer": tokens.detokenizer(last_prompt_id),
        "stops": Stops(sampling.stop),
        "stop_ids": tokens.stops | own,
        "max_tokens": sampling.max_tokens,
    }


@dataclass
class RowsInProgress:
    """A run in progress: its decoder, its rows, and the proxies it holds.

    Apart from :class:`Rows`, so that a run nobody refers to any more ends at once
    instead of waiting for the garbage collector to find a circle.
    """

    decoder: RowDecoder
    tokens: Tokens
    names: tuple[str, ...]
    rows: list[Writing]
    ended: dict[int, tuple[Dose, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sites = Holding(self.decoder.registry)

    @property
    def plan(self) -> Plan:
        """What acts on each row."""
        return self.decoder.run.plan

    def emit(self, step: DecodeStep) -> Iterator[Token | ArmEnd]:
        """A step's tokens of the rows that continue, then the ends of those that have ended with it."""
        # Rows continue in lock step: one that has ended is still computed beside the others, without events.
        # To take it out of the batch would change its shape, and with that the others' last bits.
        alive = [index for index, row in enumerate(self.rows) if not row.reason]
        for index in alive:
            yield self.token(index, step, self.rows[index].write(step.ids[index]))
        for index in alive:
            row = self.rows[index]
            if row.reason:
                self.ended[index] = self.doses(index)
                yield ArmEnd(index, row.reason, len(row.ids), row.text, self.ended[index])

    def token(self, index: int, step: DecodeStep, text: str) -> Token:
        """One row's token of a step, which has been written already."""
        token = step.ids[index]
        plain = step.plain[index] if step.plain is not None else None
        top: tuple[Candidate, ...] = ()
        if step.top_ids is not None and step.top_logprobs is not None:
            top = candidates(self.tokens, step.top_ids[index], step.top_logprobs[index])
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
            readings=() if step.readings is None else tuple(step.readings[index]),
        )

    def doses(self, row: int) -> tuple[Dose, ...]:
        """How far each steered site of a row was moved; of one that has ended, up to its end."""
        if row in self.ended:  # it is still fed beside the others, with tokens that nobody reads
            return self.ended[row]
        meter = self.decoder.run.meter
        keys = [entry.key for entry in self.entries(row) if getattr(entry.item, "enabled", True)]
        return meter.doses(row, keys) if meter is not None and keys else ()

    def entries(self, row: int) -> list[PlanEntry]:
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
            check_reach(row, n_prompt, last, "this run")

    def check_moved(self) -> None:
        """Refuse to continue when what had to move something was measured and did not."""
        meter = self.decoder.run.meter
        if meter is None or not (meter.pending or meter.unchecked):
            return
        meter.unchecked = False
        names = [f"The arm {name!r}" if name else "Steering" for name in self.names]
        check_moved(self.decoder.registry, self.plan, meter, names.__getitem__)

    def check_finite(self, step: DecodeStep) -> None:
        """Refuse to continue with a row whose logits are not numbers; raises ``NotFinite`` with where that begins."""
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
        self.sites.change(())


def events_of(progress: RowsInProgress) -> Generator[Token | ArmEnd]:
    """The events of a run; proxies stay in place from the first request to the end, however it ends."""
    progress.sites.change(progress.plan.keys)
    try:
        for step in progress.decoder.steps():
            progress.check_finite(step)
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
        self._progress = RowsInProgress(decoder, tokens, tuple(names), rows)
        self._progress.check_reach()
        self._events = events_of(self._progress)

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
        progress.entries(row)
        registry = progress.decoder.registry
        progress.plan.set_row(row, entries_of(interventions, registry))
        if progress.sites.keys:
            progress.sites.change(progress.plan.keys)
        if progress.decoder.run.meter is None:
            progress.decoder.run.meter = DoseMeter(gathers=True)

    def put(self, row: int, record: Intervention) -> None:
        """Add an intervention to a row, or change the one of its id in its place, from the next step on."""
        held = self.held(row)
        others = [record if item.id == record.id else item for item in held]
        self.change(row, others if any(item.id == record.id for item in held) else [*held, record])

    def drop(self, row: int, name: str) -> None:
        """Remove the intervention of an id from a row, from the next step on. Raises :class:`LensError`."""
        held = self.held(row)
        if all(item.id != name for item in held):
            known = ", ".join(repr(item.id) for item in held) or "none"
            raise LensError(f"Nothing with the id {name!r} acts here.", f"There is: {known}.")
        self.change(row, [item for item in held if item.id != name])

    def held(self, row: int) -> tuple[Intervention, ...]:
        """The interventions of a row as they are now, in order."""
        items = (entry.item for entry in self._progress.entries(row))
        return tuple(item for item in items if isinstance(item, Intervention))

    def doses(self, row: int) -> tuple[Dose, ...]:
        """How far each steered site of a row was moved, under the interventions that hold now."""
        return self._progress.doses(row)

    def steered_in(self, row: int) -> tuple[Steered, ...]:
        """Which tokens of the prompt and of a row's text each intervention touched, whenever it held."""
        progress = self._progress
        progress.entries(row)
        registry, display = progress.decoder.registry, progress.tokens.display
        return steered(progress.decoder.histories[row], progress.passage(row), display, registry)

    @property
    def monitors(self) -> tuple[Monitor, ...]:
        """What reads the run, as it was asked for."""
        reader = self._progress.decoder.monitors
        return () if reader is None else reader.monitors

    def readings_in(self, row: int) -> NDArray[np.float32]:
        """What each monitor read of a row's tokens, of the prompt and behind it the text: ``(monitors, tokens)``.

        Of a run that ended at the last place that the model has, the last token did not go in and has none.
        """
        progress = self._progress
        progress.entries(row)
        reader, count = progress.decoder.monitors, len(progress.decoder.ids) + len(progress.rows[row].ids)
        return np.zeros((0, count), dtype=np.float32) if reader is None else reader.readings(row, count)

    def echo_in(self, row: int) -> tuple[Echo, ...]:
        """What a row's interventions, as they are now, leave behind each layer, over its prompt and its text so far."""
        progress = self._progress
        entries = progress.entries(row)
        return echo_of(progress.decoder.registry, progress.passage(row), entries)


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
        """Why it ended: ``stop``, ``length``, ``stopped``; ``None`` while it runs."""
        return self._progress.rows[0].reason or None

    @property
    def dose(self) -> tuple[Dose, ...]:
        """How far each steered site was moved."""
        return self.doses(0)

    def dial(self, *interventions: Intervention) -> None:
        """Replace the interventions from the next step on; none at all leaves the model plain."""
        self.change(0, interventions)

    def add(self, record: Intervention) -> None:
        """Add an intervention from the next step on; one with the same id is changed, in its place."""
        self.put(0, record)

    def remove(self, id: str) -> None:  # noqa: A002
        """Remove the intervention of an id from the next step on. Raises :class:`LensError` if there is none."""
        self.drop(0, id)

    @property
    def interventions(self) -> tuple[Intervention, ...]:
        """The interventions as they are now, in order."""
        return self.held(0)

    @property
    def steered(self) -> tuple[Steered, ...]:
        """Which tokens of the prompt and the text each intervention touched, whenever it held."""
        return self.steered_in(0)

    @property
    def readings(self) -> NDArray[np.float32]:
        """What each monitor read of every token, of the prompt and behind it the text: ``(monitors, tokens)``."""
        return self.readings_in(0)

    def echo(self) -> tuple[Echo, ...]:
        """What the interventions, as they are now, leave behind each layer, over the prompt and the text so far."""
        return self.echo_in(0)


class Comparison(Rows, Iterator[Token | ArmEnd]):
    """A comparison in progress: an iterator of :class:`Token` and, for each arm that ends, :class:`ArmEnd`.

    Tokens come step by step, arms in order within a step. ``arms`` names the rows.
    """

    def __init__(self, decoder: RowDecoder, tokens: Tokens, names: Sequence[str], baseline: int = 0) -> None:
        super().__init__(decoder, tokens, names)
        self._baseline = baseline

    def __next__(self) -> Token | ArmEnd:
        return next(self._events)

    @property
    def arms(self) -> tuple[str, ...]:
        """The names of the rows, in order."""
        return self._progress.names

    @property
    def baseline(self) -> int:
        """The arm that began without interventions."""
        return self._baseline

    @property
    def batch_rows(self) -> int:
        """Rows of the batch: the arms, and behind them the plain model on each steered arm's tokens (see ``kl``)."""
        decoder = self._progress.decoder
        return decoder.n_rows + len(decoder.followed)

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

    def add(self, arm: int, record: Intervention) -> None:
        """Add an intervention to one arm from its next step on; one with the same id is changed, in its place."""
        self.put(arm, record)

    def remove(self, arm: int, id: str) -> None:  # noqa: A002
        """Remove the intervention of an id from one arm. Raises :class:`LensError` if there is none."""
        self.drop(arm, id)

    def interventions(self, arm: int) -> tuple[Intervention, ...]:
        """One arm's interventions as they are now, in order."""
        return self.held(arm)

    def steered(self, arm: int) -> tuple[Steered, ...]:
        """Which tokens of the prompt and of one arm's text each intervention touched, whenever it held."""
        return self.steered_in(arm)

    def readings(self, arm: int) -> NDArray[np.float32]:
        """What each monitor read of every token of an arm, of the prompt and behind it the text: (monitors, tokens)."""
        return self.readings_in(arm)

    def echo(self, arm: int) -> tuple[Echo, ...]:
        """What one arm's interventions leave behind each layer, over the prompt and its text so far."""
        return self.echo_in(arm)
