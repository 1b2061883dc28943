"""Arms in lock step: the baseline and every steered arm decoded in one batch, one row each.

With KL a steered arm has a companion: one more row, of the plain model, that is fed the arm's own tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lens_tui.records import ArmEnd, Dose, Echo, Intervention, LensError, Sampling, Steered, Token

from .checks import entries_of
from .echo import echo_of
from .generation import RowDecoder
from .meter import Meter
from .progress import Progress, events_of
from .steered import steered
from .stops import Writing, writing_options
from .tokens import Tokens


class Rows:
    """A run of one or several rows: what ``Generation`` and ``Comparison`` share.

    Nothing is computed or installed before the first token is asked for; a run
    that ends, fails, is closed or is dropped leaves the model as it was.
    """

    def __init__(self, decoder: RowDecoder, tokens: Tokens, names: Sequence[str]) -> None:
        sampling = decoder.options.sampling
        rows = [Writing(**writing_options(tokens, sampling, decoder.ids[-1])) for _ in names]
        self._progress = Progress(decoder, tokens, tuple(names), rows)
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
        if progress.keys:
            progress.hold(progress.plan.keys)
        if progress.decoder.run.meter is None:
            progress.decoder.run.meter = Meter()

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
        return steered(progress.decoder.histories[row], progress.passage(row), progress.tokens.display)

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
        """Why it ended: ``stop``, ``length``, ``stopped``; ``None`` while it goes on."""
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

    def echo(self, arm: int) -> tuple[Echo, ...]:
        """What one arm's interventions leave behind each layer, over the prompt and its text so far."""
        return self.echo_in(arm)
