"""What patching is asked and what it finds: pairs of prompts, the grid of effects, gradients, edges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from .errors import LensError
from .steering_vector import FloatArray

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Doubles = NDArray[np.float64]
else:
    Doubles = Any

Direction = Literal["denoise", "noise"]
"""Which run is patched into: the corrupted one with clean activations (denoise), or the other way round (noise)."""
By = Literal["layer", "position", "layer-position", "head", "head-position", "feature", "feature-position"]
Method = Literal["exact", "attribution"]
Text = str | Sequence[int]
Span = tuple[int, int] | str
"""Tokens of a prompt: half-open places ``(start, stop)``, or the words they are."""


@dataclass(frozen=True, slots=True)
class PromptPair:
    """Two prompts that differ in what is asked about, and the tokens whose logits tell them apart.

    ``clean`` and ``corrupted`` are texts, taken raw, or token ids. ``answer`` is the token that the clean prompt leads
    to, ``wrong`` the one that the corrupted prompt leads to: a text of one token (with its leading space) or an id;
    ``None`` where the metric needs none. ``spans`` name tokens of both: ``{"subject": ((1, 3), (1, 4))}`` or
    ``{"subject": ("The Eiffel Tower", "The Colosseum")}``. With them, only these tokens are patched, and the prompts
    may be of different lengths.
    """

    clean: Text
    corrupted: Text
    answer: int | str | None = None
    wrong: int | str | None = None
    spans: Mapping[str, tuple[Span, Span]] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True, eq=False)
class PatchGrid:
    """What each patch does to a metric, rows x columns, averaged over pairs.

    ``rows`` and ``columns`` are labels; ``layers``, ``heads`` and ``features`` say what a row or column is (empty
    where it is not one), ``tokens`` are those of the first pair's patched prompt, ``other_tokens`` those of the prompt
    that its activations come from. ``values`` is the metric under
    each patch, ``clean`` and ``corrupted`` what it is in the two runs. ``effect`` is ``(value - corrupted) / (clean -
    corrupted)``: 0 is the corrupted run, 1 the clean one, whichever run was patched; ``low`` and ``high`` bound its
    95 % percentile bootstrap interval over pairs (``None`` for one pair). ``random`` is the effect of the
    same patch with the change turned in a random direction at each token, its length kept; ``shuffled`` that
    of activations from another pair (``None`` for one pair, and where that was not measured). ``per_pair`` holds
    the metric, (pairs, rows, columns). With method ``attribution`` the values are first-order estimates.
    """

    model: str
    site: str
    by: By
    direction: Direction
    method: Method
    metric: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    clean: float
    corrupted: float
    values: Doubles
    effect: Doubles
    per_pair: Doubles
    low: Doubles | None = None
    high: Doubles | None = None
    random: Doubles | None = None
    shuffled: Doubles | None = None
    layers: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    features: tuple[int, ...] = ()
    tokens: tuple[str, ...] = ()
    n_pairs: int = 1
    other_tokens: tuple[str, ...] = ()

    @property
    def start(self) -> float:
        """The effect of patching nothing: 0 where the corrupted run is patched, 1 where the clean one is."""
        return 0.0 if self.direction == "denoise" else 1.0

    @property
    def noise_floor(self) -> float | None:
        """The largest move of the random patches from where the patched run stands: what chance alone does."""
        if self.random is None or not self.random.size:
            return None
        return float(abs(self.random - self.start).max())

    def strongest(self, k: int = 10) -> list[tuple[int, int]]:
        """Row and column of the ``k`` cells that move the metric most from where the patched run stands."""
        moved = abs(self.effect - self.start).reshape(-1)
        order = moved.argsort(kind="stable")[::-1][:k]
        width = self.effect.shape[1]
        return [(int(at) // width, int(at) % width) for at in order]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well estimates agree with exact effects over the same cells.

    ``pearson`` is the linear correlation, ``spearman`` that of ranks, ``slope`` the least-squares slope of exact on
    estimated through the origin, ``error`` the mean of ``|estimate - exact|`` over the mean of ``|exact|``. ``None``
    where either does not vary.
    """

    pearson: float | None
    spearman: float | None
    slope: float | None
    error: float | None
    n: int


