"""One prompt's forward pass as a linear map: attention patterns and norms' denominators are what they were.

With those held fixed each block adds linear functions of the stream to the stream, but for its MLP, whose output is a
constant here: what is done about it is the caller's (features, errors). That the parts found are the model is proved on
its own tensors: each norm and attention has to give what the model's gave, all of them together the model's residuals.
Ameisen et al. 2025 ("Circuit Tracing: Revealing Computational Graphs in Language Models").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module

from lens_tui.records import LensError, NotFinite
from lens_tui.records.attribution_graph import Reads, Writes

from ..architecture.norms import gain_of, held_norm
from ..architecture.taps import Call, input_of, install, uninstall
from ..causes.cells import Kept
from ..forward import Core
from ..hooks.program import Key
from ..hooks.registry import Plan, Run
from ..read.attention import attention_patterns


@dataclass(frozen=True, eq=False)
class FrozenNorm:
    """A norm whose denominators are held: ``scale`` ``(tokens, width)``, ``shift`` ``(width,)``.

    ``centred`` norms take the mean away first. ``gain`` ``(width,)`` is what ``scale`` has in it beside them.
    """

    scale: mx.array
    shift: mx.array
    centred: bool
    gain: mx.array

    def __call__(self, x: mx.array) -> mx.array:
        """What the norm gives for ``(..., tokens, width)``, of the first tokens where there are fewer."""
        return self.linear(x) + self.shift

    def linear(self, x: mx.array) -> mx.array:
        """The same without the shift."""
        x = x - mx.mean(x, axis=-1, keepdims=True) if self.centred else x
        return x * self.scale[: x.shape[-2]]

    def back(self, cotangent: mx.array) -> mx.array:
        """The transposed map: cotangents of what it gives to those of what it reads."""
        found = cotangent * self.scale[: cotangent.shape[-2]]
        return found - mx.mean(found, axis=-1, keepdims=True) if self.centred else found

    @property
    def without_gain(self) -> FrozenNorm:
        """The norm before its gain and shift: what is divided by the denominator only."""
        safe = mx.where(self.gain == 0, 1.0, self.gain)
        return FrozenNorm(self.scale / safe, mx.zeros_like(self.shift), self.centred, mx.ones_like(self.gain))


def frozen_norm(module: Module, x: mx.array) -> FrozenNorm:
    """A norm held where it reads ``(tokens, width)``. Raises :class:`LensError` where it is no RMS or layer norm."""
    x = x.astype(mx.float32)
    gain = gain_of(module, x.shape[-1])
    held = held_norm(module, x[None], gain)
    scale, shift = (mx.array(part.astype(np.float32)) for part in (held.scale, held.shift))
    return FrozenNorm(scale, shift, held.centred, mx.array(gain))


@dataclass(frozen=True, eq=False)
class FrozenAttention:
    """An attention whose patterns ``(heads, tokens, tokens)`` are held: values, mixed by them, and projected.

    ``value`` and ``output`` are the model's own projections, quantised ones among them. Heads share values in blocks,
    or take turns (``turns``).
    """

    patterns: mx.array
    value: Module
    output: Module
    width: int
    value_width: int
    z_width: int
    turns: bool

    @property
    def _sizes(self) -> tuple[int, int, int]:
        """Query heads, key-value heads, and the size of one."""
        heads = self.patterns.shape[0]
        size = self.z_width // heads
        return heads, self.value_width // size, size

    def __call__(self, x: mx.array) -> mx.array:
        """What it gives for ``(rows, tokens, width)``, biases included."""
        value, output = _called(self.value), _called(self.output)
        given: mx.array = output(self.mixed(value(x).astype(mx.float32)))
        return given.astype(mx.float32)

    def mixed(self, values: mx.array) -> mx.array:
        """Values ``(rows, tokens, value_width)`` as the output projection reads them, ``(rows, tokens, z_width)``."""
        rows, tokens, _ = values.shape
        heads, groups, size = self._sizes
        parts = values.reshape(rows, tokens, groups, size).transpose(2, 1, 0, 3).reshape(groups, tokens, rows * size)
        shared = mx.tile(parts, (heads // groups, 1, 1)) if self.turns else mx.repeat(parts, heads // groups, axis=0)
        found = self.patterns[:, :tokens, :tokens] @ shared
        return found.reshape(heads, tokens, rows, size).transpose(2, 1, 0, 3).reshape(rows, tokens, heads * size)

    def back(self, cotangent: mx.array) -> mx.array:
        """The transposed map without biases: cotangents ``(rows, tokens, width)`` of what it gives to what it reads."""
        rows, tokens, _ = cotangent.shape
        heads, groups, size = self._sizes
        mixed = pulled_back(self.output, self.z_width, cotangent)
        parts = mixed.reshape(rows, tokens, heads, size).transpose(2, 1, 0, 3).reshape(heads, tokens, rows * size)
        found = self.patterns[:, :tokens, :tokens].swapaxes(1, 2) @ parts
        by_group = (heads // groups, groups) if self.turns else (groups, heads // groups)
        summed = found.reshape(*by_group, tokens, rows, size).sum(axis=0 if self.turns else 1)
        values = summed.transpose(2, 1, 0, 3).reshape(rows, tokens, groups * size)
        return pulled_back(self.value, self.width, values)


def pulled_back(module: Module, width: int, cotangent: mx.array) -> mx.array:
    """Cotangents of what a projection gives to those of what it reads; exact for quantised weights as well.

    Nothing is computed forwards: the primal is never looked at.
    """
    called = _called(module)
    zeros = mx.zeros((*cotangent.shape[:-1], width))
    try:
        _, (found,) = mx.vjp(lambda x: called(x).astype(mx.float32), [zeros], [cotangent])
    except (ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LensError(f"A projection ({type(module).__name__}) of this model has no gradient: {reason}.") from error
    return found


def _called(module: Module) -> Any:
    return module


_CLOSE = 1e-4
_NORMED = {"attn_out": "attn_out_normed", "mlp_out": "mlp_out_normed"}


@dataclass(frozen=True, eq=False)
class FrozenLayer:
    """One block. Norms that it does not have are ``None``.

    ``middle`` ``(tokens, d_model)`` is the stream that the MLP's norm reads, ``mlp_in`` what the MLP reads, ``mlp_out``
    what it gives, and ``mlp_added`` that after the norm behind it: what is added to the stream.
    """

    attention_norm: FrozenNorm | None
    attention: FrozenAttention
    attention_post: FrozenNorm | None
    mlp_norm: FrozenNorm | None
    mlp_post: FrozenNorm | None
    middle: mx.array
    mlp_in: mx.array
    mlp_out: mx.array
    mlp_added: mx.array

    def attend(self, x: mx.array) -> mx.array:
        """What the attention adds to the stream ``(rows, tokens, d_model)``, biases included."""
        given = self.attention(x if self.attention_norm is None else self.attention_norm(x))
        return given if self.attention_post is None else self.attention_post(given)

    def attend_back(self, cotangent: mx.array) -> mx.array:
        """The transposed map of :meth:`attend` without its biases."""
        found = cotangent if self.attention_post is None else self.attention_post.back(cotangent)
        found = self.attention.back(found)
        return found if self.attention_norm is None else self.attention_norm.back(found)

    @cached_property
    def attention_bias(self) -> mx.array:
        """What the attention adds where the stream is nothing, ``(tokens, d_model)``: its biases, and norms' shifts."""
        return self.attend(mx.zeros((1, *self.middle.shape)))[0]

    def reader(self, reads: Reads) -> FrozenNorm | None:
        """The norm between the stream in the middle and what a transcoder reads; ``None`` where that is the stream."""
        if reads == "resid_mid" or self.mlp_norm is None:
            return None
        return self.mlp_norm if reads == "mlp_in" else self.mlp_norm.without_gain

    def read(self, reads: Reads) -> mx.array:
        """What a transcoder reads, ``(tokens, d_model)`` float32."""
        if reads == "mlp_in":
            return self.mlp_in
        norm = self.reader(reads)
        return self.middle if norm is None else norm(self.middle)

    def writer(self, writes: Writes) -> FrozenNorm | None:
        """The norm between what a transcoder gives and the stream, if there is one."""
        return self.mlp_post if writes == "mlp_out" else None

    def given(self, writes: Writes) -> mx.array:
        """What a transcoder should give, ``(tokens, d_model)`` float32."""
        return self.mlp_out if writes == "mlp_out" else self.mlp_added


