"""Attention patterns, read off the layer's own attention: no architecture's scores are written here again.

Attention is linear in its values. With the values of tokens ``j, j+1, ...`` replaced
by unit vectors, what the layer hands to its output projection *is* the pattern,
after its own rotary embedding, norms, window, mask, soft-capping and sinks, in
float32. That it is one is proved on the real values: pattern times values must
give what the layer really handed over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module

from lens_tui.records import Intervention, LensError
from lens_tui.records.readouts import AttentionPattern

from .checks import checked
from .proxy import Call, input_of, install, uninstall
from .readings import one_text
from .registry import Entry, Plan, Run

if TYPE_CHECKING:
    from .model import LensModel

VALUE_NAMES = ("v_norm", "v_proj", "wv", "c_v")
FUSED_NAMES = ("qkv_proj", "c_attn", "query_key_value", "Wqkv", "wqkv", "W_pack", "attn_qkv_proj", "qkv")
COUNT_NAMES = ("n_heads", "num_heads", "num_attention_heads", "n_head", "n_q_heads")
LIMIT_BYTES = 1 << 31


@dataclass(eq=False)
class _Probe:
    """One layer's attention: the modules that matter, and what was seen of them in a forward.

    ``values`` is the last module that values go through: their projection, or their norm (``normed``; Gemma 4).
    """

    attention: Module
    values: Module
    output: Module
    heads: int
    width: int
    normed: bool = False
    override: mx.array | None = None
    seen_values: mx.array | None = None
    seen_output: mx.array | None = None
    pieces: list[mx.array] = field(default_factory=list)
    real: tuple[mx.array, mx.array] | None = None


def attention_patterns(
    lens: LensModel,
    text: Any,
    layers: int | Sequence[int],
    *,
    interventions: Sequence[Intervention] | None = None,
) -> tuple[AttentionPattern, ...]:
    """How much each head of some layers looks from each token of a text (or its ids) to each one.

    Costs one forward and, for each layer, one more pass of its attention per ``head_dim`` tokens.
    ``interventions`` replace those of the blocks around the call, which hold otherwise.

    Raises :class:`LensError` with the reason where a layer has no pattern that can be read so: no attention (state
    space, convolution, linear attention), compressed values (multi-head latent attention), an output that is gated
    (Qwen 3 Next), or one projection of queries, keys and values whose parts cannot be told apart (GPT-NeoX); and
    where the patterns would take more than 2 GiB.
    """
    ids = one_text(lens, text)
    wanted = [layers] if isinstance(layers, int) else list(layers)
    where = list(dict.fromkeys(lens.registry.decoder.index(layer) for layer in wanted))
    if lens.registry.decoder.passes > 1:
        raise LensError("This model goes through its blocks several times, so its patterns cannot be read one by one.")
    probes = {layer: _probe(lens, layer) for layer in where}
    size = 4 * len(ids) ** 2 * sum(probe.heads for probe in probes.values())
    if size > LIMIT_BYTES:
        raise LensError(
            f"The patterns of {len(where)} layers over {len(ids)} tokens take {size / 2**30:.1f} GiB.",
            "Read fewer layers or a shorter text.",
        )
    _run(lens, ids, list(probes.values()), interventions)
    return tuple(_pattern(lens, layer, ids, probe) for layer, probe in probes.items())


def _probe(lens: LensModel, layer: int) -> _Probe:
    sites = lens.registry.sites
    attention = sites.point(layer, "attn_out").module
    output = sites.point(layer, "attn_z")
    values = [module for name in (*VALUE_NAMES, *FUSED_NAMES) if isinstance(module := _child(attention, name), Module)]
    heads = next((n for name in COUNT_NAMES if isinstance(n := getattr(attention, name, None), int) and n > 0), 0)
    if not values or not heads or output.width % heads:
        what = "projection of values" if heads else "number of heads"
        raise LensError(
            f"The attention of layer {layer} ({type(attention).__name__}) has no {what} of its own, "
            "so no pattern can be read."
        )
    normed = values[0] is _child(attention, VALUE_NAMES[0])
    return _Probe(attention, values[0], output.module, heads, output.width, normed)


def _child(module: Module, name: str) -> Any:
    return getattr(module, name, None)


def _run(
    lens: LensModel, ids: Sequence[int], probes: Sequence[_Probe], interventions: Sequence[Intervention] | None
) -> None:
    """One forward; inside it each probed attention is called again with unit vectors for values."""
    registry = lens.registry
    entries = registry.ambient()[0]
    if interventions is not None:
        entries = tuple(Entry(registry, checked(item, registry)) for item in interventions)
    plan = Plan((entries,))
    needed = sorted(plan.keys)
    registry.need(needed)
    try:
        with ExitStack() as stack, registry.running(Run(registry, plan, len(ids))):
            for probe in probes:
                for module, tap in _taps(probe, len(ids)):
                    install(module, tap)
                    stack.callback(uninstall, module, tap)
            registry.decoder.forward(mx.array([list(ids)], dtype=mx.int32))
    finally:
        registry.release(needed)


def _taps(probe: _Probe, count: int) -> list[tuple[Module, Callable[..., Any]]]:
    def attention(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = call(*args, **kwargs)
        if probe.seen_values is None or probe.seen_output is None:
            return result
        probe.real = probe.seen_values, probe.seen_output
        width = probe.width // probe.heads
        for start in range(0, count, width):
            probe.override = _units(probe, count, start, width)
            call(*args, **kwargs)
            probe.pieces.append(probe.seen_output)
        probe.override = None
        return result

    def values(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if probe.override is not None:
            return probe.override.reshape(input_of(args, kwargs).shape) if probe.normed else probe.override
        given = call(*args, **kwargs)
        if not isinstance(given, mx.array):  # queries, keys and values apart, in a list (AFM)
            return given
        probe.seen_values = given.reshape(1, count, -1)
        return given + 0  # what is kept must not be changed in place

    def output(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        probe.seen_output = input_of(args, kwargs) + 0
        return call(*args, **kwargs)

    return [(probe.attention, attention), (probe.values, values), (probe.output, output)]


def _value_width(probe: _Probe, given: mx.array) -> int:
    """How many of the projection's last columns are values: all, or in a fused one half of what queries leave."""
    whole = int(given.shape[-1])
    return (whole - probe.width) // 2 if whole > probe.width else whole


