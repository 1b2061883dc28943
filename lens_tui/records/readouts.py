"""What readouts give: the logit lens, direct logit attribution and attention patterns, as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .vectors import FloatArray

IntArray = NDArray[np.int32]
PartKind = Literal["embed", "attn", "mlp", "block", "steer"]


@dataclass(frozen=True, slots=True, eq=False)
class LogitLens:
    """What every layer would predict at every token of a text, by the model's own last steps.

    ``layers`` has ``n`` entries (counted from 0), the text ``t`` tokens. ``top_ids`` and ``top_logprobs`` ``(n, t, k)``
    are the most probable next tokens, the best first. ``target_ids`` ``(t,)`` is the token that is followed at each
    position, ``target_ranks`` ``(n, t)`` how many tokens are more probable (0: it is the best) and
    ``target_logprobs`` ``(n, t)`` its log-probability. ``entropy`` ``(n, t)`` is that of the layer's distribution and
    ``kl`` ``(n, t)`` is D_KL(last layer || this layer). All in nats, from float32 logits after soft-capping.
    ``texts`` holds the display form of every token id that occurs, safe to show.
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

    @property
    def target_probabilities(self) -> FloatArray:
        """Probability of the followed token, ``(n, t)``."""
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
class LogitAttribution:
    """What each part of a model adds to the logit of a token, at ``p`` positions of a text, in float32.

    ``values`` ``(parts, p)`` with ``rest`` ``(p,)`` and ``constant`` ``(p,)`` sum to ``logits`` ``(p,)``. ``rest`` is
    what the stream's rounding added and no part did (0 up to float32 in a float32 model), ``constant`` comes from
    biases of the final norm and the unembedding. ``logits`` are before soft-capping, ``model_logits`` are the model's
    own, after it; ``softcap`` is 0 without one. With ``against_ids`` all of them are differences of two logits: that of
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

    def by_layer(self) -> FloatArray:
        """Attention and MLP of each layer together, ``(n_layers, p)``; the embedding is left out."""
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