@dataclass(frozen=True, eq=False)
class FrozenModel:
    """A model held at one prompt: ``embedded`` and ``last`` ``(tokens, d_model)`` are the first and last residuals."""

    ids: tuple[int, ...]
    layers: tuple[FrozenLayer, ...]
    embedded: mx.array
    last: mx.array
    close: float
    """By how much of their size numbers may miss each other: rounding of the model's dtype, and no more."""

    def through(self, x: mx.array, start: int, stop: int) -> mx.array:
        """A change of the stream ``(rows, tokens, d_model)`` below block ``start`` as it is below block ``stop``.

        MLPs stay as they were.
        """
        for layer in self.layers[start:stop]:
            x = x + layer.attend(x) - layer.attention_bias
        return x


def freeze(lens: Core, ids: Sequence[int]) -> FrozenModel:
    """Hold a model at a prompt; what acts in blocks around the call is left out.

    Raises:
        LensError: For a model whose parts are not those of :class:`FrozenLayer`, with the part that is not.
        NotFinite: For activations that are not numbers.
    """
    decoder = lens.registry.decoder
    decoder.check_whole("An attribution graph")
    if decoder.passes > 1 or decoder.stream is not None or not decoder.closed:
        raise LensError(
            "This model goes through its blocks in a way that no graph of direct effects describes (several passes or "
            "streams).",
        )
    seen = _seen(lens, ids)
    close = max(_CLOSE, 8 * float(mx.finfo(decoder.dtype).eps))
    patterns = attention_patterns(lens, list(ids), list(range(lens.n_layers)), interventions=())
    layers = tuple(_layer(lens, at, seen, mx.array(pattern.weights), close) for at, pattern in enumerate(patterns))
    return _settled(tuple(ids), layers, seen[0, "resid_pre"], seen[lens.n_layers - 1, "resid_post"], close)


