"""Make a steering part of a model's weights: what is added becomes a bias, what is taken away is taken out of writers.

*Add* at the output of block L: where the block's last matrix has a bias, or the architecture has a slot for one that
``config.json`` can open, the vector goes there. Where it has none (Qwen, Gemma), the MLP is given ``2 d_model``
neurons whose sum is a constant: its input x is RMS-normed, so ``sum x_i^2 = d_model``; and for SiLU and GELU alike
``act(z) - act(-z) = z``, so the two neurons with gates ``x_i`` and ``-x_i`` and the same values give
``act(x_i) x_i + act(-x_i) (-x_i) = x_i^2``. Their columns of the last matrix are the vector over ``d_model``. (The
norm's epsilon makes the constant smaller by epsilon over the mean square of the stream.)

*Projection out*: ``W - d d^T W`` for every matrix that writes to the stream, and the embedding's rows likewise
(weight orthogonalisation, Arditi et al. 2024, 2406.11717). That is what taking the direction out of every write is,
so a projection at one layer becomes one at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.quantized import QuantizedLinear

from lens_tui.records import Add, FloatArray, Intervention, LensError, ProjectOut
from lens_tui.records.interventions import positions_text
from lens_tui.records.sanitise import one_line

from ..forward import Core, read_sites
from .find import Decoder
from .norms import gain_of
from .taps import original_class
from .weights import LINEAR, Part, Writer, block_writer, embeddings, extend, matrix, path_of, put_matrix

SLOTS: Mapping[Part, Mapping[str, str]] = {
    "mlp": {"llama": "mlp_bias", "granite": "mlp_bias"},
    "attn": {"llama": "attention_bias", "granite": "attention_bias"},
}
"""The key of ``config.json`` that gives an architecture's linear layers biases, in mlx-lm and transformers alike."""
_OF_PART: Mapping[Part, tuple[str, ...]] = {
    "mlp": ("gate_proj", "up_proj", "down_proj"),
    "attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
}
_GATED = ("gate_proj", "up_proj", "down_proj")
_CLOSE = 1e-3


@dataclass(frozen=True, eq=False)
class BakePlan:
    """What is to become weights.

    ``adds``: vectors (d_model,) by the part of the block that is to give them, or by ``None``, -1 for the embedding.
    ``directions``: unit vectors that are taken out, in order. ``live`` is the steering that the weights equal, and
    ``everywhere`` whether that acts in more places than was asked for.
    """

    adds: Mapping[tuple[int, Part | None], FloatArray]
    directions: tuple[FloatArray, ...]
    live: tuple[Intervention, ...]
    everywhere: bool


@dataclass
class WeightEdit:
    """What was done: ``where`` in words, changes to ``config.json``, how many neurons every MLP was given."""

    where: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    neurons: int = 0


def plan_bake(lens: Core, records: Sequence[Intervention]) -> BakePlan:
    """What a steering is as weights.

    Raises:
        LensError: For a record that no weights are, with the reason.
    """
    adds: dict[tuple[int, Part | None], FloatArray] = {}
    directions: list[FloatArray] = []
    live: list[Intervention] = []
    wanted = [record for record in records if record.enabled]
    if not wanted:
        raise LensError("There is nothing to bake.", "Name a steering, such as verse*8 or f75:project_out.")
    for record in wanted:
        _check(record)
        vector: Any = record.vector  # type: ignore[attr-defined]
        if isinstance(record, ProjectOut):
            directions.append(vector.direction)
            continue
        assert isinstance(record, Add)
        key = _place(record)
        pushed = (record.scale * vector.direction.astype(np.float64)).astype(np.float32)
        adds[key] = adds[key] + pushed if key in adds else pushed
        live.append(record)
    if directions and not lens.sites(0):
        raise LensError("This model's blocks have no sites, so nothing can be folded into what writes to its stream.")
    taken = [record for record in wanted if isinstance(record, ProjectOut)]
    everywhere = [item for at, record in enumerate(taken) for item in _everywhere(lens, record, at)]
    return BakePlan(adds, tuple(directions), (*everywhere, *live), bool(taken))


