"""Find the scale that reaches a target: bracket it by doubling, then close in on it by interpolation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import mlx.core as mx
import numpy as np

from lens_tui.records import Add, Intervention, LensError, NormMatch, NotFinite
from lens_tui.records.interventions import as_records
from lens_tui.records.measures import FIRST, MOST_LENGTHS, ScaleSearch

from ..forward import forward_rows
from ..hooks.program import DoseMeter
from ..vectors import residual_norm
from . import effects
from .dose import Question, behaviour, curve, scaled
from .effects import FEW_TEXTS
from .scores import Interventions, ScoredText, score, unsteered

if TYPE_CHECKING:
    from ..model import LensModel
    from ..tokens import Prompt


Quantity = Literal["delta_loss", "kl", "relative_norm", "behaviour"]
TARGETS: dict[str, float] = {"delta_loss": 0.3, "kl": 1.0, "relative_norm": 0.1, "behaviour": 1.0}
_START = 0.05
_AWAY = 6
"""Doublings after which a behaviour that has only moved away from its target is followed no further."""
Evaluate = Callable[[Sequence[float]], list[float]]


def find_scale(
    lens: LensModel,
    *interventions: Intervention,
    quantity: Quantity = "delta_loss",
    target: float | None = None,
    texts: Sequence[Prompt] | None = None,
    start: float | None = None,
    limit: float | None = None,
    tolerance: float = 0.02,
    hold_out: bool = True,
    raw: bool = True,
    questions: Sequence[Question] = (),
    progress: Callable[[dict[float, float]], None] | None = None,
) -> ScaleSearch:
    """The factor on the interventions' scales at which a quantity reaches its target.

    Scales are doubled from ``start``, several at a time as rows of one batch, until the target is passed. The bracket
    is then cut where a power law through its ends meets the target (in its middle, if the last cut took less than
    half of it away). The first crossing counts: a curve that turns back is followed no further, and
    ``curve.reversals`` says where. A behaviour has a sign, and may move away from its target: once it has done
    nothing else over six scales, and by as much as the target, the search ends there. Layers below the first steered
    one are computed once, not once a scale.

    Args:
        lens: The model.
        interventions: Records of scale 1 make the factor absolute; a negative scale searches the other direction.
        quantity: ``delta_loss``: steered minus unsteered mean NLL of the texts, in nats. ``kl``: mean D(base ||
            steered) over the first 20 tokens of the unsteered greedy continuation of each text, in nats.
            ``relative_norm``: measured mean ``||delta h|| / ||h||``, after rounding. ``behaviour``: how much
            the mean log-probability difference of the questions' answers has grown, in nats.
        target: By default 0.3 nat, 1 nat, 0.1 and 1 nat. Below 0, for ``behaviour`` alone, it is to be lowered.
        texts: By default 16 of ``LOSS_TEXTS``.
        start: The first factor; by default one that moves the residual by 5 % of its norm.
        limit: The largest factor to try; by default ``2 ** 14`` times the first, for ``behaviour`` 200 times: a push
            of 10 residual norms, far beyond which every text gets the same answers.
        tolerance: The bracket's relative width, or the value's relative distance from the target, that is enough.
        hold_out: Choose the scale on every other text, and report the value on the rest as well.
        raw: Do not apply the chat template.
        questions: As of :func:`~.dose.behaviour`, for that quantity; they are halved in place of the texts.
        progress: ``progress(tried)`` gets all values so far, by scale, after each batch; an exception ends it.

    Returns:
        The scale with its value and the curve. A target that no scale up to ``limit`` reaches, or that the smallest
        is above already, gives ``reached=False``, not an error; a behaviour's is then the nearest, with ``notes``.

    Raises:
        LensError: For an unknown quantity, no texts, bounds that are not positive, or a target of 0.
    """
    records = as_records(interventions)
    texts = FEW_TEXTS if texts is None else texts
    bounds = _bounds(lens, records, quantity, texts, (target, start, limit))
    if quantity == "behaviour" and not len(questions):
        raise LensError("A behaviour is searched for by questions.", "Give questions=, as read_questions reads them.")
    over: Sequence[Any] = questions if quantity == "behaviour" else texts
    chosen, rest = (over[::2], over[1::2]) if hold_out and len(over) > 1 else (over, ())
    evaluate = _evaluator(lens, records, quantity, chosen, raw)
    found = _search(_telling(evaluate, progress) if progress is not None else evaluate, quantity, bounds, tolerance)
    if not rest:
        return found
    return replace(found, held_out=_evaluator(lens, records, quantity, rest, raw)([found.scale])[0])


def _bounds(
    lens: LensModel,
    interventions: Sequence[Intervention],
    quantity: str,
    texts: Sequence[Prompt],
    given: tuple[float | None, float | None, float | None],
) -> tuple[float, float, float]:
    """The target, the first and the largest factor, where they are not given by default. Raises ``LensError``."""
    if quantity not in get_args(Quantity):
        raise LensError(f"There is no quantity {quantity!r} to search for.", f"Use one of {', '.join(TARGETS)}.")
    if isinstance(texts, (str, bytes)) or not len(texts):
        raise LensError("A search needs texts in a list.", "Give texts=[...], at least one.")
    target, start, limit = given
    signed = quantity == "behaviour"
    goal = TARGETS[quantity] if target is None else float(target)
    first = _first_scale(lens, interventions, texts) if start is None else float(start)
    last = first * (MOST_LENGTHS / _START if signed else 2.0**14) if limit is None else float(limit)
    if not ((abs(goal) if signed else goal) > 0 and first > 0 and last > 0 and math.isfinite(goal + first + last)):
        below = "; the target of a behaviour may be below 0" if signed else ""
        raise LensError(f"A search needs a positive target, start and limit{below}.", "Check the arguments.")
    return goal, first, last


def _search(
    evaluate: Evaluate, quantity: Quantity, bounds: tuple[float, float, float], tolerance: float
) -> ScaleSearch:
    target, first, last = bounds
    sign, goal = math.copysign(1.0, target), abs(target)
    seen: dict[float, float] = {}

    def toward(scales: Sequence[float]) -> list[float]:
        """The values, with their signs turned where the target is below 0."""
        return [sign * value for value in evaluate(scales)]

    bracket = _bracket(toward, goal, min(first, last), last, seen, signed=quantity == "behaviour")
    if bracket is not None:
        bracket = _narrow(toward, goal, bracket, tolerance, seen)
    tried = seen if quantity == "behaviour" else (last,)
    scale = min(bracket or tried, key=lambda at: abs(seen[at] - goal))
    known = {at: sign * value for at, value in seen.items() if math.isfinite(value)}
    away = bracket is None and max(seen.values()) <= 0
    return ScaleSearch(
        quantity=quantity,
        target=target,
        scale=scale,
        value=sign * seen[scale],
        held_out=None,
        bracket=bracket or (max(seen), max(seen)),
        curve=curve(quantity, list(known), list(known.values()), 0.0, "through" if quantity == "behaviour" else "away"),
        reached=bracket is not None and bracket[0] < bracket[1],
        evaluations=len(seen),
        notes=(_AWAY_NOTE.format("lowers" if sign > 0 else "raises"),) if away else (),
    )


_AWAY_NOTE = "This push {} the behaviour: turn the sign of its scale, or that of the target."


def _telling(evaluate: Evaluate, progress: Callable[[dict[float, float]], None]) -> Evaluate:
    tried: dict[float, float] = {}

    def evaluate_and_tell(scales: Sequence[float]) -> list[float]:
        values = evaluate(scales)
        tried.update(zip(scales, values, strict=True))
        progress(dict(tried))
        return values

    return evaluate_and_tell


def _bracket(
    evaluate: Evaluate, goal: float, first: float, limit: float, seen: dict[float, float], *, signed: bool = False
) -> tuple[float, float] | None:
    """Neighbouring scales, the lower below the goal and the upper at or above it; ``None`` up to the limit.

    A ``signed`` quantity may be moving away from the goal: ``None`` then, too.
    """
    below, start, count = 0.0, first, _at_once()
    while True:
        scales = [min(start * 2.0**step, limit) for step in range(count)]
        scales = list(dict.fromkeys(scales))
        seen.update(_tried(evaluate, scales))
        for scale in scales:
            if seen[scale] >= goal:
                return (below, scale) if below else _downwards(evaluate, goal, scale, seen)
            below = scale
        if below >= limit or (signed and _moves_away(list(seen.values()), goal)):
            return None
        start = below * 2


def _moves_away(values: Sequence[float], goal: float) -> bool:
    """Whether a quantity, from 0 on, has fallen at scale after scale, and by as much as it should have risen."""
    falls = all(after < before for before, after in itertools.pairwise([0.0, *values]))
    return len(values) >= _AWAY and falls and values[-1] <= -goal


def _downwards(evaluate: Evaluate, goal: float, high: float, seen: dict[float, float]) -> tuple[float, float]:
    """The first scale is too large already: halve until one is below the goal, twelve times at most."""
    count = _at_once()
    for _ in range(12 // count):
        scales = [high / 2.0**step for step in range(1, count + 1)]
        seen.update(_tried(evaluate, scales))
        for scale in scales:
            if seen[scale] < goal:
                return scale, high
            high = scale
    return high, high


def _narrow(
    evaluate: Evaluate, goal: float, bracket: tuple[float, float], tolerance: float, seen: dict[float, float]
) -> tuple[float, float]:
    """A bracket within the tolerance, by interpolation that falls back on bisection: at most twice its steps."""
    low, high = bracket
    slow = False
    while high / low > 1 + tolerance and min(abs(seen[at] - goal) for at in (low, high)) > tolerance * goal:
        width = math.log(high / low)
        cut = low * math.exp(width * (0.5 if slow else _share(low, high, seen[low], seen[high], goal)))
        seen.update(_tried(evaluate, [cut]))
        low, high = (low, cut) if seen[cut] >= goal else (cut, high)
        slow = math.log(high / low) > width / 2
    return low, high


def _share(low: float, high: float, below: float, above: float, goal: float) -> float:
    """How far up a bracket, in log scale, the goal is: by a power law where both values allow one, else by a line.

    Never in the outermost hundredth, so that each step takes something away; the middle where a value has no number.
    """
    if not math.isfinite(above):
        return 0.5
    if below > 0:
        share = math.log(goal / below) / math.log(above / below)
    else:
        share = math.log((low + (high - low) * (goal - below) / (above - below)) / low) / math.log(high / low)
    return min(max(share, 0.01), 0.99)


def _at_once() -> int:
    """Scales to try in one batch: on a GPU more rows cost next to nothing, on a CPU each row costs its time."""
    return 4 if mx.default_device().type == mx.gpu else 2


def _tried(evaluate: Evaluate, scales: Sequence[float]) -> dict[float, float]:
    """Values by scale; where the model's dtype overflowed there is no number, and the scale is too large."""
    try:
        values = evaluate(scales)
    except NotFinite:
        if len(scales) > 1:  # some of them may have values
            return {at: value for scale in scales for at, value in _tried(evaluate, [scale]).items()}
        values = [math.inf]
    return {at: value if math.isfinite(value) else math.inf for at, value in zip(scales, values, strict=True)}


