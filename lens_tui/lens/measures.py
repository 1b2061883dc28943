"""Measures of a steering: loss, KL, perplexity, what a feature reads, and controls.

Everything is teacher-forced on given tokens, in float32, against the same model without steering.
Blocks around the call do not count: what is measured is what is given. All say in their docstring what they
compute; unless they say otherwise, logarithms are natural.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lens_tui.records import Ablate, Add, ClampFeature, Intervention, LensError, NormMatch, Origin, SteeringVector
from lens_tui.records.interventions import as_records
from lens_tui.records.measures import Controlled, DeltaLoss, Divergence, ReadBack

from .interventions import FeatureSource
from .measures_texts import LOSS_TEXTS
from .rows import as_float, read_rows
from .scores import Item, Score, score, unsteered
from .tokens import id_table

if TYPE_CHECKING:
    from .core import Core
    from .tokens import Prompt

RESAMPLES = 2000


def delta_loss(
    lens: Core,
    *interventions: Intervention,
    texts: Sequence[Prompt] | None = None,
    seed: int = 0,
) -> DeltaLoss:
    """How much worse a steering predicts a text set: mean next-token NLL, steered minus unsteered, in nats a token.

    The mean is over all predicted tokens of all texts (the first of each is not
    predicted). The interval is the percentile bootstrap over texts, 2000 resamples of whole texts, since the tokens
    of one text are not independent. Texts (by default ``measures_texts.LOSS_TEXTS``, 64 of many kinds) are
    raw, special tokens as the tokenizer puts them; for positions,
    each counts as generated from its first token on.
    """
    return delta_losses(lens, [tuple(interventions)], texts=texts, seed=seed)[0]


def delta_losses(
    lens: Core,
    plans: Sequence[tuple[Intervention, ...]],
    *,
    texts: Sequence[Prompt] | None = None,
    seed: int = 0,
) -> list[DeltaLoss]:
    """As :func:`delta_loss`, for several steerings in the rows of the same batches.

    The layers below the first one that any of them acts at are computed once a text.
    """
    items = items_of(lens, LOSS_TEXTS if texts is None else texts, plans)
    return losses_of(score(lens, items, unsteered(lens, items)), seed)


def items_of(lens: Core, texts: Sequence[Prompt], plans: Sequence[tuple[Intervention, ...]]) -> list[Item]:
    """The texts as items whose every token but the first is scored."""
    if isinstance(texts, (str, bytes)) or not len(texts):
        raise LensError("A loss needs a list of texts, at least one text.", "Give texts=[...].")
    plans = [as_records(plan) for plan in plans]
    return [Item(lens.tokens.prompt(text, raw=True).ids, tuple(plans)) for text in texts]


def losses_of(scores: Sequence[Sequence[Score]], seed: int = 0) -> list[DeltaLoss]:
    """One record a steering from the scores of every text."""
    return [loss_of([per_text[at] for per_text in scores], seed) for at in range(len(scores[0]))]


def loss_of(scores: Sequence[Score], seed: int = 0) -> DeltaLoss:
    """The record of one steering from its scores on each text."""
    sums = np.array([[one.base.sum(), one.nll.sum(), one.nll.size] for one in scores])
    base, steered, count = sums.sum(axis=0)
    low, high = bootstrap(sums[:, 1] - sums[:, 0], sums[:, 2], seed)
    each = tuple(float(value) for value in (sums[:, 1] - sums[:, 0]) / sums[:, 2])
    delta = float((steered - base) / count)
    return DeltaLoss(delta, low, high, float(base / count), float(steered / count), len(scores), int(count), each)


def bootstrap(
    sums: Any, counts: Any, seed: int = 0, resamples: int = RESAMPLES, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of ``sum(sums) / sum(counts)`` when whole texts are drawn again with replacement."""
    sums, counts = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(sums), (resamples, len(sums)))
    values = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def divergence(
    lens: Core, prompt: Prompt, continuation: Sequence[int], *interventions: Intervention, raw: bool = False
) -> Divergence:
    """KL of next-token distributions at each token of a continuation, both ways, in nats.

    ``D(base || steered) = sum p_base (log p_base - log p_steered)`` over the whole vocabulary at temperature 1; the
    first value is for the distribution that the first continuation token is drawn from. Call it once with the
    baseline's continuation and once with the steered one.
    """
    return divergence_of(_continued(lens, prompt, continuation, interventions, raw))


def divergence_of(one: Score) -> Divergence:
    """The record of one score."""
    return Divergence(tuple(map(float, one.forward)), tuple(map(float, one.reverse)))


