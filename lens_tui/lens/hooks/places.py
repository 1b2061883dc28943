"""Where an intervention acts: the sites of a block, and which tokens of a forward, from absolute positions.

A site of a block is the input or the output of one module call. Which one is
not taken from names alone: a tiny forward pass (never evaluated) notes every
call inside a block, and a site is accepted only if its module is called exactly
once and the tensors are the same objects where the definition says so (the
post-attention norm of Gemma takes the very array that attention gave; Llama's
module of the same name does not, and is not a site).
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module

from lens_tui.records import LensError, Positions
from lens_tui.records.gates import Monitor
from lens_tui.records.info import SITES

from ..architecture.find import PROBE_SHAPE, Decoder, heads_of
from ..architecture.placement import sliced_end
from ..architecture.taps import (
    Call,
    first_of,
    input_of,
    install,
    named,
    uninstall,
)
from .points import Point as Point
from .points import Port, normed_point

ATTENTION_NAMES = (
    "self_attn",
    "attn.attention",
    "norm_attn_norm.attn",
    "attn",
    "attention",
    "self_attention",
    "linear_attn",
    "temporal_block",
    "mixer",
    "conv",
    "mamba",
    "time_mixer",
)
MLP_NAMES = ("mlp", "feed_forward", "block_sparse_moe", "ffn", "moe", "mlp_block", "channel_mixer", "feedforward")
HEAD_INPUTS = {
    "attn_q": ("q_proj", "wq", "c_q", "query"),
    "attn_k": ("k_proj", "wk", "c_k", "key"),
    "attn_v": ("v_proj", "wv", "c_v", "value"),
}
PROJECTION_NAMES = ("o_proj", "out_proj", "wo", "dense", "c_proj", "proj_out", "attn_out", "output_proj")


@dataclass(frozen=True, eq=False)
class _Seen:
    """One module call inside a block: path of the module from the block, what went in, what came out."""

    path: str
    module: Module
    given: Any
    output: Any


@dataclass(frozen=True, eq=False)
class Entries:
    """Of one block, the modules whose input is the residual that attention and MLP read: their norms, or themselves.

    ``parallel``: both read the same, so that the attention is not part of what the MLP reads.
    """

    attention: Module
    mlp: Module
    parallel: bool


class SiteMap:
    """The sites of every block of a decoder; looked at once, when a site inside a block is first asked for."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._inside: list[list[_Seen]] | None = None
        self._points: dict[tuple[int, str], Point] = {}

    def point(self, layer: int, site: str) -> Point:
        """The module call that is ``site`` of block ``layer``. Raises :class:`LensError` where there is none."""
        found = self._points.get((layer, site))
        if found is None:
            found = self._points[layer, site] = self._find(layer, site)
        return found

    def _find(self, layer: int, site: str) -> Point:
        if site not in SITES:
            raise LensError(f"There is no site {site!r}.", f"The sites are {', '.join(SITES)}.")
        block = self._decoder.layers[layer]
        if site in ("resid_pre", "resid_post"):
            port: Port = "input" if site == "resid_pre" else "output"
            decoder = self._decoder
            return Point(block, port, decoder.d_model, decoder.stream, decoder.argument, decoder.view)
        shared = self._decoder.shared
        if shared is not None and shared.mode == "pipeline":
            raise shared.refuse(f"The site {site}, inside a block,")
        if self._inside is None:
            self._inside = _look_inside(self._decoder)
        found = _resolve(site, self._inside[layer])
        if isinstance(found, str):
            raise LensError(f"Layer {layer} of this model has no {site} that can be proved: {found}.")
        if shared is not None and sliced_end(found.module) == found.port:
            return replace(found, width=found.width * shared.size, slices=shared)
        return found

    def available(self, layer: int) -> tuple[str, ...]:
        """The sites that block ``layer`` has."""
        return tuple(site for site in SITES if self._has(layer, site))

    def entries(self, layer: int) -> Entries:
        """Where the attention and the MLP of a block read the residual stream. Raises :class:`LensError`."""
        self.point(layer, "attn_out"), self.point(layer, "mlp_out")
        assert self._inside is not None
        calls = self._inside[layer]
        attention, mlp = (_entry(calls, names) for names in (ATTENTION_NAMES, MLP_NAMES))
        for found in (attention, mlp):
            if isinstance(found, str):
                raise LensError(f"The reads of layer {layer} cannot be told apart: {found}.")
        assert isinstance(attention, _Seen)
        assert isinstance(mlp, _Seen)
        return Entries(attention.module, mlp.module, attention.given is mlp.given)

    def _has(self, layer: int, site: str) -> bool:
        try:
            self.point(layer, site)
        except LensError:
            return False
        return True