def _layer(lens: Core, at: int, seen: Mapping[Key, mx.array], patterns: mx.array, close: float) -> FrozenLayer:
    sites = lens.registry.sites
    entries = sites.entries(at)
    if entries.parallel:
        raise LensError(f"Attention and MLP of layer {at} read the same stream; graphs of such models are not made.")
    normed = {name for name in _NORMED.values() if (at, name) in seen}
    attention = sites.point(at, "attn_out").module
    norms = (
        None if entries.attention is attention else frozen_norm(entries.attention, seen[at, "resid_pre"]),
        _post(lens, at, "attn_out", normed, seen),
        None if entries.mlp is sites.point(at, "mlp_in").module else frozen_norm(entries.mlp, seen[at, "middle"]),
        _post(lens, at, "mlp_out", normed, seen),
    )
    before = seen[at, "resid_pre"] if norms[0] is None else norms[0](seen[at, "resid_pre"])
    held = _attention(lens, at, patterns, before, seen, close)
    added = seen.get((at, "mlp_out_normed"), seen[at, "mlp_out"])
    return FrozenLayer(
        norms[0], held, norms[1], norms[2], norms[3], seen[at, "middle"], seen[at, "mlp_in"], seen[at, "mlp_out"], added
    )


def _post(lens: Core, at: int, part: str, normed: set[str], seen: Mapping[Key, mx.array]) -> FrozenNorm | None:
    name = _NORMED[part]
    return frozen_norm(lens.registry.sites.point(at, name).module, seen[at, part]) if name in normed else None


def _attention(
    lens: Core, at: int, patterns: mx.array, read: mx.array, seen: Mapping[Key, mx.array], close: float
) -> FrozenAttention:
    """The attention with its patterns held, proved on what it read and gave."""
    sites = lens.registry.sites
    value, output = sites.point(at, "attn_v"), sites.point(at, "attn_z")
    width = lens.d_model
    found = [
        FrozenAttention(patterns, value.module, output.module, width, value.width, output.width, turns)
        for turns in (False, True)
    ]
    whole = seen[at, "attn_out"]
    errors = [_off(each(read[None])[0], whole) for each in found]
    best = min(range(2), key=lambda number: errors[number])
    if not errors[best] < close:
        raise LensError(
            f"The attention of layer {at} is not its patterns times its values (off by {errors[best]:.0%}): it is "
            "gated, or does more than attend, so that no direct effects go through it.",
        )
    return found[best]


