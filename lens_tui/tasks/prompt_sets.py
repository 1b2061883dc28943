"""A set of prompts under every arm: for the app, ``compare --prompts`` and the library alike."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lens_tui import demo
from lens_tui.lens.measure.effects import read_back_of
from lens_tui.lens.measure.scores import ScoredText, score
from lens_tui.records import Arm, ArmEnd, LensError, Request, Sampling, Token
from lens_tui.records.interventions import amount_of, at_amount
from lens_tui.records.measures import distinct
from lens_tui.records.prompt_set import PromptItem, PromptSet, SetCell, read_prompt_set, typed_prompts
from lens_tui.records.sanitise import one_line

if TYPE_CHECKING:
    from lens_tui.lens.decode.batch import BatchGeneration
    from lens_tui.lens.measure.dose import FeatureProbe
    from lens_tui.lens.model import LensModel

ROWS = 32
"""Rows of a group, unless one prompt alone has more: prompts times arms times seeds."""
BUNDLED = "bundled"
"""The name of the set that comes with the package."""

Place = tuple[int, int, int]
"""Prompt, arm and seed of a cell, each its place in the run's list."""


def bundled_prompts() -> PromptSet:
    """The set that comes with the bundled model: openings of stories, plays, recipes, articles and code."""
    return replace(read_prompt_set(demo.prompts_path()), name=BUNDLED)


def sweep(arm: Arm, scales: Sequence[float]) -> tuple[Arm, ...]:
    """One arm a scale, each named after the arm and its scale: ``cookery 19``.

    Args:
        arm: Of one intervention that has a scale, a value or a bound.
        scales: In the units of that.

    Raises:
        LensError: For an arm of several interventions, or of one without a number, and for the same scale twice.
    """
    live = [record for record in arm.interventions if record.enabled]
    if len(live) != 1 or amount_of(live[0]) is None or live[0].mode == "project_out":
        raise LensError(f"The arm {arm.name!r} has no one scale to sweep.", "Give an arm of one vector with a scale.")
    if not scales:
        raise LensError("There are no scales to sweep.", "Give at least one.")
    if len(set(scales)) < len(scales):
        raise LensError("The scales of a sweep must differ.", "Give each of them once.")
    return tuple(Arm(f"{arm.name} {scale:g}", (at_amount(live[0], scale),)) for scale in scales)


@dataclass(frozen=True, slots=True)
class SetToken:
    """A token as it is written: the prompt and the seed by their places, and the token, whose ``arm`` is the arm's."""

    prompt: int
    seed: int
    token: Token


@dataclass(frozen=True, slots=True)
class PromptIds:
    """A prompt is about to be written on: its place, and its token ids as the model sees it."""

    prompt: int
    token_ids: tuple[int, ...]


SetEvent = PromptIds | SetToken | SetCell