def _look_inside(decoder: Decoder) -> list[list[_Seen]]:
    """Every module call in every layer during one unevaluated forward pass."""
    seen: list[list[_Seen]] = []

    def enter(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        seen.append([])
        return call(*args, **kwargs)

    with ExitStack() as stack:
        for block in decoder.layers[: decoder.n_layers // decoder.passes]:
            install(block, enter)
            stack.callback(uninstall, block, enter)
            for path, module in _named(block):

                def tap(
                    call: Call,
                    args: tuple[Any, ...],
                    kwargs: dict[str, Any],
                    path: str = path,
                    module: Module = module,
                ) -> Any:
                    output = call(*args, **kwargs)
                    seen[-1].append(_Seen(path, module, input_of(args, kwargs), first_of(output)))
                    return output

                install(module, tap)
                stack.callback(uninstall, module, tap)
        decoder.forward(mx.zeros(PROBE_SHAPE, dtype=mx.int32))
    return seen


def _named(block: Module) -> list[tuple[str, Module]]:
    return [(path, module) for path, module in named(block) if path and path.count(".") <= 2]


def _resolve(site: str, calls: list[_Seen]) -> Point | str:
    """The point of a site among a block's calls, or the reason why there is none."""
    if site == "mlp_normed":
        return _without_gain(calls)
    names = MLP_NAMES if site.startswith("mlp") else ATTENTION_NAMES
    main = _only(calls, names)
    if isinstance(main, str):
        return main
    if site in ("attn_out", "mlp_out"):
        return _point(main.module, "output", main.output)
    if site == "mlp_in":
        return _point(main.module, "input", main.given)
    if site in HEAD_INPUTS:
        return _head_input(site, main, calls)
    if site == "attn_z":
        projection = _only(calls, tuple(f"{main.path}.{name}" for name in PROJECTION_NAMES))
        return projection if isinstance(projection, str) else _point(projection.module, "input", projection.given)
    after = [call for call in calls if call.given is main.output and "." not in call.path and _is_norm(call)]
    if len(after) != 1:
        return f"nothing in the block norms the output of {main.path}"
    return _point(after[0].module, "output", after[0].output)


def _without_gain(calls: list[_Seen]) -> Point | str:
    """What the norm before the MLP gives, before its gain."""
    entry, main = _entry(calls, MLP_NAMES), _only(calls, MLP_NAMES)
    if isinstance(entry, str):
        return entry
    if entry is main:
        return f"nothing in the block norms the input of {entry.path}"
    found = _point(entry.module, "output", entry.output)
    return found if isinstance(found, str) else normed_point(found, entry.path)


def _head_input(site: str, main: _Seen, calls: list[_Seen]) -> Point | str:
    """The projection of queries, keys or values, whose columns are whole heads of the size that the output takes."""
    found = _only(calls, tuple(f"{main.path}.{name}" for name in HEAD_INPUTS[site]))
    output = _resolve("attn_z", calls)
    if isinstance(found, str) or isinstance(output, str):
        return found if isinstance(found, str) else output
    point, heads = _point(found.module, "output", found.output), heads_of(main.module)
    if isinstance(point, str):
        return point
    if not heads or output.width % heads:
        return f"{main.path} does not say how many heads it has"
    size = output.width // heads
    # A gate beside the queries (Qwen 3 Next), or compressed keys, are not heads one after the other.
    whole = point.width == output.width if site == "attn_q" else point.width % size == 0 <= output.width - point.width
    return (
        point if whole else f"what {found.path} gives, {point.width} wide, is not heads of {size} one after the other"
    )


def _only(calls: list[_Seen], paths: tuple[str, ...]) -> _Seen | str:
    found = [call for call in calls if _named_as(call, paths)]
    if not found:
        return f"none of its parts is called {', '.join(paths[:4])} or the like"
    if len(found) > 1:
        return f"{found[0].path} is called {len(found)} times, or has a twin"
    return found[0]


def _named_as(call: _Seen, paths: tuple[str, ...]) -> bool:
    """Whether a call has one of the names; Nemotron-H calls whatever a block has its mixer, an MLP too."""
    if call.path == "mixer" and paths in (ATTENTION_NAMES, MLP_NAMES):
        is_mlp = type(call.module).__name__.lower().endswith(("mlp", "moe"))
        return is_mlp == (paths == MLP_NAMES)
    return call.path in paths


def _entry(calls: list[_Seen], names: tuple[str, ...]) -> _Seen | str:
    """The call that takes the residual into an attention or MLP, or why there is none of its own."""
    main = _only(calls, names)
    if isinstance(main, str):
        return main
    before = [call for call in calls if call.output is main.given and "." not in call.path and _is_norm(call)]
    if len(before) != 1:
        return main
    others = [call.path for call in calls if call.given is before[0].output and not _inside_of(call, main)]
    return f"{before[0].path} is read by {others[0]} as well" if others else before[0]


def _inside_of(call: _Seen, main: _Seen) -> bool:
    return call.path == main.path or call.path.startswith(f"{main.path}.")


def _is_norm(call: _Seen) -> bool:
    return "norm" in call.path.lower() or "norm" in type(call.module).__name__.lower()


def _point(module: Module, port: Port, tensor: Any) -> Point | str:
    if not isinstance(tensor, mx.array) or tensor.ndim != 3 or tuple(tensor.shape[:2]) != PROBE_SHAPE:
        shape = tuple(tensor.shape) if isinstance(tensor, mx.array) else type(tensor).__name__
        return f"the tensor is {shape}, not (batch, tokens, width)"
    return Point(module, port, int(tensor.shape[-1]))


Offset = int | mx.array
"""Absolute position of a forward's first token: one for the batch, or one for each row, shape (rows,)."""
Spans = tuple[tuple[str, int, int], ...]
Mask = bool | mx.array
"""True: every token; False: none; else a bool array (rows or 1, tokens, 1)."""


@dataclass(frozen=True, eq=False)
class Where:
    """What is known of one forward: where it starts, its tokens, and where the prompt ends.

    ``n_prompt`` is the number of prompt tokens (one, or one for each row), ``None``
    where it is not known: a forward that somebody else runs over a cache.
    ``offset`` is ``None`` where a recurrent cache, which counts no tokens, was filled unseen.
    ``spans`` maps a role to half-open spans of absolute positions of the prompt;
    ``thinking`` says of each generated token, (rows, tokens), whether the model is thinking.
    Where rows are different prompts, ``row_spans`` holds each row's spans, and ``real``
    (rows, tokens, 1) says which tokens are not padding (``None``: all of them). ``readings`` are those of monitors,
    as the forward comes to them; ``opened``, where it is asked for, is given the mask of each gated record, by its id,
    layer and site. ``attended`` has what a layer's heads attend to, where a pattern is edited, once it is known.
    """

    offset: Offset | None
    length: int
    ids: mx.array | None = None
    n_prompt: Offset | None = None
    bos: int | None = None
    spans: Spans | None = None
    thinking: mx.array | None = None
    row_spans: tuple[Spans | None, ...] | None = None
    real: mx.array | None = None
    readings: dict[Monitor, mx.array] = field(default_factory=dict)
    opened: dict[tuple[str, int, str], mx.array] | None = None
    attended: dict[int, Any] = field(default_factory=dict)


def touched(positions: Positions, where: Where) -> Mask:
    """The tokens of this forward that ``positions`` names. Raises :class:`LensError` if that is not known."""
    kind = positions.kind
    if kind == "all":
        return True
    if where.offset is None:
        raise LensError(
            f"Positions {kind!r} cannot be determined: the cache was filled before anything was hooked "
            "and counts no tokens.",
            "Start with an empty cache.",
        )
    if kind == "not_bos":
        return _not_bos(where)
    if kind == "role":
        return _role(positions.role, where)
    return _within(_bounds(positions, where), where)


def _within(bounds: list[tuple[Any, Any]], where: Where) -> Mask:
    """The tokens inside any of the half-open ranges of absolute positions."""
    if isinstance(where.offset, int) and all(isinstance(item, int) for pair in bounds for item in pair):
        return _static(bounds, where.offset, where.length)
    at = absolute(where)
    mask: mx.array | None = None
    for start, stop in bounds:
        part = (at >= _column(start)) & (at < _column(stop))
        mask = part if mask is None else mask | part
    return False if mask is None else mask[..., None]


def sources_at(positions: Positions, at: mx.array, where: Where) -> mx.array:
    """Which of the absolute positions ``at``, of any shape, are named: tokens that others attend to."""
    if positions.kind == "role" and where.row_spans is not None:
        return mx.concatenate([_one_row(positions, at, where, row) for row in range(len(where.row_spans))])
    bounds = _role_bounds(positions.role, where) if positions.kind == "role" else _bounds(positions, where)
    found = mx.zeros(at.shape, dtype=mx.bool_)
    for start, stop in bounds:
        found = found | ((at >= _column(start)) & (at < _column(stop)))
    return found


def _one_row(positions: Positions, at: mx.array, where: Where, row: int) -> mx.array:
    """One row of a batch of different prompts; one without that role names nothing."""
    assert where.row_spans is not None
    end = int(np.array(where.n_prompt)[row]) if isinstance(where.n_prompt, mx.array) else where.n_prompt
    spans = where.row_spans[row] or ()
    mine = at[min(row, len(at) - 1)][None]
    if positions.role != "assistant" and positions.role not in {name for name, *_ in spans}:
        return mx.zeros(mine.shape, dtype=mx.bool_)
    return sources_at(positions, mine, replace(where, spans=spans, n_prompt=end, row_spans=None))


def absolute(where: Where) -> mx.array:
    """Absolute positions of the forward's tokens, shape (1 or rows, tokens)."""
    steps = mx.arange(where.length)[None]
    assert where.offset is not None
    return steps + (where.offset if isinstance(where.offset, int) else where.offset[:, None])


def reach(positions: Positions, n_prompt: int, last: int) -> bool:
    """Whether anything in absolute positions ``[0, last]`` can be touched, as far as is known beforehand."""
    if positions.kind in ("all", "not_bos", "role", "generated", "last"):
        return True
    bounds = _bounds(positions, Where(0, 1, n_prompt=n_prompt))
    return any(int(start) <= last and int(stop) > max(0, int(start)) for start, stop in bounds)


def reaches_scored(
    positions: Positions, ids: Sequence[int], n_prompt: int, bos: int | None, spans: Spans | None = None
) -> bool:
    """Whether any token is touched that a scored one follows: what the last one gives predicts nothing of the text.

    Args:
        positions: Which tokens are touched.
        ids: The text.
        n_prompt: Where the prompt ends and scoring begins.
        bos: The id of the BOS token.
        spans: The chat roles of the prompt.
    """
    mask = touched(positions, Where(0, len(ids) - 1, mx.array([list(ids[:-1])]), n_prompt, bos, spans))
    return mask if isinstance(mask, bool) else bool(mask.any().item())


_END = 1 << 30


def _bounds(positions: Positions, where: Where) -> list[tuple[Any, Any]]:
    """Half-open ranges of absolute positions."""
    kind = positions.kind
    if kind == "indices":
        return [(at, at + 1) for at in (_from_end(index, where) for index in positions.indices)]
    if kind == "slice":
        stop = _END if positions.stop is None else _from_end(positions.stop, where)
        return [(_from_end(positions.start, where), stop)]
    end = _prompt_end(positions, where)
    if kind == "prompt":
        return [(0, end - 1)]
    return [(end - 1, _END if kind == "generated" else end)]


def _from_end(index: int, where: Where) -> Any:
    return index if index >= 0 else _prompt_end(Positions("indices", (index,)), where) + index


def _prompt_end(positions: Positions, where: Where) -> Any:
    if where.n_prompt is None:
        raise LensError(
            f"Positions {positions.kind!r} cannot be determined: a forward over a cache does not say "
            "where the prompt ends.",
            "Generate with this model's own generate, stream or compare, or give absolute positions from the start.",
        )
    return where.n_prompt


def _static(bounds: list[tuple[int, int]], offset: int, length: int) -> Mask:
    """The mask of a forward whose place is known in Python: decoding needs no array at all."""
    hits = [any(start <= offset + step < stop for start, stop in bounds) for step in range(length)]
    if all(hits) or not any(hits):
        return all(hits)
    return mx.array(hits)[None, :, None]


def _not_bos(where: Where) -> Mask:
    if where.bos is None:
        return True
    if where.ids is None:
        raise LensError(
            "Positions 'not_bos' cannot be determined here: the forward was given embeddings, not token ids.",
            "Give absolute positions instead.",
        )
    return (where.ids != where.bos)[..., None]


def _role(role: str, where: Where) -> Mask:
    if where.row_spans is not None:
        return _role_by_rows(role, where, where.row_spans)
    bounds = _role_bounds(role, where)
    if role == "thinking" and where.thinking is not None:
        return where.thinking[..., None]
    return _within(bounds, where)


def _role_bounds(role: str, where: Where) -> list[tuple[Any, Any]]:
    """Half-open ranges of absolute positions of a role, where every row has the same prompt."""
    if where.spans is None or where.n_prompt is None:
        raise LensError(
            f"Positions of role {role!r} cannot be determined: the prompt was not made from chat messages.",
            "Give generate, stream or compare a prompt that goes through the chat template.",
        )
    bounds: list[tuple[Any, Any]] = [(start, stop) for name, start, stop in where.spans if name == role]
    if role == "assistant":
        bounds.append((where.n_prompt, _END))
    if not bounds and role != "thinking":
        known = ", ".join(sorted({span[0] for span in where.spans}))
        raise LensError(f"The prompt has no {role!r} part.", f"It has: {known}.")
    return bounds


def _role_by_rows(role: str, where: Where, rows: tuple[Spans | None, ...]) -> Mask:
    """Like :func:`_role`, where every row is another prompt; a row without the role is not touched."""
    at = mx.broadcast_to(absolute(where), (len(rows), where.length))
    masks = []
    for row, spans in enumerate(rows):
        mask = mx.zeros((where.length,), dtype=mx.bool_)
        for name, start, stop in spans or ():
            if name == role:
                mask = mask | ((at[row] >= start) & (at[row] < stop))
        masks.append(mask)
    found = mx.stack(masks)
    if role == "assistant":
        found = found | (at >= _column(where.n_prompt))
    if role == "thinking" and where.thinking is not None:
        found = found | where.thinking
    return found[..., None]


def follow_thinking(ids: mx.array, inside: mx.array, markers: tuple[int, int]) -> tuple[mx.array, mx.array]:
    """Whether each row's next token (rows, 1) is between the thinking markers, and whether the one after it will be.

    ``inside`` (rows, 1) is that before the token; the markers themselves are not thinking.
    """
    start, end = markers
    opens, closes = ids == start, ids == end
    return inside & ~opens & ~closes, (inside | opens) & ~closes


def _column(value: Any) -> Any:
    return value[:, None] if isinstance(value, mx.array) else value


Fingerprint = tuple[object, ...]
MIXED: Fingerprint = ("mixed",)
"""The mark of a cache that was filled under one plan after another: equal to no plan's."""


class CacheLedger:
    """Notes on the caches that forwards were seen to use; a cache is known by its first layer's object."""

    def __init__(self) -> None:
        self._marks: weakref.WeakKeyDictionary[Any, Fingerprint] = weakref.WeakKeyDictionary()
        self._counts: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def begin(self, caches: Sequence[Any], length: int, fingerprint: Fingerprint) -> Offset | None:
        """A forward of ``length`` tokens begins: where it starts, ``None`` if that cannot be known."""
        if not caches:
            return 0
        offset = self.offset(caches)
        filled = offset is None or not isinstance(offset, int) or offset > 0
        before = self._marks.get(caches[0], ())
        self._marks[caches[0]] = fingerprint if not filled or before == fingerprint else MIXED
        if isinstance(offset, int):
            self._counts[caches[0]] = offset + length
        return offset

    def offset(self, caches: Sequence[Any]) -> Offset | None:
        """Absolute position of the next token.

        Of the first layer's cache that counts tokens; purely recurrent ones count
        none, so what was seen to go in is counted here.
        """
        found = counted(caches)
        if found is not None or not caches:
            return found if found is not None else 0
        if caches[0] in self._counts:
            return self._counts[caches[0]]
        return 0 if _empty(caches) else None

    def note(self, caches: Sequence[Any], count: int, fingerprint: Fingerprint) -> None:
        """These caches hold ``count`` tokens that went in under these interventions."""
        if caches:
            self._marks[caches[0]] = fingerprint
            self._counts[caches[0]] = count

    def check(self, caches: Sequence[Any], fingerprint: Fingerprint) -> int:
        """Tokens that a cache holds, if it was filled under these interventions. Raises :class:`LensError`."""
        offset = self.offset(caches)
        if not isinstance(offset, int):
            raise LensError("This prompt cache does not say how many tokens it holds.", "Start with an empty cache.")
        if offset and self._marks.get(caches[0], ()) != fingerprint:
            raise LensError(
                "The prompt cache was filled under other interventions than the ones in force now.",
                "Fill a new cache, or apply the same interventions as before.",
            )
        return offset


def caches_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The KV caches that a model call was given, whatever the argument is called; empty if none."""
    for value in (kwargs.get("cache"), *args[1:], *kwargs.values()):
        if isinstance(value, (list, tuple)) and value:
            held = [item for item in value if item is not None]
            if not held or _is_cache(held[0]):
                return held
    return []


def _is_cache(item: Any) -> bool:
    # Of its class: to ask the cache itself for its state cuts keys and values out of what it holds, two slices a layer
    # in every token's graph.
    return hasattr(type(item), "state") or "state" in getattr(item, "__dict__", ())


def counted(caches: Sequence[Any]) -> Offset | None:
    """The offset of the first cache that has one, composite ones (``CacheList``) opened."""
    for item in caches:
        inner = getattr(item, "caches", None)
        offset = counted(inner) if isinstance(inner, (list, tuple)) else getattr(item, "offset", None)
        if isinstance(offset, int):
            return offset
        if isinstance(offset, mx.array):
            return offset + 0  # caches may move their offset in place
    return None


def _empty(caches: Sequence[Any]) -> bool:
    try:
        return all(item.empty() for item in caches)
    except (NotImplementedError, AttributeError):
        return False
