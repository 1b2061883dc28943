"""What a steering does and costs, as numbers: loss, divergence, perplexity, repetition, and controls for them.

The 64 short texts on which a loss is measured where no others are given are written for this library: stories, facts,
talk, advice, letters, news, reasons and code, in groups of one of each kind, so that any stretch of them is mixed.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lens_tui.records import Ablate, Add, ClampFeature, Intervention, LensError, NormMatch, Origin, SteeringVector
from lens_tui.records.interventions import as_records
from lens_tui.records.measures import Controlled, Degeneration, DeltaLoss, Divergence, ReadBack, distinct

from ..forward import Core, as_float
from ..hooks.readings import FeatureSource
from ..texts import read_rows
from ..tokens import id_table
from .scores import Score, ScoredText, score, unsteered

if TYPE_CHECKING:
    from ..tokens import Prompt


_STORIES = """\
The old ferryman tied his boat to the post and counted the coins twice before he went up the hill to sleep.
When the lamp went out, Maren felt along the wall for the door and heard somebody breathing on the other side.
My grandmother kept a jar of buttons on the shelf, and each of them belonged to a coat that nobody wore any more.
The dog followed the postman for three streets, sat down in front of the bakery and would not move until evening.
After the storm the children found a crate on the beach with nothing in it but straw and one blue glass bottle.
He had walked so long in the snow that he no longer felt his feet, yet he did not dare to stop and light a fire.
The train left at nine, but Tomas was still standing on the platform, holding the letter he had meant to give her.
Nobody in the village could say who had planted the pear tree, although everybody ate from it in September."""

_FACTS = """\
Copper conducts electricity better than iron, which is why it is drawn into wire for most household cables.
The river rises in the northern mountains, crosses two lakes and reaches the sea after about four hundred kilometres.
A honeybee visits between fifty and a hundred flowers on one flight before it returns to the hive with its load.
Glass is made by melting sand with soda and lime at a high temperature and letting the mixture cool without crystals.
The town received its charter in the thirteenth century and was for a long time the largest market for wool in the area.
Sound travels faster in water than in air because the molecules of water are packed much more closely together.
Bread rises when yeast turns part of the sugar in the dough into carbon dioxide, which is caught by the gluten.
The moon always shows the same side to the earth, since it turns once about its axis in the time of one orbit."""

_TALK = """\
"Are you coming with us on Saturday?" "I would like to, but my sister needs the car, so it depends on the bus."
"You said it would take an hour." "I said an hour if nothing went wrong, and then the pump stopped working."
"What did the doctor tell you?" "That I should sleep more and worry less, which is easy enough for her to say."
"Have you seen my keys anywhere?" "They were next to the telephone this morning, under the newspaper, I think."
"How much do you want for the table?" "Forty, and I will bring it to your house, because I have the van today."
"Why did you leave so early last night?" "To be honest, I was tired of hearing the same story for the third time."
"Do we have enough milk for the pancakes?" "Half a bottle, so either make fewer of them or go to the shop now."
"Is this seat taken?" "No, please sit down, my friend has just sent a message that he has missed his train." """

_ADVICE = """\
Before you paint the door, take off the handle, clean the surface with warm water and let it dry for a whole day.
To save the file under another name, open the menu, choose the second entry and type the name you want to use.
Cut the onions finely, fry them slowly in butter until they are golden, and only then add the flour and the stock.
If the engine does not start, check that there is fuel in the tank and that the battery contacts are not loose.
Water the tomatoes early in the morning, and always at the root, because wet leaves are more likely to fall ill.
Keep your receipts for at least two years, sorted by month, so that you can show them when somebody asks.
When you meet a group of riders on a narrow path, slow down, keep to one side and wait until they have passed.
Read the whole contract before you sign it, and ask about every sentence that you would not be able to explain."""

_LETTERS = """\
Dear Mr Halloran, thank you for your letter of the fourth; I am sorry to hear that the parcel arrived in pieces.
Hi Ana, the meeting has been moved to Thursday at two, same room, and please bring the figures for last quarter.
To whom it may concern: Ms Okafor worked in our accounts office for six years and was always careful and punctual.
Dear Aunt Lise, the weather here is terrible, the food is good, and I have already made friends with the neighbours.
Dear customer, your order has left our warehouse and should reach you within three to five working days.
Hello Jun, could you look at the second paragraph again? I think the reason we give there is not the real one.
Dear all, the kitchen on the third floor will be closed next week while the water pipes are being replaced.
Dear editor, your article on the new bridge forgets to mention who is going to pay for it in the coming years."""

_NEWS = """\
The council voted on Tuesday to keep the library open, although the money for it is promised for one year only.
Prices for wheat fell for the third week in a row after reports of an unexpectedly large harvest in the south.
A spokesman for the railway said that the repairs would be finished by the end of the month at the latest.
The home side won by two goals to one after a late penalty that the visitors' coach called a gift.
Firefighters needed almost six hours to bring the blaze in the furniture warehouse under control; no one was hurt.
The museum has bought a small painting that had hung in a dentist's waiting room for more than thirty years.
Researchers counted fewer swallows this spring than in any year since the survey was begun in the nineties.
The minister declined to comment on the figures and said that a full report would be published after the summer."""

_REASONS = """\
If all the boxes in the cellar are locked and this box is not locked, then it cannot be one of those in the cellar.
A farmer has twelve hens and sells a third of them; after buying five more she has thirteen hens on her farm.
It is often said that travel broadens the mind, but it depends a great deal on what the traveller pays attention to.
The first argument fails because it assumes what it sets out to prove, namely that the witness told the truth.
Two of the three switches do nothing, so the quickest way to find the right one is to try them from the left.
We cannot conclude from one cold winter that the climate is not changing, any more than from one hot summer that it is.
Since the square of an even number is even, a number whose square is odd must itself be odd as well.
Either the clock is slow or the train is early, and the clock was set by the radio only this morning."""

_CODE = """\
def total(prices, rate):
    net = sum(prices)
    return round(net * (1 + rate), 2)
