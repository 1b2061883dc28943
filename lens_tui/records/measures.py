"""What a steering does, in numbers, and what readouts of a model give: each field says what it is and in which unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from .errors import LensError
from .glossary import by_id
from .steering_vector import FloatArray

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    IntArray = NDArray[np.int32]
else:
    IntArray = Any

FIRST = 20
"""Tokens of a continuation over which a mean KL is taken."""


@dataclass(frozen=True, slots=True)
class DeltaLoss:
    """Mean next-token NLL of a text set, steered minus unsteered, in nats a token.

    ``low`` and ``high`` bound the 95 % percentile bootstrap interval over texts;
    ``per_text`` holds the difference of each text's own mean.
    """

    delta: float
    low: float
    high: float
    base: float
    steered: float
    n_texts: int
    n_tokens: int
    per_text: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Divergence:
    """KL in nats at each token of a teacher-forced continuation: ``forward`` D(base || steered), ``reverse`` the other.

    The means are over the first 20 tokens, the maxima over all.
    """

    forward: tuple[float, ...]
    reverse: tuple[float, ...]

    @property
    def mean_forward(self) -> float:
        """Mean D(base || steered) of the first 20 tokens."""
        return _mean(self.forward[:FIRST])

    @property
    def mean_reverse(self) -> float:
        """Mean D(steered || base) of the first 20 tokens."""
        return _mean(self.reverse[:FIRST])

    @property
    def max_forward(self) -> float:
        """Largest D(base || steered)."""
        return max(self.forward)

    @property
    def max_reverse(self) -> float:
        """Largest D(steered || base)."""
        return max(self.reverse)


@dataclass(frozen=True, slots=True)
class Degeneration:
    """How repetitive a continuation is.

    ``distinct_n`` is the share of n-grams that are different (Li et al. 2016, 1510.03055), ``None``
    for fewer than n tokens. ``longest_repeat`` is the length of the longest n-gram that
    occurs twice (it may overlap itself), ``repeat_run`` the tokens of the longest stretch that is one
    block of at most 64 tokens said again and again. ``zlib_ratio`` is bytes of text over compressed bytes: near 1
    to 2 for prose of this length, far more for loops.
    """

    n_tokens: int
    distinct_1: float | None
    distinct_2: float | None
    distinct_3: float | None
    longest_repeat: int
    repeat_run: int
    zlib_ratio: float


@dataclass(frozen=True, slots=True)
class ReadBack:
    """Activations of a feature over a continuation that is read again with steering off."""

    mean: float
    max: float
    per_token: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Controlled:
    """A measure of a steering, of the same with its sign turned, and of random directions of the same length.

    ``excess`` is the effect minus the mean of the random ones. ``flipped`` is ``None`` where a sign has no meaning.
    """

    effect: float
    flipped: float | None
    random: tuple[float, ...]

    @property
    def excess(self) -> float | None:
        """Effect minus the mean over random directions."""
        return self.effect - _mean(self.random) if self.random else None


@dataclass(frozen=True, slots=True)
class Curve:
    """One quantity against the scale, scales ascending.

    ``knee`` is the scale at which the curve bends most away from 0, ``None`` where it
    does not bend; of two branches, the one of larger reach. ``reversals`` are pairs of neighbouring scales between
    which the quantity falls although the scale moves away from 0.
    """

    name: str
    scales: tuple[float, ...]
    values: tuple[float, ...]
    knee: float | None = None
    reversals: tuple[tuple[float, float], ...] = ()

    @property
    def monotone(self) -> bool:
        """Whether the quantity never falls as the scale moves away from 0."""
        return not self.reversals


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What a model answers to questions with two answers each, of which one shows the behaviour.

    ``difference`` is the mean over questions of ``log p(matching) - log p(other)`` in nats, at the first token in which
    the two answers differ; ``low`` and ``high`` bound its 95 % percentile bootstrap interval over questions. ``share``
    is the mean of ``p(matching) / (p(matching) + p(other))``, ``chosen`` the share of questions at which the matching
    answer is the likelier one (a tie counts half). ``n`` counts questions.
    """

    difference: float
    low: float
    high: float
    share: float
    chosen: float
    n: int