def _evaluator(
    lens: LensModel, interventions: Sequence[Intervention], quantity: str, texts: Sequence[Any], raw: bool
) -> Evaluate:
    """A function of scales; what does not depend on the scale is computed here, once. ``texts`` may be questions."""
    if quantity == "behaviour":
        return _answers(lens, interventions, texts, raw)
    if quantity == "delta_loss":

        def losses(scales: Sequence[float]) -> list[float]:
            plans = [scaled(interventions, at) for at in scales]
            return [loss.delta for loss in effects.losses_of(score(lens, effects.items_of(lens, texts, plans), known))]

        known = unsteered(lens, effects.items_of(lens, texts, [tuple(interventions)]))
        return losses
    if quantity == "kl":
        return _divergences(lens, interventions, texts, raw)
    return _shares(lens, interventions, texts)


def _divergences(
    lens: LensModel, interventions: Sequence[Intervention], texts: Sequence[Prompt], raw: bool
) -> Evaluate:
    batch = lens.stream_batch(list(texts), raw=raw, interventions=(), max_tokens=FIRST, temp=0.0)
    with closing(batch):
        for _ in batch:
            lens.registry.between()

    def items(plans: tuple[Interventions, ...]) -> list[ScoredText]:
        pairs = zip(texts, batch.token_ids, strict=True)
        return [effects.continued(lens, text, after, plans, raw=raw) for text, after in pairs]

    known = unsteered(lens, items((tuple(interventions),)), with_nll=False)

    def divergences(scales: Sequence[float]) -> list[float]:
        scores = score(lens, items(tuple(scaled(interventions, at) for at in scales)), known)
        found = [[effects.divergence_of(one).mean_forward for one in per_text] for per_text in scores]
        return [float(value) for value in np.mean(found, axis=0)]

    return divergences