---
for line in open("names.txt"):
    first, last = line.strip().split(",")
    print(last.upper(), first)
---
SELECT city, COUNT(*) AS visits FROM trips WHERE year = 2019 GROUP BY city ORDER BY visits DESC LIMIT 10;
---
if (count > limit) {
    console.log("Too many entries: " + count);
    return null;
}
---
{"name": "harbour", "depth": 12.5, "open": true, "ships": ["Alma", "Nord", "Kite"]}
---
while queue:
    node = queue.pop(0)
    queue.extend(child for child in node.children if child not in seen)
---
<ul class="menu"><li><a href="/">Home</a></li><li><a href="/about">About us</a></li></ul>
---
git commit -m "Fix the date in the footer" && git push origin main"""

_KINDS = [kind.splitlines() for kind in (_STORIES, _FACTS, _TALK, _ADVICE, _LETTERS, _NEWS, _REASONS)]
_GROUPS = list(zip(*_KINDS, _CODE.split("\n---\n"), strict=True))
# Every other group backwards, so that the even and the odd texts are of the same kinds too.
LOSS_TEXTS: tuple[str, ...] = tuple(
    text.strip() for at, group in enumerate(_GROUPS) for text in (group[::-1] if at % 2 else group)
)
FEW_TEXTS = LOSS_TEXTS[:16]
"""Two of each kind, for what reads them again and again."""


MAX_PERIOD = 64


def degeneration(ids: Sequence[int], text: str) -> Degeneration:
    """The numbers of :class:`~lens_tui.records.measures.Degeneration` for a continuation."""
    return Degeneration(
        len(ids),
        distinct(ids, 1),
        distinct(ids, 2),
        distinct(ids, 3),
        longest_repeat(ids),
        repeat_run(ids),
        ratio(text),
    )


def longest_repeat(ids: Sequence[int]) -> int:
    """The length of the longest n-gram that occurs at least twice; occurrences may overlap."""
    low, high = 0, len(ids)
    while low < high - 1:  # a repeated n-gram holds a repeated (n-1)-gram, so that one can bisect
        middle = (low + high) // 2
        if _repeats(ids, middle):
            low = middle
        else:
            high = middle
    return low


def repeat_run(ids: Sequence[int], longest_period: int = MAX_PERIOD) -> int:
    """Tokens of the longest stretch made of one block of up to ``longest_period`` tokens, at least twice in a row."""
    best = 0
    for period in range(1, min(longest_period, len(ids) // 2) + 1):
        run = 0
        for at in range(period, len(ids)):
            run = run + 1 if ids[at] == ids[at - period] else 0
            if run >= period:
                best = max(best, run + period)
    return best


def ratio(text: str) -> float:
    """UTF-8 bytes over bytes after zlib at its strongest; 1.0 for an empty text."""
    data = text.encode("utf-8", "surrogatepass")
    return len(data) / len(zlib.compress(data, 9)) if data else 1.0


def _repeats(ids: Sequence[int], n: int) -> bool:
    seen = set()
    for at in range(len(ids) - n + 1):
        gram = tuple(ids[at : at + n])
        if gram in seen:
            return True
        seen.add(gram)
    return False


RESAMPLES = 2000


def delta_loss(
    lens: Core,
    *interventions: Intervention,
    texts: Sequence[Prompt] | None = None,
    seed: int = 0,
) -> DeltaLoss:
    """How much worse a steering predicts a text set: mean next-token NLL, steered minus unsteered, in nats a token.

    The mean is over all predicted tokens of all texts (the first of each is not predicted). The interval is the
    percentile bootstrap over texts, 2000 resamples of whole texts, since the tokens of one text are not independent.

    Args:
        lens: The model.
        interventions: The steering.
        texts: By default ``LOSS_TEXTS``, 64 of many kinds; raw, special tokens as the tokenizer puts them. For
            positions, each counts as generated from its first token on.
        seed: Of the resamples.

    Raises:
        LensError: For a text without a token to predict, and for a steering that touches none that a scored one
            follows.
        NotFinite: For a loss that is not a number, with the layer where that begins.
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

    Args:
        lens: The model.
        plans: The steerings.
        texts: By default ``LOSS_TEXTS``.
        seed: Of the resamples.

    Returns:
        One record a steering, in their order.
    """
    items = items_of(lens, LOSS_TEXTS if texts is None else texts, plans)
    return losses_of(score(lens, items, unsteered(lens, items)), seed)


def items_of(lens: Core, texts: Sequence[Prompt], plans: Sequence[tuple[Intervention, ...]]) -> list[ScoredText]:
    """The texts as items whose every token but the first is scored."""
    if isinstance(texts, (str, bytes)) or not len(texts):
        raise LensError("A loss needs a list of texts, at least one text.", "Give texts=[...].")
    plans = [as_records(plan) for plan in plans]
    return [ScoredText(lens.tokens.prompt(text, raw=True).ids, tuple(plans)) for text in texts]


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
    """Percentile interval of ``sum(sums) / sum(counts)`` when whole texts are drawn again with replacement.

    Args:
        sums: ``(texts,)``.
        counts: ``(texts,)``.
        seed: Of the resamples.
        resamples: How many.
        confidence: Share of the resamples inside the interval.

    Returns:
        Its two ends.
    """
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

    ``D(base || steered) = sum p_base (log p_base - log p_steered)`` over the whole vocabulary at temperature 1. Call
    it once with the baseline's continuation and once with the steered one.

    Args:
        lens: The model.
        prompt: A text, chat messages or token ids.
        continuation: Token ids.
        interventions: The steering.
        raw: Do not apply the chat template.

    Returns:
        Both ways, a value for each token of the continuation: the first is for the distribution that it is drawn
        from.
    """
    return divergence_of(_continued(lens, prompt, continuation, interventions, raw))