def _units(probe: _Probe, count: int, start: int, width: int) -> mx.array:
    """What the values' projection is made to give: token ``start + c`` gets the unit vector ``c`` in every head."""
    assert probe.real is not None
    given = probe.real[0].astype(mx.float32)
    columns = _value_width(probe, given)
    unit = np.zeros((1, count, width), dtype=np.float32)
    inside = np.arange(start, min(start + width, count))
    unit[0, inside, inside - start] = 1.0
    values = mx.tile(mx.array(unit), (1, 1, max(1, columns // width)))
    kept = given.shape[-1] - columns
    return values if kept == 0 else mx.concatenate([given[..., :kept], values], axis=-1)


def _pattern(lens: LensModel, layer: int, ids: Sequence[int], probe: _Probe) -> AttentionPattern:
    """The pattern put together, and held against what the layer really gave."""
    if probe.real is None:
        raise LensError(
            f"The attention of layer {layer} ({type(probe.attention).__name__}) has no values that can be replaced."
        )
    count, width = len(ids), probe.width // probe.heads
    parts = [piece[0].reshape(count, probe.heads, width).transpose(1, 0, 2) for piece in probe.pieces]
    weights = mx.concatenate(parts, axis=-1)[..., :count].astype(mx.float32)
    given, real = (part.astype(mx.float32)[0] for part in probe.real)
    values = given[:, -_value_width(probe, given) :].reshape(count, -1, width).transpose(1, 0, 2)
    values = mx.repeat(values, max(1, probe.heads // values.shape[0]), axis=0)
    error = float("inf")
    if values.shape[0] == probe.heads:
        rebuilt = (weights @ values).transpose(1, 0, 2).reshape(count, -1)
        size = mx.maximum(mx.linalg.norm(real), 1e-30)
        error = float(mx.linalg.norm(rebuilt - real) / size)
    allowed = max(1e-4, 4.0 * float(mx.finfo(lens.registry.decoder.dtype).eps))
    found = np.array(weights)
    if not error <= allowed or found.min() < -1e-6 or found.sum(axis=-1).max() > 1.0 + 1e-3:
        raise LensError(
            f"The attention of layer {layer} ({type(probe.attention).__name__}) does more to its values than weigh "
            "them, so its pattern cannot be read."
        )
    return AttentionPattern(lens.info.name, layer, tuple(ids), found, error)
