"""The sites of a block: each is the input or the output of one module call, and how it is read and replaced.

Which call that is is not taken from names alone: a tiny forward pass (never evaluated) notes every
call inside a block, and a site is accepted only if its module is called exactly
once and the tensors are the same objects where the definition says so (the
post-attention norm of Gemma takes the very array that attention gave; Llama's
module of the same name does not, and is not a site).
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module

from lens_tui.records import LensError
from lens_tui.records.info import SITES

from ..architecture.find import PROBE_SHAPE, Decoder, heads_of
from ..architecture.norms import gain_of, held_norm
from ..architecture.placement import sliced_end
from ..architecture.ranks import Shared
from ..architecture.taps import (
    Argument,
    Call,
    first_of,
    input_of,
    install,
    named,
    replace_first,
    replace_input,
    uninstall,
)

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
Port = Literal["input", "output"]


@dataclass(frozen=True, eq=False)
class Point:
    """A site of one block: the module whose ``input`` or ``output`` it is, and its width.

    ``stream`` is the one of several residual streams (streams, batch, tokens, width)
    that the site is, ``None`` where the tensor is the residual itself. ``argument``
    says which of the module's arguments an ``input`` is, ``view`` which other one,
    or which other part of an output, is made from the residual and stale once that is changed.
    ``slices`` is given where each of several processes has a slice of the tensor, in the order of their ranks.
    """

    module: Module
    port: Port
    width: int
    stream: int | None = None
    argument: Argument = 0
    view: Argument | None = None
    slices: Shared | None = None

    @cached_property
    def plain(self) -> bool:
        """Whether the tensor is what the module gives, and nothing has to be made of it."""
        return type(self) is Point and self.port == "output" and self.stream is None and self.slices is None

    def read(self, value: Any) -> Any:
        """The tensor of the site (batch, tokens, width) in what the module was given or gave."""
        hidden = first_of(value)
        if self.slices is not None:
            return self.slices.gathered(hidden)
        return hidden if self.stream is None else hidden[self.stream]

    def after(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> mx.array:
        """The tensor of a site that is an output, once its module was called."""
        tensor: mx.array = self.read(output)
        return tensor

    def give(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], new: mx.array
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The module's arguments with the site's tensor replaced."""
        value = self._put(input_of(args, kwargs, self.argument), new)
        args, kwargs = replace_input(args, kwargs, value, self.argument)
        return (args, kwargs) if self.view is None else replace_input(args, kwargs, None, self.view)

    def write(self, output: Any, new: mx.array) -> Any:
        """What the module gave, with the site's tensor replaced."""
        written = replace_first(output, self._put(first_of(output), new))
        return written if self.view is None else (written[0], *[None for _ in written[1:]])

    def _put(self, value: mx.array, new: mx.array) -> mx.array:
        if self.slices is not None:
            return self.slices.part(new)
        if self.stream is None:
            return new
        return mx.concatenate([value[: self.stream], new[None], value[self.stream + 1 :]])


@dataclass(frozen=True, eq=False)
class NormedPoint(Point):
    """What a norm gives before its ``gain`` and ``shift``, both ``(width,)``: its input over what it divides by.

    No array of the model is that: it is read off the norm's input and output, and what is put in its place gets the
    gain and the shift. ``centred`` norms take the mean away first.
    """

    gain: mx.array = field(kw_only=True)
    shift: mx.array = field(kw_only=True)
    centred: bool = False

    def after(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> mx.array:
        """The norm's input times the one number a token that makes its output of it."""
        given, scaled = first_of(input_of(args, kwargs)).astype(mx.float32), first_of(output)
        plain = given - mx.mean(given, axis=-1, keepdims=True) if self.centred else given
        # In units of the input, so that a token's squares neither vanish nor overflow.
        plain = plain / mx.maximum(mx.max(mx.abs(plain), axis=-1, keepdims=True), 1e-30)
        lifted = plain * self.gain
        share = mx.sum(lifted * (scaled.astype(mx.float32) - self.shift), axis=-1, keepdims=True)
        share = share / mx.maximum(mx.sum(lifted * lifted, axis=-1, keepdims=True), 1e-30)
        found: mx.array = (plain * share).astype(scaled.dtype)
        return found

    def write(self, output: Any, new: mx.array) -> Any:
        """What the norm gives, of another tensor before its gain."""
        lifted = new.astype(mx.float32) * self.gain + self.shift
        return replace_first(output, lifted.astype(first_of(output).dtype))


def normed_point(point: Point, path: str) -> Point | str:
    """The site before the gain of the norm whose output a point is, or why it cannot be told."""
    width, module = point.width, point.module
    probe = mx.array(np.random.default_rng(0).normal(size=(1, 4, width)).astype(np.float32))
    try:
        gain = gain_of(module, width)
        held = held_norm(module, probe, gain)
    except (LensError, TypeError, ValueError):
        return f"{path} is neither an RMS norm nor a layer norm"
    arrays = mx.array(gain), mx.array(held.shift.astype(np.float32))
    mx.eval(*arrays)
    return NormedPoint(module, "output", width, gain=arrays[0], shift=arrays[1], centred=held.centred)


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