@dataclass(frozen=True, slots=True)
class DosePoint:
    """All that is measured at one scale; perplexities are of the continuation's tokens only.

    ``dose`` is the measured mean ``||delta h|| / ||h||`` of the run. ``on_baseline`` and ``on_own`` are KL along
    the baseline's continuation and along this one. ``ppl_unsteered`` is how surprising the unsteered model finds the
    continuation, ``ppl_steered`` how surprising the steered one finds it: a small second and a large
    first is text that is confidently broken. ``random_delta`` and ``random_kl`` are the same measures for random
    directions of the same length, and ``flipped_delta`` and ``flipped_kl`` with the sign turned. ``behaviour`` is how
    likely the answers are that show it, where questions were asked.
    """

    scale: float
    dose: float | None
    delta_loss: DeltaLoss
    on_baseline: Divergence
    on_own: Divergence
    ppl_unsteered: float
    ppl_steered: float
    degeneration: Degeneration
    text: str
    token_ids: tuple[int, ...]
    reason: str
    read_back: ReadBack | None = None
    random_delta: tuple[float, ...] = ()
    random_kl: tuple[float, ...] = ()
    flipped_delta: float | None = None
    flipped_kl: float | None = None
    behaviour: Behaviour | None = None


@dataclass(frozen=True, slots=True)
class DoseResponse:
    """Points by ascending scale, the baseline's own numbers, and curves by name."""

    points: tuple[DosePoint, ...]
    baseline_text: str
    baseline_ids: tuple[int, ...]
    baseline_ppl: float
    baseline_degeneration: Degeneration
    curves: tuple[Curve, ...] = ()
    baseline_read_back: ReadBack | None = None
    baseline_behaviour: Behaviour | None = None

    def curve(self, name: str) -> Curve:
        """The curve of a name. Raises ``KeyError``."""
        return {curve.name: curve for curve in self.curves}[name]


@dataclass(frozen=True, slots=True)
class ScaleSearch:
    """The scale that reaches a target, and how it was found.

    ``value`` is the quantity at ``scale`` on the texts it was chosen on, ``held_out`` the same on the other half
    (``None`` if there was none). ``bracket`` holds the last scales below and above. ``curve`` is every scale
    that was tried.
    ``reached`` is false if no scale up to the limit comes to the target (the scale is then the limit, for a behaviour
    the nearest that was tried), or if the smallest that was tried is above it (the scale is then that one). ``notes``
    are sentences on it.
    """

    quantity: str
    target: float
    scale: float
    value: float
    held_out: float | None
    bracket: tuple[float, float]
    curve: Curve
    reached: bool = True
    evaluations: int = 0
    notes: tuple[str, ...] = field(default=())