def _check(record: Intervention) -> None:
    name = one_line(record.id, 40)
    if record.gate is not None:
        raise LensError(f"{name} acts behind a gate, and weights have none.", "Bake it without the gate.")
    if not isinstance(record, Add | ProjectOut):
        raise LensError(
            f"{name} cannot be baked: what {record.mode} adds depends on what the stream holds, which no bias and no"
            " linear layer reads there.",
            "Bake add or project_out, and serve the others live (mlx-lens-tui serve).",
        )
    if record.positions.kind != "all":
        raise LensError(
            f"{name} acts on {positions_text(record.positions)}, and weights act on every token.",
            "Bake it at all positions, or steer live.",
        )


def _place(record: Add) -> tuple[int, Part | None]:
    """The write that a vector is added to."""
    layer, site = record.layer, record.site
    if site == "resid_pre":
        return (layer - 1, "mlp") if layer else (-1, None)
    if site in ("resid_post", "mlp_out"):
        return layer, "mlp"
    if site == "attn_out":
        return layer, "attn"
    raise LensError(
        f"{one_line(record.id, 40)} adds at {site}, which no bias of a block gives.",
        "Bake vectors for resid_pre, resid_post, attn_out or mlp_out.",
    )


def _everywhere(lens: Core, record: ProjectOut, number: int) -> list[Intervention]:
    """The direction taken out of the embedding and of everything that the blocks write."""
    places = [(0, "resid_pre")]
    for layer in range(lens.n_layers):
        places += [(layer, site) for site in ("attn_out", "mlp_out") if site in lens.sites(layer)]
    return [
        ProjectOut(
            id=f"out-{number}-{layer}-{site}",
            layer=layer,
            site=site,
            vector=replace(record.vector, layer=layer, site=site),
        )
        for layer, site in places
    ]


# -- the weights -----------------------------------------------------------


def bake_into(lens: Core, plan: BakePlan, config: Mapping[str, Any]) -> WeightEdit:
    """Change a loaded model's weights, in place and lazily; what is quantised is quantised again as it was.

    Args:
        lens: The model.
        plan: What is to become weights.
        config: Its ``config.json``.

    Raises:
        LensError: Where the architecture has no weight for it. The model is then as it was.
    """
    model, decoder = lens.registry.decoder.root, lens.registry.decoder
    if decoder.passes > 1 or decoder.stream is not None:
        raise LensError("This model goes through its blocks several times, or has several streams.", "Steer it live.")
    done = WeightEdit()
    writers = _all_writers(lens) if plan.directions else []
    tables = embeddings(model, decoder) if plan.directions or (-1, None) in plan.adds else ()
    targets = [
        (block_writer(model, lens.registry.sites, layer, part), layer, part, vector)
        for (layer, part), vector in plan.adds.items()
        if part is not None
    ]
    ready = [_bias_maker(lens, config, *target) for target in targets]
    if tables:
        scale = _embedding_scale(lens, tables)
        _untie(model, tables[0], done, must=bool(plan.directions))
    for direction in plan.directions:
        _take_out(direction, writers, tables)
    if plan.directions:
        done.where.append(f"taken out of the embedding and {len(writers)} matrices that write to the stream")
    if (-1, None) in plan.adds:
        _add_to_table(tables, plan.adds[-1, None], scale)
        done.where.append(f"added to every row of {tables[-1].path}")
    for make in ready:
        make(done)
    return done


def _all_writers(lens: Core) -> list[Writer]:
    decoder, parts = lens.registry.decoder, get_args(Part)
    places = [(layer, part) for layer in range(lens.n_layers) for part in parts]
    return [block_writer(decoder.root, lens.registry.sites, layer, part) for layer, part in places]