def divergence_of(one: Score) -> Divergence:
    """The record of one score."""
    return Divergence(tuple(map(float, one.forward)), tuple(map(float, one.reverse)))


def perplexity(
    lens: Core, prompt: Prompt, continuation: Sequence[int], *interventions: Intervention, raw: bool = False
) -> tuple[float, float]:
    """Perplexity of a continuation, its own tokens only: ``exp`` of their mean NLL given the prompt.

    Beside the baseline's own it tells broken text; the steered model finds its own broken text likely.

    Args:
        lens: The model.
        prompt: A text, chat messages or token ids.
        continuation: Token ids.
        interventions: The steering.
        raw: Do not apply the chat template.

    Returns:
        Under the unsteered model, and under the steered one.
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

    Read with steering on, a feature that is added to the residual is seen at once, whatever the text says; read again
    without, it is there only if the text is about it.

    Args:
        lens: The model.
        prompt: A text, chat messages or token ids.
        continuation: Token ids.
        sae: The feature's SAE.
        feature: Its number.
        layer: The layer that the SAE reads.
        site: The site that it reads.
        raw: Do not apply the chat template.

    Returns:
        Mean, maximum, and each token's activation.

    Raises:
        LensError: For a feature that the SAE does not have.
    """
    after = lens.tokens.check(id_table(continuation).reshape(-1).tolist())
    ids = lens.tokens.prompt(prompt, raw=raw).ids
    return read_back_of(lens, [(ids, after)], sae, feature, layer, site=site)[0]


