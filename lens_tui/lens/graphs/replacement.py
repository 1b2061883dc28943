"""What stands in for the MLPs in an attribution graph, and what of it is active on a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.records import FloatArray, LensError
from lens_tui.records.attribution_graph import Reads, Writes

from .frozen_model import FrozenModel

Ints = NDArray[np.int64]
Found = tuple[Ints, Ints, FloatArray]
"""Positions, features and activations of what is active, ``(n,)`` each."""


class Replacement(Protocol):
    """A set of transcoders: what this room needs of it, whoever reads it from files.

    ``layers`` are those that have one. Features of layer L read ``reads`` of L and write ``writes`` of L, or where the
    set ``crosses`` layers of L and all layers behind it. Where they are active, activations are linear:
    ``x @ rows.T + bias`` of :meth:`encoder`.
    """

    @property
    def name(self) -> str:
        """What it is called in records."""

    @property
    def reads(self) -> Reads:
        """The tensor that features read."""

    @property
    def writes(self) -> Writes:
        """The tensor that they add to."""

    @property
    def crosses(self) -> bool:
        """Whether features write to the layers behind theirs as well."""

    @property
    def layers(self) -> Sequence[int]:
        """The layers that have transcoders."""

    def active(self, layer: int, x: mx.array) -> Found:
        """Where features are active on ``(tokens, d_in)``, by position and then by feature."""

    def encoder(self, layer: int, features: Ints) -> tuple[mx.array, FloatArray]:
        """Encoder rows ``(n, d_in)`` and biases ``(n,)`` of some features."""

    def decoder(self, layer: int, to: int, features: Ints) -> mx.array:
        """What a unit of some features of a layer adds to another, ``(n, d_out)``."""

    def decoder_bias(self, layer: int) -> mx.array:
        """What is added to a layer whatever is active, ``(d_out,)``."""

    def skip(self, layer: int) -> mx.array | None:
        """The skip connection of a layer ``(d_in, d_out)``, if it has one."""


@dataclass(frozen=True, eq=False)
class Bucket:
    """Active features that write to one layer, of positions that have about as many of them: padded to a table.

    ``positions`` ``(b,)`` ascend; ``rows`` ``(b, k)`` are places among the layer's decoder rows, ``scale`` ``(b, k)``
    activations (0 where there is no feature), ``columns`` ``(b, k)`` numbers of the features, -1 where there is none.
    """

    positions: Ints
    rows: mx.array
    scale: mx.array
    columns: Ints


@dataclass(frozen=True, eq=False)
class LayerWrites:
    """What is written at one layer in the MLP's place.

    ``decoder`` ``(u, d_out)`` are the rows of the features in ``buckets``. ``error`` ``(tokens, d_out)`` is what they
    leave over of what the MLP gave, ``bias`` ``(tokens, d_out)`` the decoder's at those positions where features count,
    ``skip`` ``(d_in, d_out)``. A layer without transcoders has only an error.
    """

    decoder: mx.array | None
    buckets: tuple[Bucket, ...]
    error: mx.array
    bias: mx.array | None = None
    skip: mx.array | None = None
    counted: mx.array | None = None


@dataclass(frozen=True, eq=False)
class Sources:
    """All that adds to the stream on one prompt: active features, in order of layer, position and number; errors; and
    embeddings. ``starts`` says where the features of each layer begin.
    """

    frozen: FrozenModel
    replacement: Replacement
    layer: Ints
    position: Ints
    feature: Ints
    activation: FloatArray
    starts: Ints
    written: tuple[LayerWrites, ...]

    @property
    def n_features(self) -> int:
        """How many features are active, counted at each position."""
        return len(self.feature)

    @property
    def n_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.frozen.ids)

    @property
    def count(self) -> int:
        """How many sources there are: features, then errors by layer and position, then embeddings."""
        return self.n_features + (len(self.written) + 1) * self.n_tokens


_PIECE = 1 << 24
"""Numbers of decoder rows that are gathered at once."""


def find_sources(frozen: FrozenModel, replacement: Replacement, ignored: int) -> Sources:
    """What is active on a prompt, and what it leaves over.

    Args:
        frozen: The model held at the prompt.
        replacement: The transcoders.
        ignored: At so many first tokens no feature counts: all of their MLPs is error.

    Raises:
        LensError: For transcoders of another width or of layers that the model does not have.
    """
    n_layers = len(frozen.layers)
    chosen = sorted(set(replacement.layers))
    if not chosen or not 0 <= chosen[0] <= chosen[-1] < n_layers:
        said = f"{chosen[0]} to {chosen[-1]}" if chosen else "no layer"
        raise LensError(f"{replacement.name} has transcoders of {said}; the model has {n_layers} layers.")
    empty: Any = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    found = []
    for at in range(n_layers):
        part = replacement.active(at, frozen.layers[at].read(replacement.reads)) if at in chosen else empty
        keep = part[0] >= ignored
        found.append(tuple(each[keep] for each in part))
    counts = [len(part[0]) for part in found]
    layer = np.repeat(np.arange(n_layers), counts)
    position, feature, activation = (np.concatenate([part[axis] for part in found]) for axis in range(3))
    starts = np.concatenate([[0], np.cumsum(counts)])
    counted = mx.array((np.arange(len(frozen.ids)) >= ignored).astype(np.float32))[:, None]
    known = (layer, position, feature, activation)
    written = tuple(
        _written(frozen, replacement, at, known, starts, counted)
        if at in chosen
        else LayerWrites(None, (), frozen.layers[at].given(replacement.writes))
        for at in range(n_layers)
    )
    return Sources(frozen, replacement, layer, position, feature, activation.astype(np.float32), starts, written)


def _written(
    frozen: FrozenModel, replacement: Replacement, at: int, known: Any, starts: Ints, counted: mx.array
) -> LayerWrites:
    layer, position, feature, activation = known
    first = 0 if replacement.crosses else int(starts[at])
    span = slice(first, int(starts[at + 1]))
    pairs, places = np.unique(np.stack([layer[span], feature[span]]), axis=1, return_inverse=True)
    rows = [
        replacement.decoder(int(source), at, pairs[1][pairs[0] == source]).astype(mx.float32)
        for source in np.unique(pairs[0])
    ]
    bias = replacement.decoder_bias(at).astype(mx.float32)[None] * counted
    decoder = mx.concatenate(rows) if rows else mx.zeros((0, bias.shape[-1]))
    width = int(bias.shape[-1])
    buckets = tuple(_buckets(position[span], places.reshape(-1), activation[span], first, width))
    made = bias
    for bucket in buckets:
        given = mx.sum(decoder[bucket.rows] * bucket.scale[..., None], axis=1)
        made = made.at[mx.array(bucket.positions)].add(given)
    skip = replacement.skip(at)
    if skip is not None:
        skip = skip.astype(mx.float32)
        made = made + (frozen.layers[at].read(replacement.reads) @ skip) * counted
    error = frozen.layers[at].given(replacement.writes) - made
    mx.eval(decoder, bias, error, skip)
    return LayerWrites(decoder, buckets, error, bias, skip, counted)


def _buckets(position: Ints, places: Ints, activation: FloatArray, first: int, width: int) -> list[Bucket]:
    """Features by position, in tables of positions whose numbers of features are within a factor of two."""
    if not len(position):
        return []
    at, counts = np.unique(position, return_counts=True)
    order = np.argsort(position, kind="stable")
    begins = dict(zip(at.tolist(), np.concatenate([[0], np.cumsum(counts)[:-1]]).tolist(), strict=True))
    found = []
    for size in np.unique(np.ceil(np.log2(np.maximum(counts, 1)))):
        mine = np.ceil(np.log2(np.maximum(counts, 1))) == size
        most = int(counts[mine].max())
        per_piece = max(1, _PIECE // max(1, most * width))
        for start in range(0, int(mine.sum()), per_piece):
            positions, numbers = (each[mine][start : start + per_piece] for each in (at, counts))
            columns = np.full((len(positions), most), -1, np.int64)
            for row, (place, number) in enumerate(zip(positions.tolist(), numbers.tolist(), strict=True)):
                columns[row, :number] = order[begins[place] : begins[place] + number]
            there = columns >= 0
            rows = np.where(there, places[columns], 0).astype(np.int32)
            scale = np.where(there, activation[columns], 0.0).astype(np.float32)
            found.append(Bucket(positions, mx.array(rows), mx.array(scale), np.where(there, columns + first, -1)))
    return found
