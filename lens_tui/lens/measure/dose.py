"""Dose-response: every measure of a steering at every scale, where the curves bend, and the answers that are given."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from lens_tui.records import Arm, ArmEnd, Intervention, LensError, Sampling
from lens_tui.records.interventions import as_number, as_records
from lens_tui.records.measures import (
    Behaviour,
    BehaviourPoint,
    BehaviourReport,
    Curve,
    DeltaLoss,
    DosePoint,
    DoseResponse,
    ReadBack,
)

from ..hooks.readings import FeatureSource
from . import effects
from .effects import FEW_TEXTS, bootstrap, degeneration
from .scores import Interventions, Score, ScoredText, Unsteered, score, unsteered

if TYPE_CHECKING:
    from ..model import LensModel
    from ..tokens import Prompt


Shape = Literal["away", "fall", "rise", "through"]
"""What is expected: a rise away from scale 0 on both sides, a fall away from it, a rise from left to right, or to go on
as it goes through 0, up or down."""
_FLAT = 1e-3
_NOISE = 0.02
_BEND = 0.1


def curve(name: str, scales: Sequence[float], values: Sequence[float], origin: float, shape: Shape = "away") -> Curve:
    """The curve of one quantity.

    A reversal is a step against the expected shape of more than 2 % of the curve's range (and 0.001). The knee is
    found as by Kneedle (Satopaa et al. 2011): the inner point furthest from the chord between a branch's ends, both
    axes scaled to 1, if that is more than 0.1.

    Args:
        name: What the values are of.
        scales: In any order.
        values: One for each scale.
        origin: The value without steering, at scale 0.
        shape: What is expected.
    """
    given = sorted(zip(map(float, scales), map(float, values), strict=True))
    pairs = given
    if not any(scale == 0 for scale, _ in pairs):
        pairs = sorted([*pairs, (0.0, float(origin))])
    reach = max(value for _, value in pairs) - min(value for _, value in pairs)
    least = max(_FLAT, _NOISE * reach)
    right = [(scale, value) for scale, value in pairs if scale >= 0]
    left = [(scale, value) for scale, value in reversed(pairs) if scale <= 0]
    if shape == "through":
        onward = 1 if right[:2][-1][1] - left[:2][-1][1] >= 0 else -1
        steps = [(left, -onward), (right, onward)]
    else:
        steps = [(left, -1 if shape in ("fall", "rise") else 1), (right, -1 if shape == "fall" else 1)]
    reversals = [pair for branch, sign in steps for pair in _reversals(branch, sign, least)]
    longest = max((right, left), key=lambda branch: (len(branch), abs(branch[-1][0])))
    return Curve(
        name,
        tuple(scale for scale, _ in given),
        tuple(value for _, value in given),
        knee(longest),
        tuple(sorted(reversals)),
    )


def knee(branch: Sequence[tuple[float, float]]) -> float | None:
    """The scale where a branch, from 0 outwards, bends most; ``None`` for fewer than 3 points or next to no bend."""
    if len(branch) < 3 or abs(branch[-1][1] - branch[0][1]) < _FLAT:
        return None
    (x0, y0), (x1, y1) = branch[0], branch[-1]
    inner = [(abs((x - x0) / (x1 - x0) - (y - y0) / (y1 - y0)), x) for x, y in branch[1:-1]]
    furthest, at = max(inner, key=lambda item: item[0])
    return at if furthest > _BEND else None


def _reversals(branch: Sequence[tuple[float, float]], sign: int, least: float) -> list[tuple[float, float]]:
    steps = itertools.pairwise(branch)
    return [(here[0], there[0]) for here, there in steps if sign * (there[1] - here[1]) < -least]


MAX_TOKENS = 60


@dataclass(frozen=True, eq=False)
class FeatureProbe:
    """A feature to read back: the SAE, the feature, and the layer and site it reads."""

    sae: FeatureSource
    feature: int
    layer: int
    site: str = "resid_post"


@dataclass(frozen=True)
class _Generated:
    """What was generated: the baseline first, then one row a plan."""

    ids: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    ends: dict[int, ArmEnd]


Question = tuple[str, str, str]
"""A question, the answer that shows the behaviour, and the other one."""


def scaled(interventions: Sequence[Intervention], factor: float) -> Interventions:
    """The records with every scale and value multiplied; those that have neither stay. Raises if none has."""
    interventions = as_records(interventions)
    if not any(hasattr(record, "scale") or hasattr(record, "value") for record in interventions):
        raise LensError(
            "Nothing here has a scale that could be multiplied.",
            "Take a steering that adds or clamps; what is cut or taken away is compared with the plain model as it is.",
        )
    return tuple(_scaled(record, factor) for record in interventions)


def dose_response(
    lens: LensModel,
    prompt: Prompt,
    interventions: Sequence[Intervention],
    scales: Sequence[float],
    *,
    texts: Sequence[Prompt] | None = None,
    controls: int = 0,
    probe: FeatureProbe | None = None,
    sampling: Sampling | None = None,
    raw: bool = False,
    seed: int = 0,
    known: Unsteered | None = None,
    questions: Sequence[Question] = (),
    **options: Any,
) -> DoseResponse:
    """Every measure at every scale: what a steering does, what it costs, and where that turns.

    All scales and the baseline are generated in lock step as rows of one batch. Curves: ``delta_loss``, ``kl`` (mean
    D(base || steered) of the baseline's first 20 tokens), ``ppl_unsteered``, ``distinct_2``, ``read_back`` and
    ``behaviour``, each with its knee and with the steps at which it turns back.

    Args:
        lens: The model.
        prompt: What is continued: a text, chat messages or token ids.
        interventions: Records of scale 1 make the scales absolute.
        scales: Multiply the scales (or values) of the records.
        texts: For the loss; by default 16 of ``LOSS_TEXTS``, which has 64.
        controls: So many random directions of the same length, and the sign turned, for loss and KL.
        probe: A feature to read back from what was written.
        sampling: By default greedy, 60 tokens at most.
        raw: Do not apply the chat template.
        seed: Of the random directions and of the intervals.
        known: What :func:`known_of` gave for the same interventions and texts: for several calls in a row.
        questions: As of :func:`behaviour`, asked at every scale; the curve is of its ``difference``.
        options: As of ``LensModel.stream``.

    Returns:
        A :class:`~lens_tui.records.measures.DosePoint` for each scale, in order, and the curves.

    Raises:
        LensError: For no scales or one that is not finite, and for records that have neither scale nor value.
    """
    texts = FEW_TEXTS if texts is None else texts
    given = scales if isinstance(scales, Iterable) and not isinstance(scales, str) else [scales]
    ordered = sorted({as_number(scale, "A scale of the dose-response") for scale in given})
    if not ordered:
        raise LensError("A dose-response needs finite scales.", "Give at least one.")
    plans = [scaled(interventions, scale) for scale in ordered]
    generated = _generate(lens, prompt, plans, sampling, raw, options)
    known = known or unsteered(lens, effects.items_of(lens, texts, plans))
    reference = _Reference(lens, prompt, generated, texts, known, raw, seed)
    response = _response(reference, ordered, plans, probe)
    if controls:
        points = _with_controls(reference, interventions, response.points, controls)
        response = replace(response, points=tuple(points))
    if len(questions):
        response = _with_behaviour(lens, response, interventions, questions, raw, seed)
    return replace(response, curves=curves_of(response))


def _response(
    reference: _Reference, scales: Sequence[float], plans: Sequence[Interventions], probe: FeatureProbe | None
) -> DoseResponse:
    """What was generated at each scale, measured; without controls and curves."""
    lens, prompt, generated, raw = reference.lens, reference.prompt, reference.generated, reference.raw
    on_baseline, on_own = _scores(lens, prompt, generated, plans, raw)
    scores = score(lens, effects.items_of(lens, reference.texts, plans), reference.known)
    losses = effects.losses_of(scores, reference.seed)
    backs = _read_backs(lens, prompt, generated, probe, raw)
    points = [
        _point(scale, generated, row + 1, losses[row], on_baseline[row], on_own[row], backs[row + 1])
        for row, scale in enumerate(scales)
    ]
    return DoseResponse(
        tuple(points),
        generated.texts[0],
        generated.ids[0],
        float(np.exp(on_baseline[0].base.mean())),
        degeneration(generated.ids[0], generated.texts[0]),
        (),
        backs[0],
    )


def known_of(lens: LensModel, interventions: Sequence[Intervention], texts: Sequence[Prompt]) -> Unsteered:
    """What of the texts does not depend on the scale: computed once for several calls of :func:`dose_response`."""
    return unsteered(lens, effects.items_of(lens, texts, [tuple(interventions)]))


def _generate(
    lens: LensModel,
    prompt: Prompt,
    plans: Sequence[Interventions],
    sampling: Sampling | None,
    raw: bool,
    options: dict[str, Any],
) -> _Generated:
    if sampling is None:
        options.setdefault("max_tokens", MAX_TOKENS)
        if "temperature" not in options:
            options.setdefault("temp", 0.0)
    arms = [Arm("baseline"), *(Arm(f"scale {at}", plan) for at, plan in enumerate(plans))]
    # KL is measured along the plain text as well, and there in one go: no companions are needed here.
    between = lens.registry.between
    options.setdefault("progress", lambda done, total: between())
    comparison = lens.compare(prompt, arms, sampling, raw=raw, kl=False, **options)
    ends: dict[int, ArmEnd] = {}
    with closing(comparison):
        for event in comparison:
            between()
            if isinstance(event, ArmEnd):
                ends[event.arm] = event
    return _Generated(comparison.token_ids, comparison.texts, ends)


def _scores(
    lens: LensModel, prompt: Prompt, generated: _Generated, plans: Sequence[Interventions], raw: bool
) -> tuple[list[Score], list[Score]]:
    """Each plan on the baseline's continuation, and each on its own."""
    items = [effects.continued(lens, prompt, generated.ids[0], tuple(plans), raw=raw)]
    pairs = zip(generated.ids[1:], plans, strict=True)
    items += [effects.continued(lens, prompt, ids, (plan,), raw=raw) for ids, plan in pairs]
    first, *others = score(lens, items)
    return first, [one[0] for one in others]


def _point(
    scale: float,
    generated: _Generated,
    row: int,
    loss: DeltaLoss,
    on_baseline: Score,
    on_own: Score,
    back: ReadBack | None,
) -> DosePoint:
    end = generated.ends.get(row)
    return DosePoint(
        scale=scale,
        dose=end.dose if end else None,
        delta_loss=loss,
        on_baseline=effects.divergence_of(on_baseline),
        on_own=effects.divergence_of(on_own),
        ppl_unsteered=float(np.exp(on_own.base.mean())),
        ppl_steered=float(np.exp(on_own.nll.mean())),
        degeneration=degeneration(generated.ids[row], generated.texts[row]),
        text=generated.texts[row],
        token_ids=generated.ids[row],
        reason=end.reason if end else "stopped",
        read_back=back,
    )


def _read_backs(
    lens: LensModel, prompt: Prompt, generated: _Generated, probe: FeatureProbe | None, raw: bool
) -> list[ReadBack | None]:
    if probe is None:
        return [None] * len(generated.ids)
    where = (probe.sae, probe.feature, probe.layer)
    return [effects.read_back(lens, prompt, ids, *where, site=probe.site, raw=raw) for ids in generated.ids]


@dataclass(frozen=True, eq=False)
class _Reference:
    """What steerings are held against: the baseline's continuation, and texts with what is known of them unsteered."""

    lens: LensModel
    prompt: Prompt
    generated: _Generated
    texts: Sequence[Prompt]
    known: Unsteered
    raw: bool
    seed: int


def _with_controls(
    reference: _Reference, interventions: Sequence[Intervention], points: Sequence[DosePoint], k: int
) -> list[DosePoint]:
    """The points with loss and KL of the sign turned and of ``k`` random directions, the same ones at each scale."""
    lens = reference.lens
    flipped, drawn = effects.controls(interventions, k, reference.seed)
    others = [*drawn, *([flipped] if flipped is not None else [])]
    plans = [scaled(other, point.scale) for point in points for other in others]
    scores = score(lens, effects.items_of(lens, reference.texts, plans), reference.known)
    losses = [loss.delta for loss in effects.losses_of(scores, reference.seed)]
    item = effects.continued(lens, reference.prompt, reference.generated.ids[0], tuple(plans), raw=reference.raw)
    kls = [effects.divergence_of(one).mean_forward for one in score(lens, [item])[0]]
    controlled = []
    for at, point in enumerate(points):
        loss, kl = (values[at * len(others) : (at + 1) * len(others)] for values in (losses, kls))
        turned = (loss[k], kl[k]) if flipped is not None else (None, None)
        controlled.append(
            replace(
                point,
                random_delta=tuple(loss[:k]),
                random_kl=tuple(kl[:k]),
                flipped_delta=turned[0],
                flipped_kl=turned[1],
            )
        )
    return controlled


def _with_behaviour(
    lens: LensModel,
    response: DoseResponse,
    interventions: Sequence[Intervention],
    questions: Sequence[Question],
    raw: bool,
    seed: int,
) -> DoseResponse:
    """The response with what is answered at each scale."""
    scales = [point.scale for point in response.points]
    found = behaviour(lens, questions, interventions, scales, raw=raw, seed=seed)
    pairs = zip(response.points, found.points, strict=True)
    points = tuple(replace(point, behaviour=answered.behaviour) for point, answered in pairs)
    return replace(response, points=points, baseline_behaviour=found.plain)


def curves_of(response: DoseResponse) -> tuple[Curve, ...]:
    """The curves of a response's points; those it has are left out of account."""
    points = response.points
    scales = [point.scale for point in points]
    distinct = response.baseline_degeneration.distinct_2
    curves = [
        curve("delta_loss", scales, [point.delta_loss.delta for point in points], 0.0),
        curve("kl", scales, [point.on_baseline.mean_forward for point in points], 0.0),
        curve("ppl_unsteered", scales, [point.ppl_unsteered for point in points], response.baseline_ppl),
    ]
    spread = [(point.scale, point.degeneration.distinct_2) for point in points]
    known = [(scale, value) for scale, value in spread if value is not None]
    if known and distinct is not None:
        at, values = [scale for scale, _ in known], [value for _, value in known]
        curves.append(curve("distinct_2", at, values, distinct, "fall"))
    backs = [point.read_back.mean for point in points if point.read_back is not None]
    if response.baseline_read_back is not None and len(backs) == len(points):
        curves.append(curve("read_back", scales, backs, response.baseline_read_back.mean, "rise"))
    answered = [point.behaviour.difference for point in points if point.behaviour is not None]
    if response.baseline_behaviour is not None and len(answered) == len(points):
        curves.append(curve("behaviour", scales, answered, response.baseline_behaviour.difference, "through"))
    return tuple(curves)


def _scaled(record: Intervention, factor: float) -> Intervention:
    for name in ("scale", "value"):
        if hasattr(record, name):
            changes: dict[str, Any] = {name: getattr(record, name) * factor}
            return replace(record, **changes)
    return record


def behaviour(
    lens: LensModel,
    questions: Sequence[Question],
    interventions: Sequence[Intervention] = (),
    scales: Sequence[float] = (1.0,),
    *,
    raw: bool = False,
    seed: int = 0,
) -> BehaviourReport:
    """How likely the answers are that show a behaviour, plain and under a steering at each of some scales.

    What contrastive activation addition is judged by (Panickssery et al. 2023, 2312.06681).

    Answers are compared at the first token in which they differ, behind the question and what they have in common.

    Args:
        lens: The model.
        questions: As :func:`lens_tui.records.corpus.read_questions` gives them, from CAA's files for example.
        interventions: What acts; none asks the plain model alone. Positions count the question as the prompt.
        scales: Multiply their scales (or values).
        raw: The answer follows the question as text; else the question goes through the chat template, if there is one.
        seed: Of the intervals.

    Raises:
        LensError: For no questions, and answers that do not differ.
    """
    if not questions:
        raise LensError("There are no questions.", "Give (question, matching answer, other answer) for each.")
    records = as_records(interventions)
    ordered = [as_number(scale, "A scale of the behaviour") for scale in scales] if records else []
    plans: tuple[Interventions, ...] = tuple(scaled(records, scale) for scale in ordered) or ((),)
    items = [item for at, question in enumerate(questions, 1) for item in _items(lens, question, plans, raw, at)]
    scores = score(lens, items)
    logprobs = np.array([[[-one.base[-1], -one.nll[-1]] for one in of_item] for of_item in scores])
    gaps = logprobs[0::2] - logprobs[1::2]  # (questions, plans, plain or steered)
    plain = _behaviour(gaps[:, 0, 0], seed)
    points = [BehaviourPoint(scale, _behaviour(gaps[:, at, 1], seed)) for at, scale in enumerate(ordered)]
    return BehaviourReport(plain, tuple(points))


def _items(
    lens: LensModel, question: Question, plans: tuple[Interventions, ...], raw: bool, number: int
) -> tuple[ScoredText, ScoredText]:
    """The text up to and with the first token in which the answers differ, once for each answer."""
    asked, *answers = question
    encoded = lens.tokens.prompt(asked, raw=raw)
    if encoded.spans is None:  # plain text: a tokenizer may join the question's end with the answer's beginning
        rows = [tuple(lens.tokens.prompt(_joined(asked, answer), raw=True).ids) for answer in answers]
    else:
        special = lens.tokens.special_ids()
        written = [
            [token for token in lens.tokens.encode(answer.strip()) if token not in special] for answer in answers
        ]
        rows = [(*encoded.ids, *ids) for ids in written]
    same = _common(*rows)
    if same == min(map(len, rows)):
        raise LensError(f"The answers to question {number} do not differ.", "Give two that part at some token.")
    start = min(_common(encoded.ids, rows[0]), same)
    one, other = (ScoredText(row[: same + 1], plans, start, encoded.spans) for row in rows)
    return one, other


def _joined(question: str, answer: str) -> str:
    return question + ("" if question[-1:].isspace() or answer[:1].isspace() else " ") + answer


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two rows begin with in common."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (mine, theirs) in enumerate(pairs) if mine != theirs), min(len(one), len(other)))


def _behaviour(gaps: NDArray[Any], seed: int) -> Behaviour:
    low, high = bootstrap(gaps, np.ones(len(gaps)), seed)
    share = 1 / (1 + np.exp(-np.clip(gaps, -700, 700)))
    chosen = (gaps > 0) + 0.5 * (gaps == 0)
    return Behaviour(float(gaps.mean()), low, high, float(share.mean()), float(chosen.mean()), len(gaps))