MOST_LENGTHS = 10.0
"""A push of more than so many times the residual's length is asked back: far less makes noise of a text."""


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def distinct(ids: Sequence[int], n: int) -> float | None:
    """Different n-grams over all n-grams (Li et al. 2016, 1510.03055); ``None`` for fewer than n tokens."""
    grams = [tuple(ids[at : at + n]) for at in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


_MEASURED = (
    "delta_loss", "kl", "ppl_unsteered", "distinct_2", "read_back", "behaviour", "random", "relative_norm", "knee"
)  # fmt: skip
DEFINITIONS: dict[str, tuple[str, str]] = {name: (by_id(name).name, by_id(name).means) for name in _MEASURED}
"""By the name of the curve: what it is called on the screen, and what it is."""

OWN_KL = "KL own: mean D(steered ‖ plain) over the first 20 tokens of the steered text, in nats, as in compare."

QUANTITIES: dict[str, tuple[str, str, float]] = {
    "delta_loss": ("Δ loss", "nat", 0.3),
    "kl": ("KL", "nat", 1.0),
    "relative_norm": ("‖Δh‖/‖h‖", "", 0.1),
    "behaviour": ("behaviour", "nat", 1.0),
}
"""What a scale can be searched by: how it is called, its unit, and the target where none is named."""

MULTIPLES = (-4.0, -2.0, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
"""The scales of a dose-response where none are named, as multiples of the reference."""


PartKind = Literal["embed", "attn", "mlp", "block", "steer"]


@dataclass(frozen=True, slots=True, eq=False)
class LogitLens:
    """What every layer would predict at every token of a text, by the model's own last steps.

    ``layers`` has ``n`` entries (counted from 0), the text ``t`` tokens. ``top_ids`` and ``top_logprobs`` ``(n, t, k)``
    are the most probable next tokens, the best first. ``target_ids`` ``(t,)`` is the token that is followed at each
    position, ``target_ranks`` ``(n, t)`` how many tokens are more probable (0: it is the best) and
    ``target_logprobs`` ``(n, t)`` its log-probability. ``entropy`` ``(n, t)`` is that of the layer's distribution and
    ``kl`` ``(n, t)`` is D_KL(last layer || this layer). All in nats, from float32 logits after soft-capping.
    ``texts`` holds the display form of every token id that occurs, safe to show. ``final_ids`` ``(t,)`` is the model's
    own most probable next token. ``method`` is ``logit``, or ``jacobian`` where a layer's residual went through its
    matrix of a Jacobian lens first.
    """

    model: str
    site: str
    layers: tuple[int, ...]
    token_ids: tuple[int, ...]
    top_ids: IntArray
    top_logprobs: FloatArray
    target_ids: IntArray
    target_ranks: IntArray
    target_logprobs: FloatArray
    entropy: FloatArray
    kl: FloatArray
    texts: dict[int, str] = field(default_factory=dict)
    final_ids: IntArray | None = None
    method: Literal["logit", "jacobian"] = "logit"

    @property
    def agreement(self) -> FloatArray:
        """Of each layer the share of tokens whose most probable next token is that of the model's output, ``(n,)``."""
        import numpy as np

        if self.final_ids is None:
            raise LensError("This readout does not say what the model's output is.", "Read the text again.")
        return np.asarray((self.top_ids[:, :, 0] == self.final_ids).mean(axis=1), np.float32)

    @property
    def target_probabilities(self) -> FloatArray:
        """Probability of the followed token, ``(n, t)``."""
        import numpy as np

        return np.exp(self.target_logprobs)


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that writes to the residual stream: the embedding, a layer's attention or MLP, or a whole block.

    ``attn`` is whatever mixes tokens there (attention, convolution, state space). A ``block`` is a layer whose
    attention and MLP cannot be told apart; ``why`` says what stood in the way. ``steer`` is what interventions add to
    the residual itself at a layer. ``layer`` is -1 for the embedding.
    """

    kind: PartKind
    layer: int = -1
    why: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class HeadAttribution:
    """What each head of a layer's attention adds to the logit of a token, at ``p`` positions, in float32.

    ``values`` ``(heads, p)`` with ``bias`` ``(p,)`` (of the output projection, which is no head's) and ``rest``
    ``(p,)`` (rounding, and what steering adds behind the heads) sum to the layer's ``attn`` part. Where the heads
    cannot be told apart ``why`` says so, and ``values`` has no rows.
    """

    layer: int
    values: FloatArray
    bias: FloatArray
    rest: FloatArray
    why: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class LogitAttribution:
    """What each part of a model adds to the logit of a token, at ``p`` positions of a text, in float32.

    ``values`` ``(parts, p)`` with ``rest`` ``(p,)`` and ``constant`` ``(p,)`` sum to ``logits`` ``(p,)``. ``rest`` is
    what the stream's rounding added and no part did (0 up to float32 in a float32 model), ``constant`` comes from
    biases of the final norm and the unembedding. ``logits`` are before soft-capping, ``model_logits`` are the model's
    own, after it; ``softcap`` is 0 without one. ``heads`` takes the ``attn`` part of each layer apart, where that was
    asked for. With ``against_ids`` all of them are differences of two logits: that of
    the target less that of the other token (``softcap`` still says what ``model_logits`` went through).
    """

    model: str
    token_ids: tuple[int, ...]
    positions: tuple[int, ...]
    target_ids: tuple[int, ...]
    against_ids: tuple[int, ...] | None
    parts: tuple[Part, ...]
    values: FloatArray
    rest: FloatArray
    constant: FloatArray
    logits: FloatArray
    model_logits: FloatArray
    softcap: float = 0.0
    texts: dict[int, str] = field(default_factory=dict)
    heads: tuple[HeadAttribution, ...] = ()

    def by_layer(self) -> FloatArray:
        """Attention and MLP of each layer together, ``(n_layers, p)``; the embedding is left out."""
        import numpy as np

        count = 1 + max((part.layer for part in self.parts), default=-1)
        total = np.zeros((count, self.values.shape[1]), dtype=np.float32)
        for part, row in zip(self.parts, self.values, strict=True):
            if part.layer >= 0:
                total[part.layer] += row
        return total


@dataclass(frozen=True, slots=True, eq=False)
class AttentionPattern:
    """How much each token looks at each one: ``weights`` ``(heads, t, t)``, from row to column, float32.

    Rows sum to 1, or to less where the layer has attention sinks that are not tokens (GPT-OSS).
    ``error`` is how far the layer's own output is from these weights times its values, as a share of its size.
    """

    model: str
    layer: int
    token_ids: tuple[int, ...]
    weights: FloatArray
    error: float


@dataclass(frozen=True, slots=True)
class BehaviourPoint:
    """The behaviour at one multiple of a steering's scale."""

    scale: float
    behaviour: Behaviour


@dataclass(frozen=True, slots=True)
class BehaviourReport:
    """The behaviour of the plain model, and under a steering at each scale, in order."""

    plain: Behaviour
    points: tuple[BehaviourPoint, ...] = ()
