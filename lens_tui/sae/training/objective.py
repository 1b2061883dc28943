"""The weights of an SAE in training: how they start, what they are trained for, how they end.

In training an SAE sees ``x_n = (x - mean) / scale``. Weights are a plain dict of float32
arrays: ``w_enc (d, f)``, ``w_dec (f, d)`` with unit rows, ``b_enc (f,)``, ``b_dec (d,)`` and, for
JumpReLU, ``log_threshold (f,)``. The pre-activation is ``(x_n - b_dec) @ w_enc + b_enc``. At the end
normalisation is folded into them.

A transcoder gives ``y`` for ``x``, each with a normaliser of its own. Its bias of the output is named ``b_out
(d_out,)``
and not subtracted from what it reads, ``w_dec`` is ``(f, d_out)``, and with a skip connection ``x_n @ w_skip``,
``(d_in, d_out)``, is added to the output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from lens_tui.records import LensError
from lens_tui.records.training import TrainConfig

from .peers import Peers

Parameters = dict[str, mx.array]


@dataclass(frozen=True, slots=True)
class Normalizer:
    """``x_n = (x - mean) / scale``: ``mean`` has shape ``(d,)``, ``scale`` is a scalar array, both float32.

    ``out`` is that of a transcoder's output.
    """

    mean: mx.array
    scale: mx.array
    out: Normalizer | None = None

    def __call__(self, x: mx.array) -> mx.array:
        """Normalised float32 activations."""
        return (x.astype(mx.float32) - self.mean) * (1.0 / self.scale)

    def pair(self, rows: mx.array) -> tuple[mx.array, mx.array]:
        """What is read and what is to be given, normalised, of rows from the pool: see :func:`halves`."""
        x, y = halves(rows, None if self.out is None else self.mean.shape[0])
        x_n = self(x)
        return x_n, x_n if self.out is None else self.out(y)


def halves(rows: mx.array, d_in: int | None) -> tuple[mx.array, mx.array]:
    """Input ``(n, d_in)`` and output of rows in which they stand side by side; the rows twice without ``d_in``."""
    return (rows, rows) if d_in is None else (rows[:, :d_in], rows[:, d_in:])


def scalar(x: mx.array) -> float:
    """The value of an array with one element."""
    value: Any = x.item()
    return float(value)


def geometric_median(x: mx.array, iterations: int = 50) -> mx.array:
    """The point with the least summed distance to the rows of ``x (n, d)``, by Weiszfeld's iteration, float32 ``(d,)``.

    It stands for the mean where a few positions have huge norms, which would drag the mean along.
    """
    x = x.astype(mx.float32)
    point = mx.mean(x, axis=0)
    floor = 1e-6 * mx.mean(mx.linalg.norm(x - point, axis=-1)) + 1e-12
    for _ in range(iterations):
        weight = 1.0 / mx.maximum(mx.linalg.norm(x - point, axis=-1, keepdims=True), floor)
        point = mx.sum(weight * x, axis=0) / mx.sum(weight)
        mx.eval(point)
    return point


def normalizer(sample: mx.array, config: TrainConfig) -> tuple[Normalizer, mx.array]:
    """The normaliser that a sample ``(n, d)`` of raw activations asks for, and the ``b_dec`` to start from.

    Raises ``LensError`` when the sample is not finite or does not vary.
    """
    d = sample.shape[-1]
    x = sample.astype(mx.float32)
    if not bool(mx.all(mx.isfinite(x)).item()):
        raise LensError("The activations to train on hold NaN or infinity.", "Check the model at this layer and site.")
    median = geometric_median(x[: 1 << 14])
    zero, one = mx.zeros((d,)), mx.array(1.0)
    if config.normalize == "none":
        return Normalizer(zero, one), median
    centre = median if config.normalize == "centered" else zero
    scale = mx.mean(mx.linalg.norm(x - centre, axis=-1)) / d**0.5
    mx.eval(centre, scale)
    if not scalar(scale) > 0:
        raise LensError("The activations to train on are all the same.", "Check the layer, the site and the text.")
    return Normalizer(centre, scale), (median - centre) / scale


def pair_normalizer(sample: mx.array, config: TrainConfig, d_in: int) -> tuple[Normalizer, mx.array]:
    """As :func:`normalizer` for a transcoder, of rows with ``d_in`` columns of input; gives the first ``b_out``."""
    x, y = halves(sample, d_in)
    norm, _ = normalizer(x, config)
    out, b_out = normalizer(y, config)
    return Normalizer(norm.mean, norm.scale, out), b_out


def initial_transcoder(config: TrainConfig, b_out: mx.array, x: mx.array, y: mx.array) -> Parameters:
    """Random unit encoder columns; decoder rows where the best linear map of ``x (n, d_in)`` to ``y`` takes them.

    Without it the decoder, whose rows have the length 1, would begin in directions that have nothing to do with what
    its latents read. The map is by least squares with a ridge of a thousandth of the mean variance.
    """
    d = x.shape[-1]
    columns = unit_rows(mx.random.normal((config.width, d), key=mx.random.key(config.seed)))
    gram, cross = (np.array(part, np.float64) for part in (x.T @ x, x.T @ (y - b_out)))
    ridge = 1e-3 * np.trace(gram) / d
    linear = mx.array(np.linalg.solve(gram + ridge * np.eye(d), cross).astype(np.float32))
    p = {
        "w_enc": columns.T,
        "w_dec": unit_rows(columns @ linear),
        "b_enc": mx.zeros((config.width,)),
        "b_out": b_out,
    }
    if config.skip:
        p["w_skip"] = mx.zeros((d, y.shape[-1]))
    return _with_thresholds(p, config)


def initial_parameters(config: TrainConfig, b_dec: mx.array) -> Parameters:
    """Random unit decoder rows, the encoder their transpose, and the given ``b_dec``."""
    d = b_dec.shape[0]
    w_dec = unit_rows(mx.random.normal((config.width, d), key=mx.random.key(config.seed)))
    p = {"w_enc": w_dec.T, "w_dec": w_dec, "b_enc": mx.zeros((config.width,)), "b_dec": b_dec}
    return _with_thresholds(p, config)


def _with_thresholds(p: Parameters, config: TrainConfig) -> Parameters:
    if config.architecture == "jumprelu":
        p["log_threshold"] = mx.full((config.width,), mx.log(mx.array(config.initial_threshold or 1.0)))
    return {name: mx.contiguous(value) for name, value in p.items()}


def unit_rows(w: mx.array) -> mx.array:
    """Rows scaled to length 1."""
    return w / mx.maximum(mx.linalg.norm(w, axis=-1, keepdims=True), 1e-12)


def tangent_rows(gradient: mx.array, w: mx.array) -> mx.array:
    """The gradient without its part along each unit row of ``w``: that part would only change the row's length."""
    return gradient - mx.sum(gradient * w, axis=-1, keepdims=True) * w


