"""What is known of features, as plain data: a feature's page, and the rows of lists that features are found by."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .steering_vector import TokenWeight

if TYPE_CHECKING:
    from .labels import Label


DENSE = 0.2
"""The share of an index's tokens above which a feature is dense: it says little of any one token."""


@dataclass(frozen=True, slots=True)
class FeatureExample:
    """A stretch of text on which a feature is active: its activation on each token, the strongest one at ``peak``.

    ``document`` and ``offset`` name the token at ``peak`` in the corpus; both are -1 where that is not known.
    """

    document: int
    offset: int
    value: float
    peak: int
    tokens: tuple[str, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class FeatureActivity:
    """Where and how strongly a feature is active in a corpus.

    An index says it all, and ``key`` names the index. What another tool's dashboard says has no ``key``, names the tool
    as ``corpus``, and leaves most of the numbers ``None``. ``mean`` and ``std`` are over the tokens where the feature
    is active; ``histogram`` counts those between neighbours of ``edges``. ``samples`` are examples drawn at random
    from each octave of activation, by its lower edge, the strongest octave first.
    """

    corpus: str
    key: str = ""
    counted_tokens: int | None = None
    notes: tuple[str, ...] = ()
    count: int | None = None
    density: float | None = None
    max: float | None = None
    mean: float | None = None
    std: float | None = None
    histogram: tuple[int, ...] = ()
    edges: tuple[float, ...] = ()
    examples: tuple[FeatureExample, ...] = ()
    samples: tuple[tuple[float, tuple[FeatureExample, ...]], ...] = ()


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A feature whose decoder direction is like another's, by cosine."""

    feature: int
    cosine: float
    label: str | None = None


@dataclass(frozen=True, slots=True)
class CoActive:
    """A feature that fires where another does, over the whole corpus.

    ``both`` counts tokens with both, ``given`` is P(this | the other),
    ``jaccard`` both / either, ``lift`` how many times more often than if the
    two were independent. Estimated from ``n_used`` of the other's tokens.
    """

    feature: int
    both: float
    given: float
    jaccard: float
    lift: float
    n_used: int
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Promoter:
    """A feature whose decoder direction pushes a token: ``value`` logits a unit, ``place`` 0 is its strongest token."""

    feature: int
    token_id: int
    value: float
    place: int
    token: str = ""
    label: str | None = None


@dataclass(frozen=True, slots=True)
class ContrastedFeature:
    """How well a feature tells texts A from texts B.

    ``chosen`` is its score on the half it was chosen on (optimistic: it won there),
    ``held_out`` on the other half, which is the one to believe. Scores are the
    AUC, P(a > b) + P(a = b) / 2 (0.5 is chance, below it the feature is stronger
    in B), or the difference of means over the pooled standard deviation.
    ``chance`` is the standard deviation of the held-out AUC of a feature that
    tells nothing. Means and shares (of texts where it is active) are held out.

    ``auc`` and ``effect`` are both scores on the held-out half, whichever was the measure. ``p`` is how often the best
    of all the features listed scores at least as well where the held-out texts are dealt to the two sides at random,
    and ``null`` what that best one reaches in one deal of twenty.
    """

    feature: int
    chosen: float
    held_out: float
    chance: float
    mean_a: float
    mean_b: float
    active_a: float
    active_b: float
    auc: float = 0.5
    effect: float = 0.0
    p: float = 1.0
    null: float = 0.5
    label: str | None = None


@dataclass(frozen=True, slots=True)
class FoundFeature:
    """A feature that was looked for: what it is called and why it was found (``label`` or ``promotes ‘sea’``)."""

    feature: int
    name: str
    why: str


@dataclass(frozen=True, slots=True)
class FeatureSearch:
    """Features by words: by their ``labels``, and those ``promoting`` one of the words as a token, best first.

    ``tokens`` are the words that are single tokens, by id. ``promoting`` is ``None`` where no index could be asked.
    """

    model: str
    sae: str
    sae_id: str
    words: str
    labels: tuple[Label, ...]
    tokens: dict[int, str]
    convention: str
    promoting: tuple[Promoter, ...] | None

    def plain(self) -> dict[str, Any]:
        """What ``search --json`` prints."""
        return asdict(self) | {"tokens": [{"id": token, "text": text} for token, text in self.tokens.items()]}


@dataclass(frozen=True, slots=True)
class FeatureFacts:
    """Everything known of one feature. All strings are safe to show.

    ``labels`` are all valid ones, yours first. ``promoted`` and ``suppressed`` are logits per unit of the unit decoder
    direction under ``convention`` (``norm``: the final norm's gain is folded in, ``raw``: it is not), which is ``None``
    where the SAE does not write to the residual stream. ``index`` is what the index says; without one, ``dashboard`` is
    what another tool's dashboard says, if one was imported. ``neighbours`` are ``None`` where they were not asked for,
    ``co_active`` too where the index is not full. ``problem`` says why an index that is there says nothing.
    """

    model: str
    sae: str
    sae_id: str
    layer: int
    site: str
    feature: int
    labels: tuple[Label, ...] = ()
    description: str | None = None
    convention: str | None = None
    promoted: tuple[TokenWeight, ...] = ()
    suppressed: tuple[TokenWeight, ...] = ()
    index: FeatureActivity | None = None
    neighbours: tuple[Neighbour, ...] | None = None
    co_active: tuple[CoActive, ...] | None = None
    dashboard: FeatureActivity | None = None
    problem: str = ""

    @property
    def label(self) -> Label | None:
        """The first label: yours, or else the best of the others."""
        return self.labels[0] if self.labels else None

    @property
    def activity(self) -> FeatureActivity | None:
        """Where it is active, by the index or else by another tool."""
        return self.index or self.dashboard

    def plain(self) -> dict[str, Any]:
        """What ``feature --json`` prints."""
        page = asdict(self)
        del page["dashboard"], page["problem"]
        if self.convention is None:
            page["promoted"] = page["suppressed"] = None
        if page["index"] is not None:
            del page["index"]["samples"]
        return page