def _answers(
    lens: LensModel, interventions: Sequence[Intervention], questions: Sequence[Question], raw: bool
) -> Evaluate:
    def grown(scales: Sequence[float]) -> list[float]:
        found = behaviour(lens, questions, interventions, scales, raw=raw)
        return [point.behaviour.difference - found.plain.difference for point in found.points]

    return grown


def _shares(lens: LensModel, interventions: Sequence[Intervention], texts: Sequence[Prompt]) -> Evaluate:
    """Mean ``||delta h|| / ||h||`` delivered on the texts' tokens, after rounding, at the first steered site."""
    items = effects.items_of(lens, texts, [tuple(interventions)])
    below = unsteered(lens, items, with_nll=False).below

    def share(plan: Interventions) -> float:
        total, tokens = 0.0, 0
        for item in items:
            meter, resume = DoseMeter(), None if below is None else below.resume([item.ids])
            forward_rows(lens, [item.ids], [plan], [item.n_prompt], meter=meter, resume=resume)
            for dose in meter.doses(0)[:1]:
                total, tokens = total + dose.relative * dose.tokens, tokens + dose.tokens
        return total / tokens if tokens else 0.0

    return lambda scales: [share(scaled(interventions, at)) for at in scales]


def _first_scale(lens: LensModel, interventions: Sequence[Intervention], texts: Sequence[Prompt]) -> float:
    """A factor at which the first steering moves the residual by about 5 % of its length."""
    for record in interventions:
        if isinstance(record, (Add, NormMatch)) and record.scale:
            length = 1.0
            if isinstance(record, Add):
                length = residual_norm(lens, record.layer, site=record.site, texts=texts)
            return _START * length / abs(record.scale)
    return _START