def read_back_of(
    lens: Core,
    texts: Sequence[tuple[Sequence[int], Sequence[int]]],
    sae: FeatureSource,
    feature: int,
    layer: int,
    *,
    site: str = "resid_post",
) -> list[ReadBack]:
    """As :func:`read_back`, for several texts side by side.

    Args:
        lens: The model.
        texts: Of each the token ids of its prompt and of what follows.
        sae: The feature's SAE.
        feature: Its number.
        layer: The layer that the SAE reads.
        site: The site that it reads.
    """
    key = (lens.registry.decoder.index(layer), site)
    found: dict[int, ReadBack] = {}
    for at, read in read_rows(lens, [(*ids, *after) for ids, after in texts], [key]):
        values = sae.encode(read[key][len(texts[at][0]) :])
        if not 0 <= feature < values.shape[-1]:
            raise LensError(f"There is no feature {feature}: this SAE has {values.shape[-1]}.")
        one = as_float(values[:, feature])
        found[at] = ReadBack(float(one.mean()), float(one.max()), tuple(map(float, one)))
    return [found[at] for at in range(len(texts))]


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
    """Any measure of a steering with its controls.

    Args:
        measure: ``measure(interventions)`` gives one number.
        interventions: The steering.
        k: Random directions of the same length.
        seed: Of these directions.

    Returns:
        The number of the steering, of its sign turned (``None`` where no record has one), and of each random
        direction.
    """
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
) -> ScoredText:
    """A prompt with its continuation, to be scored from the first token after the prompt.

    Args:
        lens: The model.
        prompt: A text, chat messages or token ids.
        continuation: Token ids, at least one.
        plans: The steerings to score it under.
        raw: Do not apply the chat template.

    Raises:
        LensError: For a continuation that is a text, and for one without tokens.
    """
    if isinstance(continuation, str):  # its tokens depend on what stands before it
        raise LensError("The continuation is a text.", "Give the token ids that were generated, as `run.token_ids`.")
    encoded = lens.tokens.prompt(prompt, raw=raw)
    after = id_table(continuation).reshape(-1).tolist()
    if not after:
        raise LensError("The continuation has no tokens.", "Generate at least one.")
    ids = (*encoded.ids, *lens.tokens.check(after))
    return ScoredText(ids, tuple(as_records(plan) for plan in plans), len(encoded.ids), encoded.spans)


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