def preactivations(p: Parameters, x: mx.array, dtype: mx.Dtype = mx.float32) -> mx.array:
    """``(x - b_dec) @ w_enc + b_enc`` for normalised ``x (n, d)``; the product is computed in ``dtype``.

    Of a transcoder, which has no ``b_dec``, ``x @ w_enc + b_enc``.
    """
    # Taking b_dec through the encoder once is cheaper than a gradient of every row of x.
    bias = p["b_enc"] - p["b_dec"] @ p["w_enc"] if "b_dec" in p else p["b_enc"]
    return x.astype(dtype) @ p["w_enc"].astype(dtype) + bias.astype(dtype)


def fold(p: Parameters, norm: Normalizer, threshold: mx.array) -> Parameters:
    """The same SAE for raw activations, as a JumpReLU SAE: ``relu(x @ w_enc + b_enc)`` where above ``threshold``.

    ``threshold`` is normalised, a scalar or ``(f,)``. Activations come out multiplied by ``norm.scale``,
    so that they are in residual-stream units on unit decoder rows. A transcoder's come out multiplied by the scale of
    its output.
    """
    if norm.out is not None:
        return _fold_transcoder(p, norm, norm.out, threshold)
    b_dec = p["b_dec"] * norm.scale + norm.mean
    return {
        "w_enc": p["w_enc"],
        "w_dec": p["w_dec"],
        "b_enc": p["b_enc"] * norm.scale - b_dec @ p["w_enc"],
        "b_dec": b_dec,
        "threshold": mx.broadcast_to(threshold * norm.scale, p["b_enc"].shape) + 0.0,
    }