def _take_out(direction: FloatArray, writers: Sequence[Writer], tables: Sequence[Writer]) -> None:
    d = mx.array(direction)
    for writer in writers:
        weight = matrix(writer.module)
        put_matrix(writer.module, weight - d[:, None] * (d @ weight)[None])
        if "bias" in writer.module:
            bias = writer.module.bias.astype(mx.float32)
            writer.module.bias = (bias - d * (d @ bias)).astype(writer.module.bias.dtype)
    for table in tables:
        rows = matrix(table.module)
        put_matrix(table.module, rows - (rows @ d)[:, None] * d[None])


def _add_to_table(tables: Sequence[Writer], vector: FloatArray, scale: float) -> None:
    table = tables[-1]  # that of positions, where there is one: it is nobody's unembedding
    by = 1.0 if table.path.endswith("wpe") else scale
    put_matrix(table.module, matrix(table.module) + mx.array(vector / by)[None])


def _embedding_scale(lens: Core, tables: Sequence[Writer]) -> float:
    """What the model multiplies its embedding by (Gemma: the root of d_model).

    Raises :class:`LensError` where the first block is given something else than that.
    """
    found = read_sites(lens, (0, 1, 2), [(0, "resid_pre")], ())
    first = np.array(found[0, "resid_pre"].astype(mx.float32))
    rows = np.array(matrix(tables[0].module)[:3])
    if len(tables) > 1:
        first = first - np.array(matrix(tables[1].module)[:3])
    scale = float((first * rows).sum() / (rows * rows).sum())
    if not np.allclose(first, scale * rows, rtol=0.05, atol=0.02 * float(np.abs(first).max())):
        raise LensError("What this model's first block reads is not its embedding, so nothing can be folded into that.")
    return scale


def _untie(model: Any, table: Writer, done: WeightEdit, *, must: bool) -> None:
    """Give a model whose unembedding is its embedding one of its own, with the weights as they were."""
    args: Any = getattr(model, "args", None)
    if hasattr(model, "lm_head"):
        return
    if getattr(args, "tie_word_embeddings", None) is not True:
        if must:
            raise LensError(
                "This model's unembedding is its embedding, and mlx-lm's class for it has no other: a direction cannot"
                " be taken out of the one alone.",
                "Steer it live.",
            )
        return  # what is added to every row moves all logits of a token alike, which changes no probability
    base: Any = Module
    source = table.module
    kind: Any = QuantizedLinear if "scales" in source else Linear
    head: Any = kind.__new__(kind)
    base.__init__(head)
    for name, value in source.items():
        if isinstance(value, mx.array):
            head[name] = value
    if "scales" in source:
        head.group_size, head.bits, head.mode = source.group_size, source.bits, getattr(source, "mode", "affine")
    model.lm_head = head
    args.tie_word_embeddings = False
    done.config["tie_word_embeddings"] = False
    done.where.append("the unembedding, which was the embedding, is a matrix of its own")


Maker = Callable[[WeightEdit], None]


def _bias_maker(
    lens: Core, config: Mapping[str, Any], writer: Writer, layer: int, part: Part, vector: FloatArray
) -> Maker:
    """What adds a vector to a write, once all that can fail has been looked at."""
    kind = str(config.get("model_type", ""))
    decoder = lens.registry.decoder
    if "bias" in writer.module:
        return lambda done: _add_bias(writer, vector, done)
    if kind in SLOTS[part]:
        key = SLOTS[part][kind]
        owners = [lens.registry.sites.point(at, f"{part}_out").module for at in range(lens.n_layers)]
        if all(hasattr(owner, name) for owner in owners for name in _OF_PART[part]):
            return lambda done: _open_slot(owners, part, key, writer, vector, done)
    if part == "attn":
        raise LensError(
            f"The attention of a {one_line(kind, 30)} model has no bias, and no other weight adds to what it writes.",
            "Bake a vector for resid_post or mlp_out, or steer live.",
        )
    owners = [lens.registry.sites.point(at, "mlp_out").module for at in range(lens.n_layers)]
    gain = _norm_gain(lens, owners, layer)
    return lambda done: _widen(decoder, owners, layer, gain, vector, done)


