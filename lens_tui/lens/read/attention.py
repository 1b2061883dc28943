"""Attention by head: its pattern, what it hands on, what it writes to the residual, and what that adds to a logit.

Patterns are read off the layer's own attention: no architecture's scores are written here again. Attention is linear in
its values. With the values of tokens ``j, j+1, ...`` replaced by unit vectors, what the layer hands to its output
projection *is* the pattern, after its own rotary embedding, norms, window, mask, soft-capping and sinks. It is in
float32 unless the layer itself rounds its weights (Gemma 2 and Cohere 2, whose attention is written out). That it is
one is proved on the real values: pattern times values must give what the layer really handed over. Where one projection
gives queries, keys and values, that proof also tells which of its columns are which.

What a head writes is its slice of ``attn_z`` through its columns of the output projection, so that the heads and the
projection's bias sum to ``attn_out`` (Elhage et al. 2021, "A mathematical framework for transformer circuits"). A norm
behind the attention (Gemma 2 and 3) is kept at its denominator, as the final one is in logit attribution. That the
heads are all of an attention is proved on what it gave.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module
from numpy.typing import NDArray

from lens_tui.records import EditPattern, FloatArray, Intervention, LensError
from lens_tui.records.measures import AttentionPattern, HeadAttribution

from ..architecture.find import heads_of
from ..architecture.norms import doubles_of, gain_of, gain_over_denominator
from ..architecture.taps import Call, input_of, install, uninstall
from ..architecture.unembed import weight_rows
from ..forward import Core, one_text, read_sites
from ..hooks.program import Key
from ..hooks.registry import Holding, Plan, Run
from ..hooks.steering import entries_of

if TYPE_CHECKING:
    from ..model import LensModel


VALUE_NAMES = ("v_norm", "v_proj", "wv", "c_v")
FUSED_NAMES = ("qkv_proj", "c_attn", "query_key_value", "Wqkv", "wqkv", "W_pack", "attn_qkv_proj", "qkv")
LIMIT_BYTES = 1 << 31
Columns = NDArray[np.int64]


@dataclass(eq=False)
class _Probe:
    """One layer's attention: the modules that matter, and what was seen of them in a forward.

    ``values`` is the last module that values go through: their projection, or their norm (``normed``; Gemma 4).
    ``pieces`` has the patterns' parts for each of the places where values may be in a fused projection.
    """

    attention: Module
    values: Module
    output: Module
    heads: int
    width: int
    name: str
    normed: bool = False
    override: mx.array | None = None
    seen_values: mx.array | None = None
    seen_output: mx.array | None = None
    places: list[Columns] = field(default_factory=list)
    pieces: list[list[mx.array]] = field(default_factory=list)
    real: tuple[mx.array, mx.array] | None = None


def attention_patterns(
    lens: Core,
    text: Any,
    layers: int | Sequence[int],
    *,
    interventions: Sequence[Intervention] | None = None,
) -> tuple[AttentionPattern, ...]:
    """How much each head of some layers looks from each token of a text to each one.

    Costs one forward and, for each layer, one more pass of its attention per ``head_dim`` tokens.

    Args:
        lens: The model.
        text: A text, or its token ids.
        layers: One or several; negative ones count from the end.
        interventions: Replace those of the blocks around the call, which hold otherwise. A pattern that
            ``EditPattern`` changes is read as it was edited.

    Returns:
        For each layer the weights (heads, tokens, tokens).

    Raises:
        LensError: With the reason where a layer has no pattern that can be read so: no attention (state space,
            convolution, linear attention), compressed values (multi-head latent attention), an output that is gated
            (Qwen 3 Next), or one projection of queries, keys and values whose parts cannot be told apart; and where
            the patterns would take more than 2 GiB.
    """
    lens.registry.decoder.check_whole("Patterns of attention")
    ids = one_text(lens, text)
    where = list(dict.fromkeys(lens.registry.decoder.indices(layers)))
    if lens.registry.decoder.passes > 1:
        raise LensError("This model goes through its blocks several times, so its patterns cannot be read one by one.")
    probes = {layer: _probe(lens, layer) for layer in where}
    size = 4 * len(ids) ** 2 * sum(probe.heads for probe in probes.values())
    if size > LIMIT_BYTES:
        raise LensError(
            f"The patterns of {len(where)} layers over {len(ids)} tokens take {size / 2**30:.1f} GiB.",
            "Read fewer layers or a shorter text.",
        )
    _observe(lens, ids, probes, interventions)
    return tuple(_pattern(lens, layer, ids, probe) for layer, probe in probes.items())


def _probe(lens: Core, layer: int) -> _Probe:
    sites = lens.registry.sites
    attention = sites.point(layer, "attn_out").module
    output = sites.point(layer, "attn_z")
    names = (*VALUE_NAMES, *FUSED_NAMES)
    values = [(name, module) for name in names if isinstance(module := getattr(attention, name, None), Module)]
    heads = heads_of(attention)
    if not values or not heads or output.width % heads:
        what = "projection of values (they are compressed, or other layers')" if heads else "known number of heads"
        raise LensError(
            f"The attention of layer {layer} ({type(attention).__name__}) has no {what} of its own, "
            "so no pattern can be read."
        )
    name, module = values[0]
    return _Probe(attention, module, output.module, heads, output.width, name, normed=name == VALUE_NAMES[0])


def _observe(
    lens: Core, ids: Sequence[int], probes: Mapping[int, _Probe], interventions: Sequence[Intervention] | None
) -> None:
    """One forward; inside it each probed attention is called again with unit vectors for values."""
    registry = lens.registry
    entries = registry.ambient()[0]
    if interventions is not None:
        entries = tuple(entries_of(interventions, registry))
    run = Run(registry, Plan((entries,)), len(ids))
    with ExitStack() as stack:
        # Before the probes, which so stand outside: what is steered at a site is seen by them as it continues. An
        # edited pattern is what the projection is given, so that it is seen from inside.
        edited = {entry.item.layer for entry in entries if isinstance(entry.item, EditPattern)}
        inside: list[tuple[Module, Callable[..., Any]]] = []
        outside: list[tuple[Module, Callable[..., Any]]] = []
        for layer, probe in probes.items():
            *outer, output = _taps(probe, len(ids))
            outside += outer
            (inside if layer in edited else outside).append(output)
        for module, tap in inside:
            install(module, tap)
            stack.callback(uninstall, module, tap)
        stack.enter_context(Holding(registry, run.keys))
        for module, tap in outside:
            install(module, tap)
            stack.callback(uninstall, module, tap)
        registry.forward(run, mx.array([list(ids)], dtype=mx.int32), held=True)


def _taps(probe: _Probe, count: int) -> list[tuple[Module, Callable[..., Any]]]:
    def attention(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = call(*args, **kwargs)
        if probe.seen_values is None or probe.seen_output is None:
            return result
        probe.real = probe.seen_values, probe.seen_output
        width = probe.width // probe.heads
        probe.places = _value_places(probe, int(probe.seen_values.shape[-1]))
        for columns in probe.places:
            probe.pieces.append([])
            for start in range(0, count, width):
                probe.override = _units(probe, columns, count, start)
                try:
                    call(*args, **kwargs)
                except (ValueError, RuntimeError):  # it keeps keys and values itself (Gemma 3n): no second call
                    probe.override = probe.real = None
                    return result
                probe.pieces[-1].append(probe.seen_output)
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


def _value_places(probe: _Probe, whole: int) -> list[Columns]:
    """Where the values may be among the columns that their module gives.

    All of them; or, in a fused projection, behind all queries and all keys (GPT-2, Phi 3), or at the end of each
    group of the queries, key and value of one key-value head (GPT-NeoX, where every head is one; InternLM 2).
    """
    width = probe.width // probe.heads
    columns = np.arange(whole)
    if whole <= probe.width:
        return [columns]
    size = (whole - probe.width) // 2
    groups, rest = divmod(size, width)
    if size <= 0 or rest or whole != probe.width + 2 * size or probe.heads % groups:
        return [columns[-max(size, 0) :]]
    by_group = columns.reshape(groups, -1)[:, -width:].reshape(-1)
    return [columns[-size:]] if groups == 1 else [columns[-size:], by_group]


def _units(probe: _Probe, columns: Columns, count: int, start: int) -> mx.array:
    """What the values' module is made to give: token ``start + c`` gets the unit vector ``c`` in every head."""
    assert probe.real is not None
    given = probe.real[0].astype(mx.float32)
    width = probe.width // probe.heads
    basis = np.zeros((1, count, width), dtype=np.float32)
    inside = np.arange(start, min(start + width, count))
    basis[0, inside, inside - start] = 1.0
    values = mx.tile(mx.array(basis), (1, 1, max(1, len(columns) // width)))
    if len(columns) == given.shape[-1]:
        return values
    replaced = given + 0
    replaced[..., mx.array(columns)] = values
    return replaced


def _pattern(lens: Core, layer: int, ids: Sequence[int], probe: _Probe) -> AttentionPattern:
    """The pattern put together, and held against what the layer really gave."""
    name = f"The attention of layer {layer} ({type(probe.attention).__name__})"
    if probe.real is None:
        raise LensError(f"{name} has no values that can be replaced.")
    tried = [_rebuilt(probe, len(ids), *pair) for pair in zip(probe.places, probe.pieces, strict=True)]
    weights, error = min(tried, key=lambda pair: pair[1])
    eps = float(mx.finfo(lens.registry.decoder.dtype).eps)
    found = np.array(weights)
    if why := _no_pattern(probe, found, error, eps):
        raise LensError(f"{name} has no pattern that can be read: {why}.")
    return AttentionPattern(lens.info.name, layer, tuple(ids), found, error)


def _rebuilt(probe: _Probe, count: int, columns: Columns, pieces: Sequence[mx.array]) -> tuple[mx.array, float]:
    """Weights (heads, tokens, tokens), and how far weights times values are from what was handed over, relatively."""
    assert probe.real is not None
    width = probe.width // probe.heads
    parts = [piece[0].reshape(count, probe.heads, width).transpose(1, 0, 2) for piece in pieces]
    weights = mx.concatenate(parts, axis=-1)[..., :count].astype(mx.float32)
    given, real = (part.astype(mx.float32)[0] for part in probe.real)
    if not len(columns) or len(columns) % width:
        return weights, float("inf")
    values = given[:, mx.array(columns)].reshape(count, -1, width).transpose(1, 0, 2)
    groups = values.shape[0]
    if probe.heads % groups:
        return weights, float("inf")
    # Heads share values in blocks; in PLaMo they take turns.
    shared = [mx.repeat(values, probe.heads // groups, axis=0), mx.tile(values, (probe.heads // groups, 1, 1))]
    size = mx.maximum(mx.linalg.norm(real), 1e-30)
    rebuilt = [(weights @ each).transpose(1, 0, 2).reshape(count, -1) for each in shared]
    error = min(float(mx.linalg.norm(each - real) / size) for each in rebuilt)
    return weights, error if np.isfinite(error) else float("inf")


def _no_pattern(probe: _Probe, weights: FloatArray, error: float, eps: float) -> str:
    """Why what was found is not an attention pattern, as a clause; empty if it is one. ``eps`` is the dtype's."""
    if not error <= max(1e-4, 4.0 * eps):
        if probe.name in FUSED_NAMES and len(probe.places[0]) < int(probe.real[0].shape[-1] if probe.real else 0):
            return (
                f"its queries, keys and values come from one projection ({probe.name}) in an order that is not known, "
                "or its output is gated"
            )
        off = f"{error:.0%}" if np.isfinite(error) else "more than can be said"
        return f"its weights times its values are not what it hands on (off by {off}): the output is gated, or changed"
    more = "so it does more than attend (linear attention, a gate, a convolution of values)"
    if weights.min() < -1e-6:
        return f"its weights are negative in places, down to {weights.min():.2g}, {more}"
    # Weights that the layer rounds to its dtype (Gemma 2) do not add up to 1 exactly.
    if (most := weights.sum(axis=-1).max()) > 1.0 + max(1e-3, eps):
        return f"its weights for one token add up to {most:.3g}, {more}"
    return ""


Array = NDArray[np.float64]
Stream = Mapping[Key, Array]


@dataclass(frozen=True, eq=False)
class AttentionWrote:
    """What a layer's attention wrote, and what its logit is along.

    ``before`` and ``after`` are the tensors ``(p, width)`` by layer and site without and with steering, ``site`` the
    one that adds to the residual, ``factor`` times; ``direction`` ``(p, d_model)`` is what the logit is along.
    """

    before: Stream
    after: Stream
    site: str
    factor: float
    direction: Array


@dataclass(frozen=True, eq=False)
class _Output:
    """A layer's output projection: ``weight`` ``(d_model, heads * head_dim)`` and ``bias`` ``(d_model,)``."""

    heads: int
    weight: Array
    bias: Array


def head_outputs(
    lens: Core, text: Any, layer: int, *, interventions: Sequence[Intervention] | None = None
) -> tuple[FloatArray, FloatArray]:
    """What each head of a layer gives: its part of ``attn_out``.

    Args:
        lens: The model.
        text: A text, or its token ids.
        layer: Negative ones count from the end.
        interventions: Replace those of the blocks around the call, which hold otherwise.

    Returns:
        ``(tokens, heads, d_model)`` in float32, and the output projection's bias ``(d_model,)``, which is no head's.
        Over heads, and with the bias, they sum to ``attn_out`` up to the rounding of the model's dtype.

    Raises:
        LensError: With the reason where a layer's output is not the sum of its heads'.
    """
    ids = one_text(lens, text)
    layer = lens.registry.decoder.index(layer)
    keys = [(layer, "attn_z"), (layer, "attn_out")]
    found = read_sites(lens, ids, keys, interventions)
    plain = found if interventions is None and not lens.registry.ambient()[0] else read_sites(lens, ids, keys, ())
    output = _output(lens, layer, {key: doubles_of(value) for key, value in plain.items()})
    z = doubles_of(found[layer, "attn_z"]).reshape(len(ids), output.heads, -1)
    weight = output.weight.reshape(lens.d_model, output.heads, -1)
    # Head by head: one product of all of them would go through axes that no library multiplies quickly.
    each = [z[:, head] @ weight[:, head].T for head in range(output.heads)]
    return np.stack(each, axis=1).astype(np.float32), output.bias.astype(np.float32)


def head_attribution(lens: Core, layer: int, written: AttentionWrote) -> HeadAttribution:
    """What each head of a layer adds to a logit; with the reason where its heads cannot be told apart.

    Args:
        lens: The model, with nothing hooked.
        layer: Counted from 0.
        written: What its attention wrote.
    """
    count = len(written.direction)
    if (layer, "attn_z") not in written.after or (layer, "attn_out") not in written.after:
        return no_heads(layer, count, "its attention hands no heads to an output projection")
    try:
        output = _output(lens, layer, written.before)
        along = written.factor * written.direction
        if written.site == "attn_out_normed":
            along = along * _norm_scale(lens, layer, written.after[layer, "attn_out"])
    except LensError as error:
        return no_heads(layer, count, error.message)
    z = written.after[layer, "attn_z"]
    values = (z * (along @ output.weight)).reshape(count, output.heads, -1).sum(axis=-1).T
    bias = along @ output.bias
    whole = written.factor * (written.after[layer, written.site] * written.direction).sum(axis=-1)
    rest = whole - values.sum(axis=0) - bias
    return HeadAttribution(layer, values.astype(np.float32), bias.astype(np.float32), rest.astype(np.float32))


def no_heads(layer: int, count: int, why: str) -> HeadAttribution:
    """A layer at ``count`` positions whose heads cannot be told apart, and why."""
    none = np.zeros(count, np.float32)
    return HeadAttribution(layer, np.zeros((0, count), np.float32), none, none, why)


def _output(lens: Core, layer: int, stream: Stream) -> _Output:
    """A layer's output projection, held against what it gave of ``attn_z`` without steering."""
    lens.registry.decoder.check_whole("What each head writes")
    sites = lens.registry.sites
    attention, projection = sites.point(layer, "attn_out").module, sites.point(layer, "attn_z")
    heads = heads_of(attention)
    name = f"the attention of layer {layer} ({type(attention).__name__})"
    if not heads or projection.width % heads:
        raise LensError(f"{name} does not say how many heads it has.")
    if "weight" not in projection.module or projection.module["weight"].ndim != 2:
        raise LensError(f"The output projection of {name} has no weights of its own.")
    weight, bias = weight_rows(projection.module, range(lens.d_model))
    z, given = stream[layer, "attn_z"], stream[layer, "attn_out"]
    if weight.shape[1] != projection.width:
        raise LensError(f"The output projection of {name} does not take its heads as they are.")
    error = np.linalg.norm(z @ weight.T + bias - given) / max(float(np.linalg.norm(given)), 1e-30)
    eps = float(mx.finfo(lens.registry.decoder.dtype).eps)
    if not error <= max(1e-4, 4.0 * eps):
        raise LensError(f"What {name} gives is not its heads through one projection (off by {error:.0%}).")
    return _Output(heads, weight, bias)


def _norm_scale(lens: Core, layer: int, given: Array) -> Array:
    """The gain over its denominator, at each position, of the norm behind an attention that gave ``(p, d_model)``."""
    norm: Module = lens.registry.sites.point(layer, "attn_out_normed").module
    x = mx.array(given.astype(np.float32))[None]
    gain = gain_of(norm, lens.d_model).astype(np.float64)
    return gain_over_denominator(doubles_of(x)[0], doubles_of(norm(x))[0], gain, False)


def patterns_or_reasons(
    lens: LensModel, text: Any, layers: Sequence[int], *, interventions: Sequence[Intervention] | None = None
) -> list[AttentionPattern | LensError]:
    """As :func:`lens_tui.attention_patterns`, with the reason in the place of a layer that has no pattern to read.

    Args:
        lens: The model.
        text: A text, or its token ids.
        layers: Counted from 0.
        interventions: Replace those of the blocks around the call, which hold otherwise.
    """
    try:  # one forward for all of them, where every one can be read
        return list(attention_patterns(lens, text, layers, interventions=interventions))
    except LensError:
        found: list[AttentionPattern | LensError] = []
        for layer in layers:
            try:
                found += attention_patterns(lens, text, layer, interventions=interventions)
            except LensError as error:
                found.append(error)
        return found