def _fold_transcoder(p: Parameters, norm: Normalizer, out: Normalizer, threshold: mx.array) -> Parameters:
    gain = out.scale / norm.scale
    w_enc = p["w_enc"] * gain
    folded = {
        "w_enc": w_enc,
        "w_dec": p["w_dec"],
        "b_enc": p["b_enc"] * out.scale - norm.mean @ w_enc,
        "b_dec": p["b_out"] * out.scale + out.mean,
        "threshold": mx.broadcast_to(threshold * out.scale, p["b_enc"].shape) + 0.0,
    }
    if "w_skip" in p:
        folded["w_skip"] = p["w_skip"] * gain
        folded["b_dec"] = folded["b_dec"] - norm.mean @ folded["w_skip"]
    return folded


def encode_folded(folded: Parameters, x: mx.array) -> mx.array:
    """Activations ``(n, f)`` of raw ``x (n, d)`` under folded weights, float32."""
    pre = x.astype(mx.float32) @ folded["w_enc"] + folded["b_enc"]
    return mx.where(pre > folded["threshold"], mx.maximum(pre, 0), 0)


def decode_folded(folded: Parameters, z: mx.array, x: mx.array) -> mx.array:
    """The reconstruction ``(n, d_out)`` in raw units of what was encoded from raw ``x (n, d_in)``."""
    made = z @ folded["w_dec"] + folded["b_dec"]
    return made + x.astype(mx.float32) @ folded["w_skip"] if "w_skip" in folded else made


_TINY = 1e-6
_SELECTION_LIMIT = 1 << 21
"""The batch threshold is taken from at most this many pre-activations: to sort a whole wide batch costs more than
its matrix products do."""


class Losses(NamedTuple):
    """One batch: the total to minimise, the squared error, mean L0, and which latents fired ``(f,)``."""

    total: mx.array
    error: mx.array
    l0: mx.array
    fired: mx.array


def topk_threshold(pre: mx.array, k: int) -> mx.array:
    """The ``k``-th largest of each row, ``(n, 1)``."""
    return mx.min(mx.topk(pre, k, axis=-1), axis=-1, keepdims=True)


