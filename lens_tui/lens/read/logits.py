"""Logits read off the residual: the logit lens, and what each attention and MLP adds to a token's logit.

The logit lens is what each layer would predict if it were the last (nostalgebraist 2020). Through a Jacobian lens the
residual is first carried to the last layer by that layer's average Jacobian: ``unembed(norm(J h))`` (Anthropic 2026).

Direct logit attribution: the residual is a sum of what the parts wrote to it, and with the final norm's denominator
kept as it is, the logit is linear in it (Elhage et al. 2021, "A mathematical framework for transformer circuits"; the
frozen norm as in TransformerLens and Wang et al. 2022, 2211.00593).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any, Literal

import mlx.core as mx
import numpy as np

from lens_tui.records import FloatArray, Intervention, LensError
from lens_tui.records.interventions import as_positions
from lens_tui.records.jacobian_lens import JacobianLens
from lens_tui.records.measures import HeadAttribution, LogitAttribution, LogitLens, Part

from ..architecture.find import Decoder
from ..architecture.unembed import FinalStep, final_step, find_unembedding, readout
from ..decode.sampling import kl, log_softmax
from ..forward import Core, one_text, read_sites, target_per_position, unhooked
from ..hooks.program import Key
from ..hooks.steering import HEAD, not_finite
from .attention import Array, AttentionWrote, Stream, head_attribution, no_heads

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
    through: JacobianLens | None = None,
) -> LogitLens:
    """Read every layer's residual of one text as a distribution over next tokens.

    Each residual takes the place of the last one, and the model continues from there: final norm, unembedding, scale
    and soft-capping are its own. They are computed in float32 from the residual on, whatever the model's dtype, so
    that the last layer agrees with the model's own logits up to the rounding of the latter. Tokens are read in
    blocks: at most ``LOGITS_AT_ONCE`` logits, or those of one token at all layers.

    Args:
        lens: The model.
        text: A text, or its token ids.
        layers: By default all of them.
        site: Any site of width d_model.
        target: The token to follow: an id, a text of one token, or one id for each position. By default the one that
            comes next in the text, and at the last position the one that the last layer thinks most probable.
        top_k: Most probable tokens of each layer and position.
        interventions: Replace those of the blocks around the call, which hold otherwise.
        progress: ``progress(done, total)`` is called between blocks with tokens; what it raises ends the reading.
        through: A Jacobian lens, whose matrices the residuals go through first; ``layers`` are then by default those
            that it has, and the last one, which it leaves as it is. The site is ``resid_post``.

    Returns:
        Arrays (layers, tokens, ...): the most probable tokens, the target's rank and log-probability, entropy, and KL
        from the last layer, in nats.

    Raises:
        LensError: Where a residual alone has no logits (Gemma 3n), for an unknown layer, site or token, and for a
            Jacobian lens of another model or without a layer.
    """
    ids = one_text(lens, text)
    last = lens.n_layers - 1
    where = _layers_read(lens, layers, site, through)
    keys = [*((layer, site) for layer in where), (last, "resid_post")]
    found = read_sites(lens, ids, keys, interventions)
    residual = mx.stack([found[key].astype(mx.float32) for key in keys])
    if through is not None:
        residual = _carried(through, residual, where, last)
    with unhooked(lens):
        follow = _targets(lens, ids, residual[-1, -1], target)
        rows = _rows(lens, residual, follow, min(max(top_k, 1), lens.tokens.vocab_size), progress)
    if np.isnan(rows["target_logprobs"]).any():  # the residuals are finite: they were looked at as they were read
        raise not_finite("The model's logits", HEAD)
    method: Literal["logit", "jacobian"] = "logit" if through is None else "jacobian"
    return LogitLens(lens.info.name, site, where, ids, method=method, **_named(lens, ids, follow, rows))


def _named(lens: Core, ids: Sequence[int], follow: Sequence[int], rows: dict[str, Any]) -> dict[str, Any]:
    """The rest of a readout's fields, with the texts of all tokens that occur."""
    final = rows.pop("final_ids")[0]
    occurring = np.unique([*ids, *follow, *final, *rows["top_ids"].reshape(-1)])
    texts = {int(i): lens.tokens.display(int(i)) for i in occurring}
    return {"target_ids": np.array(follow, np.int32), "final_ids": final, "texts": texts, **rows}


def _layers_read(lens: Core, layers: Sequence[int] | None, site: str, through: JacobianLens | None) -> tuple[int, ...]:
    """The layers of a readout, each of which has the site at the width of the stream."""
    if through is not None:
        if site != "resid_post":
            raise LensError(f"A Jacobian lens reads resid_post, not {site}.", "Leave the site out.")
        through.check_fits(lens.d_model, lens.n_layers)
        layers = sorted({*through.layers, lens.n_layers - 1}) if layers is None else layers
    where = tuple(dict.fromkeys(lens.registry.decoder.indices(range(lens.n_layers) if layers is None else layers)))
    if not where:
        raise LensError("There is no layer to read.", "Name at least one.")
    for layer in where:
        width = lens.registry.sites.point(layer, site).width
        if width != lens.d_model:
            raise LensError(f"Layer {layer} {site} has width {width}, not d_model.", "Read a site of the residual.")
    return where