def perplexity(
    lens: Core, prompt: Prompt, continuation: Sequence[int], *interventions: Intervention, raw: bool = False
) -> tuple[float, float]:
    """Perplexity of a continuation, its own tokens only: under the unsteered model, and under the steered one.

    ``exp`` of the mean NLL of the continuation's tokens given the prompt. Beside the baseline's own it
    tells broken text; the steered model finds its own broken text likely.
    """
    one = _continued(lens, prompt, continuation, interventions, raw)
    return float(np.exp(one.base.mean())), float(np.exp(one.nll.mean()))


def read_back(
    lens: Core,
    prompt: Prompt,
    continuation: Sequence[int],
    sae: FeatureSource,
    feature: int,
    layer: int,
    *,
    site: str = "resid_post",
    raw: bool = False,
) -> ReadBack:
    """A feature's activations on a continuation that the unsteered model reads again.

    Read with steering on, a feature that is added to the residual is seen at once, whatever the text says;
    read again without, it is there only if the text is about it.
    """
    ids = lens.tokens.prompt(prompt, raw=raw).ids
    key = (lens.registry.decoder.index(layer), site)
    whole = (*ids, *lens.tokens.check(id_table(continuation).reshape(-1).tolist()))
    ((_, read),) = read_rows(lens, [whole], [key])
    values = sae.encode(read[key][len(ids) :])
    if not 0 <= feature < values.shape[-1]:
        raise LensError(f"There is no feature {feature}: this SAE has {values.shape[-1]}.")
    found = as_float(values[:, feature])
    return ReadBack(float(found.mean()), float(found.max()), tuple(map(float, found)))


def controls(
    interventions: Sequence[Intervention], k: int = 3, seed: int = 0
) -> tuple[tuple[Intervention, ...] | None, list[tuple[Intervention, ...]]]:
    """The steering with its sign turned (``None`` where no record has a sign), and ``k`` with random directions.

    Random directions are uniform on the sphere and take the place of each record's
    own, at the same scale or value: another for each record. Clamped features and ablations have no
    direction to replace and are refused.
    """
    interventions = as_records(interventions)
    turned = tuple(_flipped(record) for record in interventions)
    flipped = turned if any(new is not old for new, old in zip(turned, interventions, strict=True)) else None
    generator = np.random.default_rng(seed)
    drawn = [tuple(_random(record, generator) for record in interventions) for _ in range(k)]
    return flipped, drawn


def controlled(
    measure: Callable[[tuple[Intervention, ...]], float],
    interventions: Sequence[Intervention],
    k: int = 3,
    seed: int = 0,
) -> Controlled:
    """Any measure of a steering with its controls: ``measure(interventions)`` gives one number."""
    flipped, drawn = controls(interventions, k, seed)
    return Controlled(
        measure(tuple(interventions)),
        None if flipped is None else measure(flipped),
        tuple(measure(plan) for plan in drawn),
    )


def _continued(
    lens: Core, prompt: Prompt, continuation: Sequence[int], interventions: Sequence[Intervention], raw: bool
) -> Score:
    return score(lens, [continued(lens, prompt, continuation, (tuple(interventions),), raw=raw)])[0][0]


def continued(
    lens: Core,
    prompt: Prompt,
    continuation: Sequence[int],
    plans: tuple[tuple[Intervention, ...], ...],
    *,
    raw: bool = False,
) -> Item:
    """A prompt with its continuation, to be scored from the first token after the prompt."""
    encoded = lens.tokens.prompt(prompt, raw=raw)
    after = id_table(continuation).reshape(-1).tolist()
    if not after:
        raise LensError("The continuation has no tokens.", "Generate at least one.")
    ids = (*encoded.ids, *lens.tokens.check(after))
    return Item(ids, tuple(as_records(plan) for plan in plans), len(encoded.ids), encoded.spans)


def _flipped(record: Intervention) -> Intervention:
    if isinstance(record, (Add, NormMatch)):
        return replace(record, scale=-record.scale)
    if hasattr(record, "value") and not isinstance(record, ClampFeature):
        return replace(record, value=-record.value)  # type: ignore[call-arg]
    return record


def _random(record: Intervention, generator: np.random.Generator) -> Intervention:
    vector = getattr(record, "vector", None)
    if not isinstance(vector, SteeringVector) or isinstance(record, (Ablate, ClampFeature)):
        raise LensError(f"{record.id!r} has no direction that a random one could replace.", "Use k=0.")
    values = generator.normal(size=vector.d_model)
    values *= vector.norm / np.linalg.norm(values)
    drawn = SteeringVector.of(
        f"random for {vector.name}", values, vector.layer, site=vector.site, model=vector.model, origin=Origin("random")
    )
    return replace(record, vector=drawn)  # type: ignore[call-arg]