def batch_threshold(pre: mx.array, k: int) -> mx.array:
    """The value that ``k`` pre-activations a token reach on average over the batch, a scalar.

    Of a batch with more than 2 M entries the first rows that hold as many are used: rows
    come shuffled, and with 10,000 of them above it the count is right to 1 %.
    """
    rows = max(1, min(pre.shape[0], _SELECTION_LIMIT // pre.shape[1]))
    flat = pre[:rows].reshape(-1)
    place = flat.size - min(rows * k, flat.size)
    return mx.partition(flat, place)[place]


def jumprelu(pre: mx.array, log_threshold: mx.array, bandwidth: float) -> tuple[mx.array, mx.array]:
    """``pre`` where above the threshold, and the gate (1 where it fires), both ``(n, f)``.

    Forward: exact. Backward to the threshold ``t``, with ``K`` the rectangle of width ``bandwidth``
    around it: ``dz/dt = -(t / bandwidth) K``, ``dgate/dt = -(1 / bandwidth) K`` (Rajamanoharan et al. 2024, eq. 11-12).
    """
    threshold = mx.exp(log_threshold).astype(pre.dtype)
    held = mx.stop_gradient(threshold)
    fixed = mx.stop_gradient(pre)
    gate = (fixed > held).astype(pre.dtype)
    kernel = (mx.abs(fixed - held) < bandwidth / 2).astype(pre.dtype) / bandwidth
    pull = held - threshold  # zero in value; carries the gradient to the threshold
    return pre * gate + held * kernel * pull, gate + kernel * pull


def activations(p: Parameters, pre: mx.array, config: TrainConfig) -> tuple[mx.array, mx.array]:
    """``(z, gate)`` of the pre-activations in the way of ``config.architecture``, both ``(n, f)``."""
    if config.architecture == "jumprelu":
        return jumprelu(pre, p["log_threshold"], config.bandwidth)
    select = topk_threshold if config.architecture == "topk" else batch_threshold
    threshold = mx.maximum(select(mx.stop_gradient(pre), config.k), _TINY)
    gate = (pre >= threshold).astype(pre.dtype)
    return pre * gate, gate


def reconstruction_errors(
    p: Parameters, x: mx.array, y: mx.array, z: mx.array, prefixes: Sequence[int]
) -> list[mx.array]:
    """``y_hat - y``, ``(n, d)`` float32, of the first ``m`` latents for each ``m`` in ``prefixes``, then of all.

    ``y`` is what is to be given: for an SAE ``x``.
    """
    ends = [*prefixes, z.shape[1]]
    total = (p["b_out"] if "b_out" in p else p["b_dec"]) - y
    if "w_skip" in p:
        total = total + x @ p["w_skip"]
    errors = []
    for start, end in zip([0, *prefixes], ends, strict=True):
        part = z[:, start:end] @ p["w_dec"][start:end].astype(z.dtype)
        total = total + part.astype(mx.float32)
        errors.append(total)
    return errors


def auxiliary_loss(p: Parameters, x: mx.array, error: mx.array, idle: mx.array, config: TrainConfig) -> mx.array:
    """AuxK (Gao et al. 2024, appendix A.2): how badly the dead latents explain what is left over.

    ``error`` is ``y_hat - y``; ``idle`` ``(f,)`` counts the tokens since each latent
    fired. The longest dead latents, at most ``aux_slots`` of them, reconstruct ``y - y_hat`` with the ``aux_k`` of
    them that are largest on each token. Zero when none is dead.
    """
    width, d = p["w_dec"].shape
    slots = min(config.aux_slots or 512, width)
    k = min(config.aux_k or max(1, d // 2), slots)
    chosen = mx.argpartition(-idle, slots - 1)[:slots] if slots < width else mx.arange(width)
    dead = idle[chosen] > config.dead_after
    part: Parameters = {
        "w_enc": mx.take(p["w_enc"], chosen, axis=1),
        "b_enc": mx.take(p["b_enc"], chosen),
    }
    if "b_dec" in p:
        part["b_dec"] = mx.stop_gradient(p["b_dec"])
    pre = mx.where(dead, mx.maximum(preactivations(part, x), 0), 0)
    z = pre * (pre >= mx.maximum(topk_threshold(mx.stop_gradient(pre), k), _TINY)) if k < slots else pre
    left = mx.stop_gradient(error) + z @ mx.take(p["w_dec"], chosen, axis=0)
    return mx.where(mx.any(dead), mx.mean(mx.square(left)), 0.0)


def sparsity_loss(l0: mx.array, config: TrainConfig, ramp: mx.array) -> mx.array:
    """The L0 penalty of JumpReLU training times ``ramp`` (0 to 1 during the warm-up); 0 for the other architectures."""
    if config.architecture != "jumprelu":
        return mx.array(0.0)
    share = l0 / config.k
    return ramp * config.l0_coefficient * (share if config.l0_linear else mx.square(share - 1.0))


def losses(
    p: Parameters, x: mx.array, idle: mx.array, ramp: mx.array, config: TrainConfig, y: mx.array | None = None
) -> Losses:
    """Everything that one batch of normalised ``x (n, d)`` has to say. Differentiable in ``p``.

    ``y (n, d_out)`` is what a transcoder should give, normalised; an SAE gives ``x``.
    """
    dtype = mx.bfloat16 if config.compute == "bfloat16" else mx.float32
    pre = preactivations(p, x, dtype)
    z, gate = activations(p, pre, config)
    errors = reconstruction_errors(p, x, x if y is None else y, z, config.matryoshka)
    squared = [mx.mean(mx.square(error)) for error in errors]
    l0 = mx.mean(mx.sum(gate.astype(mx.float32), axis=-1))  # bfloat16 cannot count past 256
    total = sum(squared[1:], squared[0]) / len(squared) + sparsity_loss(l0, config, ramp)
    if config.aux_coefficient:
        total = total + config.aux_coefficient * auxiliary_loss(p, x, errors[-1], idle, config)
    return Losses(total, squared[-1], l0, mx.any(z > 0, axis=0))


_IDLE_LIMIT = 1 << 30
_EPSILON = 1e-8

State = dict[str, Any]
"""``parameters``, Adam's moments ``m`` and ``v``, ``idle (f,)`` (tokens since each latent fired) and ``step``."""


@dataclass(frozen=True, slots=True)
class StepFigures:
    """Lazy figures of one batch: squared error and variance (mean per dimension, normalised units), and mean L0."""

    error: mx.array
    variance: mx.array
    l0: mx.array


def initial_state(parameters: Parameters) -> State:
    """The state before the first step."""
    return {
        "parameters": parameters,
        "m": tree_map(mx.zeros_like, parameters),
        "v": tree_map(mx.zeros_like, parameters),
        "idle": mx.zeros(parameters["b_enc"].shape, mx.int32),
        "step": mx.array(0, mx.int32),
    }


def flatten_state(state: State) -> dict[str, mx.array]:
    """The state under flat names, ready for safetensors."""
    return dict(tree_flatten(state))


def unflatten_state(arrays: dict[str, mx.array]) -> State:
    """What ``flatten_state`` was given."""
    state: State = tree_unflatten(list(arrays.items()))
    return state


def learning_rate(config: TrainConfig, step: mx.array) -> mx.array:
    """Linear warm-up over the first ``warmup`` share of the steps, linear decay to 0 over the last ``decay`` share."""
    now = step.astype(mx.float32)
    up = (now + 1) / max(1.0, config.warmup * config.steps)
    down = (config.steps - now) / max(1.0, config.decay * config.steps)
    return config.learning_rate * mx.clip(mx.minimum(up, down), 0.0, 1.0)


def sparsity_ramp(config: TrainConfig, step: mx.array) -> mx.array:
    """How much of the L0 penalty counts at ``step``: from 0 to 1 over the ``l0_warmup`` share of the steps."""
    return mx.minimum((step.astype(mx.float32) + 1) / max(1.0, config.l0_warmup * config.steps), 1.0)


def adam(
    p: Parameters, gradient: Parameters, m: Parameters, v: Parameters, step: mx.array, config: TrainConfig
) -> tuple[Parameters, Parameters, Parameters]:
    """Adam with bias correction (Kingma and Ba 2015) as a pure function, so that the whole step can be one too.

    ``step`` counts from 0. Gives the new ``p``, ``m`` and ``v``.
    """
    b1, b2 = config.betas
    count = step.astype(mx.float32) + 1
    rate = learning_rate(config, step) / (1 - mx.power(b1, count))
    spread = mx.rsqrt(1 - mx.power(b2, count))
    m = {name: b1 * m[name] + (1 - b1) * gradient[name] for name in p}
    v = {name: b2 * v[name] + (1 - b2) * mx.square(gradient[name]) for name in p}
    new = {name: p[name] - rate * m[name] / (mx.sqrt(v[name]) * spread + _EPSILON) for name in p}
    return new, m, v


class Step:
    """``state, figures = step(state, rows)`` for a batch of raw activations. Lazy; changes nothing in place.

    Rows are ``(n, d)``; for a transcoder ``(n, d_in + d_out)``; with ``peers`` each process's part of the batch.
    """

    def __init__(
        self, config: TrainConfig, norm: Normalizer, compiled: bool | None = None, peers: Peers | None = None
    ) -> None:
        self._config, self._norm, self._peers = config, norm, peers
        if compiled is None:
            # On a CPU the time goes into matrix products: compiling would cost seconds and gain nothing.
            compiled = mx.default_device() == mx.Device(mx.gpu)
        self._run: Any = mx.compile(self._advance) if compiled else self._advance

    def __call__(self, state: State, x: mx.array) -> tuple[State, StepFigures]:
        """One step of training."""
        state, figures = self._run(state, x)
        return state, StepFigures(*figures)

    def _advance(self, state: State, raw: mx.array) -> tuple[State, tuple[mx.array, ...]]:
        config, p, idle = self._config, state["parameters"], state["idle"]
        x, y = self._norm.pair(raw)
        ramp = sparsity_ramp(config, state["step"])

        def objective(weights: Parameters) -> tuple[mx.array, ...]:
            return tuple(losses(weights, x, idle, ramp, config, y))

        (_, error, l0, fired), gradient = mx.value_and_grad(objective)(p)
        if (peers := self._peers) is not None:
            gradient, fired = peers.averaged(gradient), peers.any(fired)
            error, l0 = peers.mean(error), peers.mean(l0)
        gradient = {**gradient, "w_dec": tangent_rows(gradient["w_dec"], p["w_dec"])}
        p, m, v = adam(p, gradient, state["m"], state["v"], state["step"], config)
        p = {**p, "w_dec": unit_rows(p["w_dec"])}
        idle = mx.where(fired, 0, mx.minimum(idle + raw.shape[0] * (peers.size if peers else 1), _IDLE_LIMIT))
        mean = mx.mean(y, axis=0) if peers is None else peers.mean(mx.mean(y, axis=0))
        variance = mx.mean(mx.square(y - mean))
        variance = variance if peers is None else peers.mean(variance)
        new = {"parameters": p, "m": m, "v": v, "idle": idle, "step": state["step"] + 1}
        return new, (error, variance, l0)


_CHUNK_ENTRIES = 1 << 25


def calibrated_threshold(p: Parameters, norm: Normalizer, sample: mx.array, k: int) -> mx.array:
    """The one threshold (normalised, a scalar) at which the mean L0 over ``sample (n, d)`` is ``k``.

    Of each row the ``8 k`` largest pre-activations are looked at: a row with more above
    the threshold, eight times the mean, is counted as having that many.
    """
    width = p["b_enc"].shape[0]
    keep = min(width, 8 * k)
    tops = []
    for rows in row_parts(sample, width):
        top = mx.topk(preactivations(p, norm.pair(rows)[0]), keep, axis=-1)
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


def reconstruct(folded: Parameters, x: mx.array) -> mx.array:
    """Encode and decode raw ``x (n, d)``, in blocks of rows, float32."""
    width = folded["b_enc"].shape[0]
    return mx.concatenate([decode_folded(folded, encode_folded(folded, rows), rows) for rows in row_parts(x, width)])


def threshold_of(p: Parameters, norm: Normalizer, sample: mx.array, config: TrainConfig) -> mx.array:
    """The threshold to save: learnt, ``(f,)``, for JumpReLU; calibrated on ``sample`` for the others."""
    if config.architecture == "jumprelu":
        return mx.exp(p["log_threshold"])
    return calibrated_threshold(p, norm, sample, config.k)


def row_parts(x: mx.array, width: int) -> Iterator[mx.array]:
    """Rows ``(n, d)`` a few at a time, by what they take under ``width`` latents."""
    rows = max(1, _CHUNK_ENTRIES // width)
    for start in range(0, x.shape[0], rows):
        yield x[start : start + rows]
