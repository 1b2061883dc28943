"""How good an SAE is: threshold calibration, FVU, L0, densities and loss recovered, all in raw units."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError
from lens_tui.records.activations import ActivationSource, Place
from lens_tui.records.training import Evaluation, TrainConfig

from .objective import Normalizer, Parameters, decode_folded, encode_folded, preactivations

DENSE = 0.1
"""A latent that fires on more than this share of the tokens is called dense."""

_EDGES = tuple(float(edge) for edge in np.linspace(-6.0, 0.0, 25))
_CHUNK_ENTRIES = 1 << 25


def calibrated_threshold(p: Parameters, norm: Normalizer, sample: mx.array, k: int) -> mx.array:
    """The one threshold (normalised, a scalar) at which the mean L0 over ``sample (n, d)`` is ``k``.

    Of each row the ``8 k`` largest pre-activations are looked at: a row with more above
    the threshold, eight times the mean, is counted as having that many.
    """
    width = p["b_enc"].shape[0]
    keep = min(width, 8 * k)
    tops = []
    for rows in _chunks(sample, width):
        top = mx.topk(preactivations(p, norm(rows)), keep, axis=-1)
        mx.eval(top)
        tops.append(top)
    values = mx.concatenate(tops).reshape(-1)
    place = values.size - min(k * sample.shape[0], values.size)
    ordered = mx.sort(values)
    # Firing is ">": the midpoint to the next smaller value lets exactly the wanted ones through.
    above, below = ordered[place], ordered[max(place - 1, 0)]
    return mx.maximum((above + below) / 2, 0.0)


def starting_parameters(p: Parameters, norm: Normalizer, sample: mx.array, config: TrainConfig) -> Parameters:
    """``p``, for JumpReLU with thresholds at which L0 begins at ``2 k`` (unless the settings say where they begin).

    From one fixed number the penalty has thousands of latents to close before features form.
    """
    if config.architecture != "jumprelu" or config.initial_threshold:
        return p
    start = calibrated_threshold(p, norm, sample, min(2 * config.k, config.width))
    return {**p, "log_threshold": mx.full(p["b_enc"].shape, mx.log(mx.maximum(start, 1e-3)))}


def measure(
    folded: Parameters,
    source: ActivationSource,
    place: Place,
    n_tokens: int,
    step: int,
    pause: Callable[[], None] = lambda: None,
) -> tuple[Evaluation, NDArray[np.float64]]:
    """An :class:`Evaluation` over the first blocks of ``source`` that hold at least ``n_tokens`` positions.

    Also gives each latent's firing rate, ``(f,)``. The model's losses are measured over the same blocks.
    ``pause`` is called between blocks and may raise. Raises ``LensError`` if the source has no position to
    measure on.
    """
    sums = _Sums(folded)
    blocks = 0
    for block in source.blocks(0, source.n_blocks):
        pause()
        kept = np.flatnonzero(~block.special).astype(np.int32)
        blocks += 1
        if len(kept):
            sums.add(mx.take(block.values[place], mx.array(kept), axis=0))
        if sums.n >= n_tokens:
            break
    if not sums.n:
        raise LensError("The evaluation text has no position to measure on.", "Give more or longer documents.")
    losses = []
    for splice in (None, lambda x: reconstruct(folded, x), mx.zeros_like):
        pause()
        losses.append(source.loss_with(place, splice, blocks))
    return sums.result(step, losses), sums.density


def reconstruct(folded: Parameters, x: mx.array) -> mx.array:
    """Encode and decode raw ``x (n, d)``, in blocks of rows, float32."""
    width = folded["b_enc"].shape[0]
    return mx.concatenate([decode_folded(folded, encode_folded(folded, rows)) for rows in _chunks(x, width)])


def threshold_of(p: Parameters, norm: Normalizer, sample: mx.array, config: TrainConfig) -> mx.array:
    """The threshold to save: learnt, ``(f,)``, for JumpReLU; calibrated on ``sample`` for the others."""
    if config.architecture == "jumprelu":
        return mx.exp(p["log_threshold"])
    return calibrated_threshold(p, norm, sample, config.k)


def _chunks(x: mx.array, width: int) -> Iterator[mx.array]:
    rows = max(1, _CHUNK_ENTRIES // width)
    for start in range(0, x.shape[0], rows):
        yield x[start : start + rows]


class _Sums:
    """Running sums in float64: tokens, fired counts, moments of ``x - b_dec``, squared error."""

    def __init__(self, folded: Parameters) -> None:
        width, d = folded["w_dec"].shape
        self._folded = folded
        self.n = 0
        self._fired: NDArray[np.int64] = np.zeros(width, np.int64)
        self._sum: NDArray[np.float64] = np.zeros(d, np.float64)
        self._square = 0.0
        self._error = 0.0

    def add(self, x: mx.array) -> None:
        for rows in _chunks(x, len(self._fired)):
            z = encode_folded(self._folded, rows)
            raw = rows.astype(mx.float32)
            shifted = raw - self._folded["b_dec"]  # keeps the moments small where the mean is large
            error = mx.sum(mx.square(raw - decode_folded(self._folded, z)), axis=-1)
            fired = mx.sum((z > 0).astype(mx.int32), axis=0)
            total, square = mx.sum(shifted, axis=0), mx.sum(mx.square(shifted), axis=-1)
            mx.eval(error, fired, total, square)
            self.n += rows.shape[0]
            self._fired += np.asarray(fired, np.int64)
            self._sum += np.asarray(total, np.float64)
            self._square += float(np.asarray(square, np.float64).sum())
            self._error += float(np.asarray(error, np.float64).sum())

    @property
    def density(self) -> NDArray[np.float64]:
        return self._fired / max(self.n, 1)

    def result(self, step: int, losses: Sequence[float]) -> Evaluation:
        variance = self._square - float(self._sum @ self._sum) / max(self.n, 1)
        rate = self.density
        counts, _ = np.histogram(np.log10(rate[rate > 0]), bins=np.asarray(_EDGES))
        return Evaluation(
            step=step,
            n_tokens=self.n,
            l0=float(rate.sum()),
            fvu=self._error / variance if variance > 0 else float("inf"),
            dead=float(np.mean(self._fired == 0)),
            dense=float(np.mean(rate > DENSE)),
            density_edges=_EDGES,
            density_counts=tuple(int(count) for count in counts),
            loss_clean=losses[0],
            loss_spliced=losses[1],
            loss_zero=losses[2],
        )