@dataclass(frozen=True, slots=True, eq=False)
class SiteGradients:
    """A metric of one text and its gradient at sites.

    ``value`` is the metric; ``gradients[layer, site]`` is ``d metric / d tensor``, (tokens, width) in float32: by how
    much the metric grows for a unit added to each number of the tensor.
    """

    metric: str
    value: float
    gradients: Mapping[tuple[int, str], FloatArray]


@dataclass(frozen=True, slots=True, eq=False)
class IntegratedGradients:
    """Integrated gradients along the straight line from a baseline to the activations at one site.

    ``contributions`` (tokens, width) add up to ``value - baseline_value`` but for ``error``, what the quadrature with
    ``steps`` points leaves.
    """

    metric: str
    layer: int
    site: str
    contributions: FloatArray
    value: float
    baseline_value: float
    error: float
    steps: int

    @property
    def by_token(self) -> FloatArray:
        """The contribution of each token, (tokens,)."""
        found: FloatArray = self.contributions.sum(axis=-1)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class CausalTrace:
    """Causal tracing of one prompt: the probability of the answer with single states restored in a noised run.

    ``clean`` and ``noised`` are the probabilities of the answer without and with noise on the subject's embeddings;
    ``values`` (layers, tokens) those with the state of that layer and token restored (for ``attn_out`` and ``mlp_out``
    of a ``window`` of layers around it), means over ``samples`` of the noise; ``per_sample`` (samples, layers, tokens).
    ``sigma`` is the noise's standard deviation in the embedding's units. ``random`` is as ``values``, of a step as long
    as the one to the clean state in a random direction at each token (``None`` where it was not measured).
    """

    model: str
    site: str
    answer: int
    answer_text: str
    tokens: tuple[str, ...]
    subject: tuple[int, int]
    layers: tuple[int, ...]
    clean: float
    noised: float
    values: Doubles
    per_sample: Doubles
    sigma: float
    samples: int
    window: int
    random: Doubles | None = None

    @property
    def noise_floor(self) -> float | None:
        """The largest move of the random restorations from the noised run: what chance alone does."""
        return None if self.random is None else float(abs(self.random - self.noised).max())

    @property
    def total_effect(self) -> float:
        """What the noise takes away: ``clean - noised``."""
        return self.clean - self.noised

    @property
    def indirect_effect(self) -> Doubles:
        """What each restored state gives back: ``values - noised``, (layers, tokens)."""
        return self.values - self.noised


@dataclass(frozen=True, slots=True)
class Receiver:
    """What a path ends at: what an attention or MLP reads (before its norm), or the final residual (``logits``).

    ``q``, ``k`` and ``v`` are the queries, keys and values that a layer's attention makes of what it reads, of one
    ``head`` (of keys and values those that heads share count once) or of all (-1).
    """

    kind: Literal["attn", "mlp", "logits", "q", "k", "v"]
    layer: int = -1
    head: int = -1

    @property
    def label(self) -> str:
        """As ``attn 3``, ``q 3.1``, ``logits``."""
        if self.kind == "logits":
            return self.kind
        return f"{self.kind} {self.layer}" + (f".{self.head}" if self.head >= 0 else "")


@dataclass(frozen=True, slots=True)
class Sender:
    """What a path begins at: the embedding, an attention or MLP, or one head of an attention."""

    kind: Literal["embed", "attn", "mlp", "head"]
    layer: int = -1
    head: int = -1

    @property
    def label(self) -> str:
        """As ``embed``, ``attn 3``, ``mlp 3``, ``head 3.1``."""
        if self.kind == "embed":
            return "embed"
        return f"head {self.layer}.{self.head}" if self.kind == "head" else f"{self.kind} {self.layer}"


