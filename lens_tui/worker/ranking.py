"""The features of a token in three orders: by activation, by rank within their own activations, by direct effect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError

if TYPE_CHECKING:
    from lens_tui.lens import LensModel
    from lens_tui.sae import SAE
    from lens_tui.sae.index import FeatureIndex

Order = Literal["activation", "rank", "effect"]
POOL = 64
"""The strongest features of a token that are put in another order."""

Scored = list[tuple[int, float, float]]
"""Feature, activation and score, best first."""


def rank_tokens(
    model: LensModel,
    sae: SAE,
    ids: Sequence[int],
    found: NDArray[Any],
    values: NDArray[Any],
    *,
    by: Order,
    k: int,
    index: FeatureIndex | None = None,
) -> list[Scored]:
    """For each token of a text its ``k`` first features; ``found`` and ``values`` are ``top_k``'s, ``(n, pool)``.

    ``activation``: the score is the activation. ``rank``: the share of the feature's own active tokens in the corpus
    that are weaker (needs the index). ``effect``: nats that the feature adds to the log-probability of the next
    token by the direct path, without running later layers again; the last token has no next one and gets none. Raises
    ``LensError`` for an order that cannot be had.
    """
    if by == "rank":
        return _by_rank(found, values, k, index)
    if by == "effect":
        return _by_effect(model, sae, ids, found, values, k)
    if by != "activation":
        raise LensError(f"There is no order {by!r}.", "Choose activation, rank or effect.")
    return [[(f, v, v) for f, v in _active(row, value)][:k] for row, value in zip(found, values, strict=True)]


def _by_rank(found: NDArray[Any], values: NDArray[Any], k: int, index: FeatureIndex | None) -> list[Scored]:
    from lens_tui.sae.index import rank_features

    if index is None:
        raise LensError("Ranks need an index of this SAE.", "Make one with `mlx-lens-tui index TEXT`.")
    rows = []
    for row, value in zip(found, values, strict=True):
        strength = dict(_active(row, value))
        names, scores = rank_features(
            index, np.array(list(strength), np.int64), np.array(list(strength.values())), by="rank", k=k
        )
        rows.append([(f, strength[f], s) for f, s in zip(names.tolist(), scores.tolist(), strict=True)])
    return rows


def _by_effect(
    model: LensModel, sae: SAE, ids: Sequence[int], found: NDArray[Any], values: NDArray[Any], k: int
) -> list[Scored]:
    import mlx.core as mx

    from lens_tui.sae.index import direct_effects

    place = sae.info.site_out or sae.info.site
    if sae.d_out != model.d_model or place in ("attn_z", "mlp_in"):
        raise LensError(f"The SAE {sae.info.name} does not write to the residual stream.", "Choose another order.")
    final = np.asarray(model.residuals(list(ids), model.n_layers - 1).astype(mx.float32))

    def logprobs(residual: NDArray[np.float32]) -> mx.array:
        logits = model.readout(mx.array(residual)[None])[0].astype(mx.float32)
        return logits - mx.logsumexp(logits, axis=-1, keepdims=True)

    rows: list[Scored] = []
    for place_of, (row, value) in enumerate(zip(found, values, strict=True)):
        pairs = _active(row, value)
        if not pairs or place_of + 1 >= len(ids):
            rows.append([])
            continue
        names = [f for f, _ in pairs]
        written = np.asarray(sae.directions(names)) * np.asarray(sae.decoder_norms(names))[:, None]
        parts = written * np.array([v for _, v in pairs], np.float32)[:, None]
        effects = direct_effects(final[place_of], parts, ids[place_of + 1], logprobs)
        order = np.argsort(-effects, kind="stable")[:k]
        rows.append([(*pairs[i], float(effects[i])) for i in order.tolist()])
    return rows


def _active(row: NDArray[Any], values: NDArray[Any]) -> list[tuple[int, float]]:
    return [(int(f), float(v)) for f, v in zip(row, values, strict=True) if f >= 0 and v > 0]
