"""The logit lens: what each layer would predict if it were the last (nostalgebraist 2020)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from lens_tui.records import FloatArray, Intervention, LensError
from lens_tui.records.readouts import LogitLens

from ..architecture.find import Decoder
from ..architecture.unembed import readout
from ..distributions import kl, log_softmax
from ..forward import Core, one_text, read_sites, target_per_position, unhooked
from ..hooks.passage import HEAD, not_finite

LOGITS_AT_ONCE = 1 << 25


def logit_lens(
    lens: Core,
    text: Any,
    *,
    layers: Sequence[int] | None = None,
    site: str = "resid_post",
    target: int | str | Sequence[int] | None = None,
    top_k: int = 5,
    interventions: Sequence[Intervention] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LogitLens:
    """Read every layer's residual of one text (or its token ids) as a distribution over next tokens.

    Each residual takes the place of the last one, and the model goes on from there: final norm, unembedding, scale
    and soft-capping are its own. They are computed in float32 from the residual on, whatever the model's dtype, so
    that the last layer agrees with the model's own logits up to the rounding of the latter. ``site`` may be
    any site of width d_model. ``target`` is the token to follow (an id, a text of one token, or one id for each
    position); by default it is the token that comes next in the text, and at the last position the one that the
    last layer thinks most probable. ``interventions`` replace those of the blocks around the call, which hold
    otherwise. Tokens are read in blocks: at most ``LOGITS_AT_ONCE`` logits, or those of one token at all layers.
    ``progress(done, total)`` is called between blocks with tokens; what it raises ends the reading.

    Raises :class:`LensError` where a residual alone has no logits (Gemma 3n), and for a layer, site or token that
    does not exist.
    """
    ids = one_text(lens, text)
    last = lens.n_layers - 1
    where = tuple(dict.fromkeys(lens.registry.decoder.indices(range(lens.n_layers) if layers is None else layers)))
    if not where:
        raise LensError("There is no layer to read.", "Name at least one.")
    for layer in where:
        width = lens.registry.sites.point(layer, site).width
        if width != lens.d_model:
            raise LensError(f"Layer {layer} {site} has width {width}, not d_model.", "Read a site of the residual.")
    keys = [*((layer, site) for layer in where), (last, "resid_post")]
    found = read_sites(lens, ids, keys, interventions)
    residual = mx.stack([found[key].astype(mx.float32) for key in keys])
    with unhooked(lens):
        follow = _targets(lens, ids, residual[-1, -1], target)
        rows = _rows(lens, residual, follow, min(max(top_k, 1), lens.tokens.vocab_size), progress)
    if np.isnan(rows["target_logprobs"]).any():  # the residuals are finite: they were looked at as they were read
        raise not_finite("The model's logits", HEAD)
    texts = {int(i): lens.tokens.display(int(i)) for i in np.unique([*ids, *follow, *rows["top_ids"].reshape(-1)])}
    return LogitLens(lens.info.name, site, where, ids, target_ids=np.array(follow, np.int32), texts=texts, **rows)


def _targets(lens: Core, ids: Sequence[int], final: mx.array, target: int | str | Sequence[int] | None) -> list[int]:
    if target is not None:
        return target_per_position(lens, target, len(ids))
    decoder = lens.registry.decoder
    return [*ids[1:], int(decoder.choosable(readout(decoder, final[None, None])).argmax())]


def _rows(
    lens: Core,
    residual: mx.array,
    follow: Sequence[int],
    k: int,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    """The lens in blocks of tokens, so that the logits of all layers of a whole text are never held at once.

    ``residual`` has shape (layers + 1, tokens, d_model); the last one is the model's last, for ``kl``.
    """
    layers, count, width = residual.shape
    step = max(1, LOGITS_AT_ONCE // (layers * lens.tokens.vocab_size))
    blocks: list[dict[str, FloatArray]] = []
    for start in range(0, count, step):
        if progress is not None:
            progress(start, count)
        part = residual[:, start : start + step]
        logits = readout(lens.registry.decoder, part.reshape(1, -1, width)).astype(mx.float32)
        logits = logits.reshape(layers, part.shape[1], -1)
        measures = _measure(lens.registry.decoder, logits, mx.array(list(follow[start : start + step])), k)
        mx.eval(measures)
        blocks.append({name: np.array(value) for name, value in measures.items()})
    return {name: np.concatenate([block[name] for block in blocks], axis=1) for name in blocks[0]}


def _measure(decoder: Decoder, logits: mx.array, follow: mx.array, k: int) -> dict[str, mx.array]:
    """Everything that is said of a block of logits (layers + 1, tokens, vocabulary), the last layer left out."""
    logprobs = log_softmax(logits)
    final, logits, logprobs = logprobs[-1:], logits[:-1], logprobs[:-1]
    among = decoder.choosable(logits)
    top = mx.argpartition(-among, min(k, logits.shape[-1] - 1), axis=-1)[..., :k]
    order = mx.argsort(-mx.take_along_axis(among, top, -1), axis=-1)
    top = mx.take_along_axis(top, order, -1)
    place = mx.broadcast_to(follow[None, :, None], (*logits.shape[:2], 1))
    return {
        "top_ids": top.astype(mx.int32),
        "top_logprobs": mx.take_along_axis(logprobs, top, -1),
        "target_ranks": (logits > mx.take_along_axis(logits, place, -1)).sum(axis=-1).astype(mx.int32),
        "target_logprobs": mx.take_along_axis(logprobs, place, -1)[..., 0],
        "entropy": -_expected(logprobs, logprobs),
        "kl": kl(final, logprobs),
    }


def _expected(logprobs: mx.array, values: mx.array) -> mx.array:
    # A token of probability 0 counts nothing, even where its log-probability is -inf.
    p = mx.exp(logprobs)
    return mx.where(p > 0, p * values, 0.0).sum(axis=-1)