def _carried(through: JacobianLens, residual: mx.array, where: Sequence[int], last: int) -> mx.array:
    """Residuals ``(layers + 1, tokens, d_model)`` as the last layer is expected to have them, ``J h``.

    What stands last is the last layer's own. Without a matrix of its own, that layer is left as it is.
    """
    carried = [
        residual[at]
        if layer == last and layer not in through.matrices
        else residual[at] @ mx.array(through.matrix(layer)).T
        for at, layer in enumerate(where)
    ]
    return mx.stack([*carried, residual[-1]])


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
    """Everything that is reported of a block of logits (layers + 1, tokens, vocabulary), the last layer left out."""
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
        "final_ids": decoder.choosable(final).argmax(axis=-1).astype(mx.int32),
        "entropy": -_expected(logprobs, logprobs),
        "kl": kl(final, logprobs),
    }


def _expected(logprobs: mx.array, values: mx.array) -> mx.array:
    # A token of probability 0 counts nothing, even where its log-probability is -inf.
    p = mx.exp(logprobs)
    return mx.where(p > 0, p * values, 0.0).sum(axis=-1)


Targets = int | str | Sequence[int]
RESIDUAL = ("resid_pre", "resid_post")
WRITERS = ("attn_out", "attn_out_normed", "mlp_out", "mlp_out_normed")


@dataclass(frozen=True)
class _Split:
    """How a layer's change of the residual comes about: the sites that add to it, times a factor; or why not."""

    attn: str = ""
    mlp: str = ""
    factor: float = 1.0
    why: str = ""


def attribute_logits(
    lens: Core,
    text: Any,
    target: Targets | None = None,
    *,
    against: Targets | None = None,
    positions: Sequence[int] | None = None,
    interventions: Sequence[Intervention] | None = None,
    heads: bool = False,
) -> LogitAttribution:
    """Take the logit of a token apart into embedding, attention and MLP of every layer.

    A layer's parts are accepted only if together they are what the layer adds to the residual; else the layer stands
    as one ``block`` that says why. What interventions add to the residual itself is a part of its own (``steer``; in
    a layer that stands as one block it is within that).

    Args:
        lens: The model.
        text: A text, or its token ids.
        target: A token id, a text of one token, or one id for each position; by default the model's most probable
            token there.
        against: Another token: the difference of the two logits is taken apart.
        positions: Where to read, by default at the last one; negative ones count from the end.
        interventions: Replace those of the blocks around the call, which hold otherwise.
        heads: Take each attention apart as well, into its heads.

    Returns:
        Values (parts, positions) of each part, with what is left over, the constant and the model's own logits.

    Raises:
        LensError: Where the final norm and unembedding cannot be proved, or a residual has no logits.
    """
    ids = one_text(lens, text)
    at = _positions(positions, len(ids))
    available = [(layer, site) for layer in range(lens.n_layers) for site in _sites(lens, layer, heads)]
    before = _streams(lens, ids, at, available, ())
    steered = _steered(lens, interventions)
    after = _streams(lens, ids, at, available, interventions) if steered else before
    splits = [_split(lens, before, layer) for layer in range(lens.n_layers)]
    last = after[lens.n_layers - 1, "resid_post"]
    with unhooked(lens):
        unembedding = find_unembedding(lens.registry.decoder)
        step = final_step(lens.registry.decoder, unembedding, mx.array(last.astype(np.float32)))
    hidden = lens.tokens.hidden
    among = step.logits if hidden is None else np.where(hidden, -np.inf, step.logits)
    chosen = among.argmax(axis=-1).tolist() if target is None else target
    wanted = target_per_position(lens, chosen, len(at))
    other = None if against is None else target_per_position(lens, against, len(at))
    parts, written = _parts(before[0, "resid_pre"], after, splits, {key[0] for key in steered if key[1] in RESIDUAL})
    whole = _record(lens, ids, at, step, (wanted, other), parts, written, last)
    if not heads:
        return whole
    direction = _direction(step, (wanted, other))[0]
    return replace(whole, heads=_heads(lens, before, after, splits, direction))


def _heads(
    lens: Core, before: Stream, after: Stream, splits: Sequence[_Split], direction: Array
) -> tuple[HeadAttribution, ...]:
    """Each layer's attention by head, with the reason where the layer or its attention cannot be taken apart."""
    found = []
    with unhooked(lens):
        for layer, split in enumerate(splits):
            if split.why:
                found.append(no_heads(layer, len(direction), split.why))
            else:
                wrote = AttentionWrote(before, after, split.attn, split.factor, direction)
                found.append(head_attribution(lens, layer, wrote))
    return tuple(found)


Tokens = tuple[list[int], list[int] | None]