@dataclass(frozen=True, slots=True, eq=False)
class PathEffects:
    """What the direct paths from each sender to a set of receivers, all at once, carry of a metric.

    ``raw`` (senders,) is the change of the metric; ``effect`` is ``(base + raw - corrupted) / (clean - corrupted)``.
    ``random`` is the effect of changes as long in random directions; of several pairs ``raw`` is the mean, the effects
    are ratios of sums, ``low`` and ``high`` bound the 95 % percentile bootstrap interval of ``effect``.
    """

    model: str
    metric: str
    direction: Direction
    senders: tuple[Sender, ...]
    receivers: tuple[Receiver, ...]
    raw: Doubles
    effect: Doubles
    clean: float
    corrupted: float
    random: Doubles | None = None
    low: Doubles | None = None
    high: Doubles | None = None
    n_pairs: int = 1

    @property
    def start(self) -> float:
        """The effect of patching nothing: 0 where the corrupted run is patched, 1 where the clean one is."""
        return 0.0 if self.direction == "denoise" else 1.0


@dataclass(frozen=True, slots=True, eq=False)
class EdgeGrid:
    """What each edge from a sender to a receiver carries of a metric: (senders, receivers), NaN where there is no edge.

    ``raw`` is the change of the metric when that edge alone carries the other run's value, or an estimate of it;
    ``effect`` is ``(base + raw - corrupted) / (clean - corrupted)``, 0 the corrupted run and 1 the clean one.
    ``random`` is the effect of changes as long in random directions; of several pairs ``raw`` is the mean, the effects
    are ratios of sums, ``low`` and ``high`` bound the 95 % percentile bootstrap interval of ``effect``.
    """

    model: str
    metric: str
    direction: Direction
    method: Method
    senders: tuple[Sender, ...]
    receivers: tuple[Receiver, ...]
    raw: Doubles
    effect: Doubles
    clean: float
    corrupted: float
    random: Doubles | None = None
    low: Doubles | None = None
    high: Doubles | None = None
    n_pairs: int = 1

    def strongest(self, k: int = 10) -> list[tuple[Sender, Receiver, float]]:
        """The ``k`` edges of largest ``|raw|`` with it, largest first."""
        found = [
            (abs(float(self.raw[i, j])), sender, receiver, float(self.raw[i, j]))
            for i, sender in enumerate(self.senders)
            for j, receiver in enumerate(self.receivers)
            if self.raw[i, j] == self.raw[i, j]
        ]
        found.sort(key=lambda item: -item[0])
        return [(sender, receiver, value) for _, sender, receiver, value in found[:k]]


def agreement(estimated: Doubles, exact: Doubles) -> Agreement:
    """How well estimated changes agree with exact ones, cell by cell; cells that are not numbers in both are left out.

    Args:
        estimated: Of any shape: changes of the metric.
        exact: Of the same shape.

    Raises:
        LensError: For different shapes.
    """
    import numpy as np

    left, right = np.asarray(estimated, np.float64), np.asarray(exact, np.float64)
    if left.shape != right.shape:
        raise LensError(f"Effects of shapes {left.shape} and {right.shape} cannot be compared.", "Use the same cells.")
    both = np.isfinite(left) & np.isfinite(right)
    left, right = left[both], right[both]
    slope = float(left @ right / (left @ left)) if left.any() else None
    error = float(np.abs(left - right).mean() / np.abs(right).mean()) if right.any() else None
    return Agreement(_correlation(left, right), _correlation(_ranks(left), _ranks(right)), slope, error, left.size)


def _correlation(left: Doubles, right: Doubles) -> float | None:
    import numpy as np

    if left.size < 2 or np.ptp(left) == 0 or np.ptp(right) == 0:
        return None
    return float(np.corrcoef(left, right)[0, 1])


def _ranks(values: Doubles) -> Doubles:
    """Ranks from 0; equal values share the mean of theirs."""
    import numpy as np

    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    found: Doubles = (ends - (counts + 1) / 2.0)[inverse]
    return found