def _add_bias(writer: Writer, vector: FloatArray, done: WeightEdit) -> None:
    module = writer.module
    module.bias = (module.bias.astype(mx.float32) + mx.array(vector)).astype(module.bias.dtype)
    done.where.append(f"added to the bias of {writer.path}")


def _open_slot(
    owners: Sequence[Any], part: Part, key: str, writer: Writer, vector: FloatArray, done: WeightEdit
) -> None:
    """Give every linear layer of a part in all blocks a bias, zero but in the one place: the config opens all."""
    for owner in owners:
        for name in _OF_PART[part]:
            module = getattr(owner, name)
            if "bias" not in module:
                width = module["weight"].shape[0]
                module.bias = mx.zeros((width,), dtype=_float_dtype(module))
    done.config[key] = True
    _add_bias(writer, vector, done)
    done.where[-1] = f"a bias of {writer.path} ({key} in config.json; all others are zero)"


def _float_dtype(module: Any) -> mx.Dtype:
    dtype: mx.Dtype = module["scales"].dtype if "scales" in module else module["weight"].dtype
    return dtype if mx.issubdtype(dtype, mx.floating) else mx.bfloat16


# -- neurons that give a constant ------------------------------------------


def _norm_gain(lens: Core, owners: Sequence[Any], layer: int) -> FloatArray:
    """The gain (d_model,) of the norm before a block's MLP; refuses an MLP that is not gated, or behind no RMS norm."""
    parts: list[Any] = [getattr(owner, name, None) for owner in owners for name in _GATED]
    gated = all(part is not None and original_class(part).__name__ in LINEAR for part in parts)
    widths = {part["weight"].shape[0] for part in parts[::3]} if gated else set()
    norm = lens.registry.sites.entries(layer).mlp
    if len(widths) != 1 or "rmsnorm" not in original_class(norm).__name__.lower():
        raise LensError(
            "This model's MLPs have no bias and are not gated ones behind an RMS norm, so no weight adds a constant.",
            "Steer it live, or write a control vector for llama.cpp (--to gguf).",
        )
    gain = gain_of(norm, lens.d_model)
    if (np.abs(gain) < _CLOSE * np.abs(gain).max()).any():
        raise LensError(f"The norm before the MLP of layer {layer} has gains near zero.", "Steer it live.")
    return gain


def _widen(
    decoder: Decoder, owners: Sequence[Any], layer: int, gain: FloatArray, vector: FloatArray, done: WeightEdit
) -> None:
    """Give every MLP ``2 d_model`` neurons, zero but in one block, whose sum there is the vector."""
    width, grain = decoder.d_model, getattr(owners[0].down_proj, "group_size", 1)
    extra = -(-2 * width // grain) * grain
    old = int(owners[0].gate_proj["weight"].shape[0]) - done.neurons
    rows, columns = np.zeros((extra, width), np.float32), np.zeros((width, extra), np.float32)
    nothing = mx.array(rows), mx.array(columns)
    at = np.arange(width)
    rows[at, at], rows[width + at, at] = 1 / gain, -1 / gain
    columns[:, : 2 * width] = (vector / width)[:, None]
    for number, owner in enumerate(owners):
        if done.neurons and number != layer:
            continue  # an earlier vector made room there
        new_rows, new_columns = (mx.array(rows), mx.array(columns)) if number == layer else nothing
        extend(owner.gate_proj, old, new_rows, axis=0)
        extend(owner.up_proj, old, new_rows, axis=0)
        extend(owner.down_proj, old, new_columns, axis=1)
    done.neurons = extra
    done.config["intermediate_size"] = old + extra
    done.where.append(
        f"{2 * width} neurons of {path_of(decoder.root, owners[layer])} that give a constant, as the architecture has"
        f" no bias there (intermediate_size {old} to {old + extra} in every block)"
    )