def _direction(step: FinalStep, tokens: Tokens) -> tuple[Array, Array]:
    """What the logit, or the difference of two, is along: directions ``(p, d_model)`` and constants ``(p,)``."""
    wanted, other = tokens
    direction, constant = step.directions(wanted)
    if other is not None:
        minus, less = step.directions(other)
        direction, constant = direction - minus, constant - less
    return direction, constant


def _record(
    lens: Core,
    ids: tuple[int, ...],
    at: Sequence[int],
    step: FinalStep,
    tokens: Tokens,
    parts: list[Part],
    written: list[Array],
    last: Array,
) -> LogitAttribution:
    wanted, other = tokens
    direction, constant = _direction(step, tokens)
    rows = np.arange(len(at))
    model_logits = step.model_logits[rows, wanted]
    if other is not None:
        model_logits = model_logits - step.model_logits[rows, other]
    values = np.stack([(part * direction).sum(axis=-1) for part in written])
    rest = ((last - np.sum(written, axis=0)) * direction).sum(axis=-1)
    mentioned = {*ids, *wanted, *(other or ())}
    return LogitAttribution(
        model=lens.info.name,
        token_ids=ids,
        positions=tuple(at),
        target_ids=tuple(wanted),
        against_ids=None if other is None else tuple(other),
        parts=tuple(parts),
        values=values.astype(np.float32),
        rest=rest.astype(np.float32),
        constant=constant.astype(np.float32),
        logits=(values.sum(axis=0) + rest + constant).astype(np.float32),
        model_logits=model_logits.astype(np.float32),
        softcap=step.softcap,
        texts={token: lens.tokens.display(token) for token in sorted(mentioned)},
    )


def _parts(
    embedding: Array, stream: Stream, splits: Sequence[_Split], steered: AbstractSet[int]
) -> tuple[list[Part], list[Array]]:
    """Everything that writes to the residual with what it writes ``(p, d_model)``, in order."""
    parts, written, reached = [Part("embed")], [embedding], embedding
    for layer, split in enumerate(splits):
        change = stream[layer, "resid_post"] - reached
        reached = stream[layer, "resid_post"]
        if split.why:
            parts.append(Part("block", layer, split.why))
            written.append(change)
            continue
        attn, mlp = (split.factor * stream[layer, site] for site in (split.attn, split.mlp))
        parts += [Part("attn", layer), Part("mlp", layer)]
        written += [attn, mlp]
        if layer in steered:
            parts.append(Part("steer", layer))
            written.append(change - attn - mlp)
    return parts, written


def _split(lens: Core, stream: Stream, layer: int) -> _Split:
    """The attention and MLP sites that together are what the layer adds, up to one factor (as in Granite)."""
    attns, mlps = (
        [site for site in (f"{kind}_out_normed", f"{kind}_out") if (layer, site) in stream] for kind in ("attn", "mlp")
    )
    if not attns or not mlps:
        missing = "attention" if not attns else "MLP"
        return _Split(why=f"its {missing} cannot be told apart")
    after = stream[layer, "resid_post"]
    change = after - stream[layer, "resid_pre"]
    rounding = float(mx.finfo(lens.registry.decoder.dtype).eps) * np.linalg.norm(after)
    for attn in attns:
        for mlp in mlps:
            both = stream[layer, attn] + stream[layer, mlp]
            factor = float((both * change).sum() / max(float((both * both).sum()), 1e-300))
            factor = 1.0 if abs(factor - 1.0) < 0.02 else factor
            error = np.linalg.norm(change - factor * both)
            if factor > 0 and error <= 1e-3 * np.linalg.norm(change) + 4 * rounding:
                return _Split(attn, mlp, factor)
    return _Split(why="attention and MLP are not all that it adds")


def _streams(
    lens: Core,
    ids: Sequence[int],
    at: Sequence[int],
    keys: Sequence[Key],
    interventions: Sequence[Intervention] | None,
) -> Stream:
    found = read_sites(lens, ids, keys, interventions)
    chosen = mx.array(list(at))
    return {key: np.array(tensor[chosen].astype(mx.float32), dtype=np.float64) for key, tensor in found.items()}


def _sites(lens: Core, layer: int, heads: bool) -> list[str]:
    points = {site: lens.registry.sites.point(layer, site) for site in lens.sites(layer)}
    writers = [site for site in WRITERS if site in points and points[site].width == lens.d_model]
    return [*RESIDUAL, *writers, *(["attn_z"] if heads and "attn_z" in points else [])]


def _steered(lens: Core, interventions: Sequence[Intervention] | None) -> set[Key]:
    """The layers and sites that interventions act on."""
    if interventions is None:
        return {entry.key for entry in lens.registry.ambient()[0]}
    return {(lens.registry.decoder.index(item.layer), item.site) for item in interventions}


def _positions(positions: Sequence[int] | None, count: int) -> list[int]:
    wanted = [-1] if positions is None else list(as_positions(positions).indices)
    for place in wanted:
        if not -count <= place < count:
            raise LensError(f"There is no position {place}: the text has {count} tokens.", f"Choose 0 to {count - 1}.")
    if not wanted:
        raise LensError("There is no position to read.", "Name at least one, or leave positions out.")
    return [place % count for place in wanted]