def _settled(
    ids: tuple[int, ...], layers: Sequence[FrozenLayer], embedded: mx.array, last: mx.array, close: float
) -> FrozenModel:
    """The model with the stream that its parts make in float32, once that is the model's own stream but for rounding.

    In half precision the model rounds the stream at every layer, so that nothing adds up to what it holds; with this
    stream all does.
    """
    x, made = embedded, []
    for at, layer in enumerate(layers):
        x = x + layer.attend(x[None])[0]
        _check(x, layer.middle, f"the stream behind the attention of layer {at}", close)
        read = x if layer.mlp_norm is None else layer.mlp_norm(x)
        _check(read, layer.mlp_in, f"what the MLP of layer {at} reads", close)
        added = layer.mlp_out if layer.mlp_post is None else layer.mlp_post(layer.mlp_out)
        _check(added, layer.mlp_added, f"what the MLP of layer {at} adds", close)
        made.append(replace(layer, middle=x, mlp_in=read, mlp_added=added))
        x = x + added
        mx.eval(x, read, added)
    _check(x, last, "the last residual", close)
    return FrozenModel(ids, tuple(made), embedded, x, close)


def _off(found: mx.array, wanted: mx.array) -> float:
    """How far numbers are from those wanted, as a share of their size."""
    size = mx.maximum(mx.linalg.norm(wanted), 1e-30)
    return float(mx.linalg.norm(found - wanted) / size)


def _check(found: mx.array, wanted: mx.array, what: str, close: float) -> None:
    off = _off(found, wanted)
    if not off < close:
        raise LensError(
            f"This model is more than norms, attentions and MLPs added to one stream: {what} is off by {off:.1%}.",
            "No graph of direct effects can be made of it.",
        )


def _seen(lens: Core, ids: Sequence[int]) -> dict[Key, mx.array]:
    """The tensors of a plain forward, ``(tokens, width)`` float32; ``middle`` is what the MLP's norm reads."""
    keys: list[Key] = [(lens.n_layers - 1, "resid_post")]
    for at in range(lens.n_layers):
        sites = lens.sites(at)
        keys += [(at, "resid_pre"), (at, "attn_out"), (at, "mlp_in"), (at, "mlp_out")]
        keys += [(at, name) for name in _NORMED.values() if name in sites]
    kept = Kept(lens.registry, keys)
    found: dict[Key, mx.array] = {}
    with middles(lens, found):
        run = Run(lens.registry, Plan((), (kept,)), len(ids))
        lens.registry.forward(run, mx.array([list(ids)], dtype=mx.int32))
    found.update(kept.tensors)
    seen = {key: tensor[0].astype(mx.float32) for key, tensor in found.items()}
    finite = [mx.isfinite(tensor).all() for tensor in seen.values()]
    mx.eval(list(seen.values()), finite)
    for key, fine in zip(seen, finite, strict=True):
        if not fine.item():
            raise NotFinite(f"The activations at layer {key[0]} {key[1]} are not finite.", "Use another dtype.")
    return seen


@contextmanager
def middles(lens: Core, found: dict[Key, mx.array]) -> Iterator[None]:
    """Inside, forwards leave in ``found[layer, "middle"]`` the stream that each MLP, or its norm, reads."""
    with ExitStack() as stack:
        for at in range(lens.n_layers):
            module, tap = lens.registry.sites.entries(at).mlp, _noting(found, at)
            install(module, tap)
            stack.callback(uninstall, module, tap)
        yield


def _noting(found: dict[Key, mx.array], at: int) -> Callable[[Call, tuple[Any, ...], dict[str, Any]], Any]:
    def tap(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        found[at, "middle"] = input_of(args, kwargs) + 0  # what is kept must not be changed in place
        return call(*args, **kwargs)

    return tap