class SetComparison(Iterator[SetEvent]):
    """A set in progress: an iterator of :class:`PromptIds`, :class:`SetToken` and, as it is measured, each cell.

    ``arms``, ``prompts`` and ``seeds`` name what the places in the events mean; ``cells`` are those that are complete.
    Prompts are taken in groups, so that what is held of the model does not grow with the set. Closing it keeps what was
    written: :meth:`rest` gives the cells of the group at work without their measures against the plain model.
    """

    def __init__(
        self,
        lens: LensModel,
        prompts: Sequence[PromptItem],
        arms: Sequence[Arm],
        sampling: Sampling,
        seeds: Sequence[int],
        probe: FeatureProbe | None,
        options: dict[str, Any],
    ) -> None:
        self.prompts, self.arms, self.seeds, self.sampling = tuple(prompts), tuple(arms), tuple(seeds), sampling
        self.cells: dict[Place, SetCell] = {}
        self._lens, self._probe, self._options = lens, probe, options
        self._rows: int = options.pop("rows", ROWS)
        self._written: dict[Place, list[Token]] = {}
        self._ends: dict[Place, ArmEnd] = {}
        self._events = self._run()

    def __next__(self) -> SetEvent:
        return next(self._events)

    def close(self) -> None:
        """End the run where it stands."""
        self._events.close()

    def rest(self) -> tuple[SetCell, ...]:
        """The cells that had begun and are not among ``cells``: their text, without KL and read-back."""
        begun = (place for place, tokens in self._written.items() if tokens and place not in self.cells)
        return tuple(self._cell(place, self._written[place]) for place in begun)

    @property
    def group_rows(self) -> int:
        """Rows of a whole group."""
        each = len(self.arms) * len(self.seeds)
        return each * min(len(self.prompts), max(1, self._rows // each))

    # -- running

    def _run(self) -> Generator[SetEvent]:
        each = len(self.arms) * len(self.seeds)
        size = max(1, self._rows // each)
        for start in range(0, len(self.prompts), size):
            yield from self._group(range(start, min(len(self.prompts), start + size)))

    def _group(self, prompts: range) -> Iterator[SetEvent]:
        places = [(p, a, s) for p in prompts for a in range(len(self.arms)) for s in range(len(self.seeds))]
        batch = self._lens.stream_batch(
            [self._request(place) for place in places],
            interventions=(),
            completion_batch_size=max(self._rows, len(places)),
            **self._options,
        )
        with closing(batch):
            ids = [record.prompt_ids for record in batch.records]
            for prompt in prompts:
                yield PromptIds(prompt, ids[places.index((prompt, 0, 0))])
            yield from self._write(batch, places)
        yield from self._measured(places, ids)
        for place in places:
            self._written.pop(place, None)
            self._ends.pop(place, None)

    def _request(self, place: Place) -> Request:
        prompt, arm, seed = place
        name = f"the arm {one_line(self.arms[arm].name, 80)!r} on prompt {one_line(self.prompts[prompt].id, 40)!r}"
        sampling = replace(self.sampling, seed=self.seeds[seed])
        return Request(self.prompts[prompt].text, self.arms[arm].interventions, sampling, name=name)

    def _write(self, batch: BatchGeneration, places: Sequence[Place]) -> Iterator[SetToken]:
        for event in batch:
            place = places[event.arm]
            if isinstance(event, ArmEnd):
                self._ends[place] = event
                continue
            token = replace(event, arm=place[1])
            self._written.setdefault(place, []).append(token)
            yield SetToken(place[0], place[2], token)

    def _measured(self, places: Sequence[Place], ids: Sequence[tuple[int, ...]]) -> Iterator[SetCell]:
        """Each cell with its measures: both models read what each arm wrote, the arm's prompts as they were."""
        raw, backs = bool(self._options.get("raw")), self._read_backs(places, ids)
        items = []
        for place, prompt in zip(places, ids, strict=True):
            spans = self._lens.tokens.prompt(self.prompts[place[0]].text, raw=raw).spans
            whole = (*prompt, *(token.token_id for token in self._written[place]))
            items.append(ScoredText(whole, (self.arms[place[1]].interventions,), len(prompt), spans))
        for place, (one,), back in zip(places, score(self._lens, items), backs, strict=True):
            tokens = [
                replace(token, kl=float(kl), reverse_kl=float(reverse), plain_logprob=-float(nll))
                for token, kl, reverse, nll in zip(
                    self._written[place], one.reverse, one.forward, one.base, strict=True
                )
            ]
            if self.arms[place[1]].is_baseline:
                tokens = [replace(token, kl=0.0, reverse_kl=0.0, plain_logprob=token.logprob) for token in tokens]
            self.cells[place] = self._cell(place, tokens, back)
            yield self.cells[place]

    def _read_backs(self, places: Sequence[Place], ids: Sequence[tuple[int, ...]]) -> list[float | None]:
        """The feature's mean activation on each text, read by the plain model."""
        if self._probe is None:
            return [None] * len(places)
        texts = [tuple(token.token_id for token in self._written[place]) for place in places]
        where = (self._probe.sae, self._probe.feature, self._probe.layer)
        found = read_back_of(self._lens, list(zip(ids, texts, strict=True)), *where, site=self._probe.site)
        return [one.mean for one in found]

    def _cell(self, place: Place, tokens: Sequence[Token], back: float | None = None) -> SetCell:
        end = self._ends.get(place)
        text = "".join(token.text for token in tokens) if end is None else end.text
        ids = [token.token_id for token in tokens]
        reason, dose = ("stopped", None) if end is None else (end.reason, end.dose)
        return SetCell(*place, tuple(tokens), text, reason, dose, distinct(ids, 2), back)


def compare_prompts(
    lens: LensModel,
    prompts: PromptSet | Sequence[PromptItem | str],
    arms: Sequence[Arm],
    sampling: Sampling | None = None,
    *,
    seeds: Sequence[int] = (),
    probe: FeatureProbe | None = None,
    raw: bool = False,
    rows: int = ROWS,
    top: int = 0,
    **options: Any,
) -> SetComparison:
    """Generate every arm on every prompt, from every seed, many rows of a batch at a time.

    A cell's tokens are those that :meth:`LensModel.compare` gives for its prompt, arm and seed alone, in float32; in
    lower precision rows may round differently in a batch of another shape. Its KL and the plain model's
    log-probabilities are measured once the group is written: both models read each arm's text, as companions do beside
    it in ``compare``, in one forward instead of one a token.

    Args:
        lens: The model.
        prompts: A set, or texts.
        arms: Without one that has no interventions, a baseline is put in front.
        sampling: The settings of all of them.
        seeds: A text is made from each; by default the one of ``sampling``. Several need a temperature above 0.
        probe: A feature whose mean activation on each text is read back by the plain model.
        raw: Leave the chat template out.
        rows: Rows of a group (prompts times arms times seeds); what is held of the model grows with it, not with the
            set. One prompt's rows are never parted.
        top: Candidates that each token carries.
        options: As of :meth:`LensModel.stream_batch`.

    Returns:
        An iterator of what happens; nothing is computed before the first is asked for.

    Raises:
        LensError: For no prompts, an empty one, several seeds at temperature 0, a seed given twice, and for what
            ``stream_batch`` refuses.
    """
    if isinstance(prompts, PromptSet):
        items = prompts.items
    else:
        texts = [item.text if isinstance(item, PromptItem) else item for item in prompts]
        items = typed_prompts(texts).items
        items = tuple(
            given if isinstance(given, PromptItem) else item for given, item in zip(prompts, items, strict=True)
        )
    named = list(arms)
    if not any(arm.is_baseline for arm in named):
        named.insert(0, Arm("baseline"))
    settings = sampling or Sampling()
    chosen = tuple(seeds) or (settings.seed,)
    if len(set(chosen)) < len(chosen):
        raise LensError("A seed is given twice.", "Give each of them once.")
    if len(chosen) > 1 and settings.temp == 0.0:
        raise LensError("At temperature 0 every seed gives the same text.", "Give a temperature, or one seed.")
    if rows < 1:
        raise LensError(f"A group cannot have {rows} rows.", "Give 1 or more.")
    return SetComparison(lens, items, named, settings, chosen, probe, {"raw": raw, "rows": rows, "top": top, **options})
