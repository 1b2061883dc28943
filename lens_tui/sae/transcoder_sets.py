"""Sets of transcoders that stand in for all MLPs of a model: one a layer, or with decoders to all layers behind.

Features and biases are read when a set is opened, decoder rows when they are asked for: a set may have 160 GB of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.records import FloatArray, LensError
from lens_tui.records.attribution_graph import Reads, Writes

from .base import SAE
from .files import Stored

Numbers = NDArray[np.int64]
_AT_ONCE = 1 << 24
"""Activations that are held at once."""


class LayerTranscoders:
    """Transcoders of single layers.

    Args:
        saes: By layer, at least one; each reads and gives the same kinds of tensors.
        name: What the set is called in records.
        reads: The tensor that they read.
        writes: The tensor that they give.

    Raises:
        LensError: For transcoders that normalise each token by its own statistics: they are not linear.
    """

    crosses = False

    def __init__(self, saes: Mapping[int, SAE], name: str, reads: Reads, writes: Writes) -> None:
        self.saes = dict(sorted(saes.items()))
        self.name, self.reads, self.writes = name, reads, writes
        self.layers = tuple(self.saes)
        for layer, sae in self.saes.items():
            _check_linear(sae, layer)

    def active(self, layer: int, x: mx.array) -> tuple[Numbers, Numbers, FloatArray]:
        """Where features of a layer are active on ``(tokens, d_in)``: positions, features and activations ``(n,)``."""
        return active_in(self.saes[layer], x)

    def encoder(self, layer: int, features: Numbers) -> tuple[mx.array, FloatArray]:
        """Rows ``(n, d_in)`` and biases ``(n,)``: ``x @ rows.T + bias`` is the activation where it is not 0."""
        return encoder_of(self.saes[layer], features)

    def decoder(self, layer: int, to: int, features: Numbers) -> mx.array:
        """What a unit of activation adds, ``(n, d_out)``; ``to`` is the layer itself."""
        sae = self.saes[layer]
        return sae.effects(features) / sae.definition.output_scale

    def decoder_bias(self, layer: int) -> mx.array:
        """What a layer's transcoder gives without features, ``(d_out,)``."""
        sae = self.saes[layer]
        return sae.tensors["b_dec"] / sae.definition.output_scale

    def skip(self, layer: int) -> mx.array | None:
        """The skip connection of a layer ``(d_in, d_out)``."""
        sae = self.saes[layer]
        found = sae.tensors.get("w_skip")
        if found is None:
            return None
        return found.astype(mx.float32) * (sae.definition.input_scale / sae.definition.output_scale)


@dataclass(frozen=True, eq=False)
class CrossDecoder:
    """Decoders of a layer's features to this layer and others: a matrix whose rows are a feature's, one after another.

    ``rows`` is ``(width * outputs, d_out)``; row ``feature * outputs + to - first`` is for layer ``to``.
    """

    rows: Stored
    outputs: int
    first: int

    def read(self, to: int, features: Numbers) -> mx.array:
        """Rows ``(n, d_out)`` to one layer, in bfloat16 where the file has them so."""
        kind = mx.bfloat16 if self.rows.bfloat16 else mx.float32
        return self.rows.read(features * self.outputs + (to - self.first), dtype=kind)


class CrossLayerTranscoders:
    """Cross-layer transcoders (Ameisen et al. 2025): features read one layer, and write to it and all those behind.

    Args:
        encoders: By layer, from 0 on without a gap; their own decoders are not looked at.
        decoders: As many.
        name: What the set is called in records.
        reads: The tensor that they read.
        writes: The tensor that they add to.
    """

    crosses = True

    def __init__(
        self, encoders: Sequence[SAE], decoders: Sequence[CrossDecoder], name: str, reads: Reads, writes: Writes
    ) -> None:
        self.encoders, self.decoders = tuple(encoders), tuple(decoders)
        self.name, self.reads, self.writes = name, reads, writes
        self.layers = tuple(range(len(self.encoders)))

    def active(self, layer: int, x: mx.array) -> tuple[Numbers, Numbers, FloatArray]:
        """As of :class:`LayerTranscoders`."""
        return active_in(self.encoders[layer], x)

    def encoder(self, layer: int, features: Numbers) -> tuple[mx.array, FloatArray]:
        """As of :class:`LayerTranscoders`."""
        return encoder_of(self.encoders[layer], features)

    def decoder(self, layer: int, to: int, features: Numbers) -> mx.array:
        """What a unit of activation in ``layer`` adds to layer ``to``, ``(n, d_out)``."""
        return self.decoders[layer].read(to, features)

    def decoder_bias(self, layer: int) -> mx.array:
        """What is added to a layer whatever is active, ``(d_out,)``."""
        return self.encoders[layer].tensors["b_dec"]

    def skip(self, layer: int) -> mx.array | None:
        """The skip connection of a layer ``(d_in, d_out)``."""
        found = self.encoders[layer].tensors.get("w_skip")
        return None if found is None else found.astype(mx.float32)


def active_in(sae: SAE, x: mx.array) -> tuple[Numbers, Numbers, FloatArray]:
    """Where features are active on ``(tokens, d_in)``, by position and then by feature."""
    step = max(1, _AT_ONCE // sae.d_sae)
    positions, features, values = [], [], []
    for start in range(0, x.shape[0], step):
        found = np.array(sae.encode(x[start : start + step]))
        position, feature = np.nonzero(found)
        positions.append(position + start)
        features.append(feature)
        values.append(found[position, feature])
    return np.concatenate(positions), np.concatenate(features), np.concatenate(values).astype(np.float32)


def encoder_of(sae: SAE, features: Numbers) -> tuple[mx.array, FloatArray]:
    """Rows ``(n, d_in)`` and biases ``(n,)`` of the linear function that activations are where they are not 0."""
    definition, tensors = sae.definition, sae.tensors
    columns, at = sae.encoder_columns(features), mx.array(features.astype(np.int32))
    lost = tensors["b_dec"] @ columns if definition.subtract_b_dec else mx.zeros((len(features),))
    if definition.activation == "gated":
        gain = mx.exp(tensors["r_mag"][at])
        columns, bias = columns * gain, tensors["b_mag"][at] - lost * gain
    else:
        bias = tensors["b_enc"][at] - lost
    if "norms" in tensors:
        columns, bias = columns * tensors["norms"][at], bias * tensors["norms"][at]
    return (columns * definition.input_scale).T, np.array(bias, np.float32)


def _check_linear(sae: SAE, layer: int) -> None:
    if sae.definition.normalize != "none":
        raise LensError(
            f"The transcoder of layer {layer} normalises every token by its own statistics, so that no direct effects"
            " go through it.",
            "Take one that does not.",
        )
