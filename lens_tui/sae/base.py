"""What is done to a residual before it is encoded, and undone after it is decoded (step 1 of a definition)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError, Origin, SAEInfo, SteeringVector
from lens_tui.records.machine import machine_memory
from lens_tui.records.steering_vector import numbers

from .files import BOUNDS, Activation, Definition, Weights, check, in_memory
from .matrices import Best, DecoderMatrix, Residence, make_encoder, nothing, row_chunks


def applied(definition: Definition, x: mx.array) -> mx.array:
    """The residuals ``(n, d)`` as the SAE was trained to see them, float32."""
    x = x.astype(mx.float32)
    if definition.normalize == "none":
        return x if definition.input_scale == 1.0 else x * definition.input_scale
    shift, scale = _statistics(definition, x)
    if shift is None:
        return x / mx.where(scale > 0, scale, 1.0)  # nothing stays nothing
    return (x - shift) / (scale + 1e-5)


def undone(definition: Definition, output: mx.array, x: mx.array | None) -> mx.array:
    """The reconstruction ``(n, d_out)`` in raw units; ``x`` are the residuals, needed if each has its own scale."""
    if definition.normalize == "none":
        return output if definition.output_scale == 1.0 else output / definition.output_scale
    if x is None:
        raise LensError(
            "This SAE normalises every token by its own statistics, which decoding has to undo.",
            "Give the residuals: decode(activations, like=residuals).",
        )
    shift, scale = _statistics(definition, x.astype(mx.float32))
    return output * scale if shift is None else output * scale + shift


def factor(definition: Definition, x: mx.array) -> mx.array | float:
    """How many raw units one unit of the decoder's output is: for each row of ``x (..., d)``, or for all."""
    if definition.normalize == "none":
        return 1.0 / definition.output_scale
    return _statistics(definition, x.astype(mx.float32))[1]


def _statistics(definition: Definition, x: mx.array) -> tuple[mx.array | None, mx.array]:
    """What is subtracted from each row, and its scale."""
    if definition.normalize == "layer_norm":
        return mx.mean(x, -1, keepdims=True), mx.std(x, -1, keepdims=True, ddof=1)
    return None, mx.linalg.norm(x, axis=-1, keepdims=True) / x.shape[-1] ** 0.5


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What an SAE makes of residuals ``(..., d_in)``.

    ``output (..., d_out)`` is its reconstruction, ``error`` the target less it (for an autoencoder the target is
    the input; ``None`` for a transcoder that was given no target). ``l0 (...)`` counts the active latents of each
    token. ``fvu`` is the squared error over the squared distance from the mean of these tokens, ``None`` where
    there is no error or no variance.
    """

    output: mx.array
    error: mx.array | None
    l0: mx.array
    fvu: float | None


def fraction_unexplained(target: mx.array, error: mx.array) -> float | None:
    """FVU over the rows of ``(n, d)``: squared error over squared distance from the rows' mean, summed in float64.

    ``None`` if the rows do not vary.
    """
    if not target.shape[0]:
        return None
    centred = target.astype(mx.float32) - mx.mean(target.astype(mx.float32), axis=0)
    lost, spread = mx.sum(mx.square(error), axis=-1), mx.sum(mx.square(centred), axis=-1)
    total = float(np.asarray(spread, dtype=np.float64).sum())
    return float(np.asarray(lost, dtype=np.float64).sum()) / total if total > 0 else None


Ids = Sequence[int] | NDArray[Any] | mx.array


class SAE:
    """A sparse autoencoder (or transcoder) as its maker defined it; see :class:`Definition` for the formulas.

    Use :func:`lens_tui.load_sae` to get one; the subclass says how activations are made. Residuals may have
    any number of leading axes and any float dtype.
    """

    activation: ClassVar[Activation] = "relu"
    kinds: ClassVar[dict[Activation, type[SAE]]] = {}
    """The class of each activation; a subclass enters itself."""
    opener: ClassVar[Callable[..., SAE]]
    """What opens a file or folder: :func:`lens_tui.load_sae`, which imports this file and puts itself here."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        SAE.kinds[cls.activation] = cls

    def __init__(
        self,
        definition: Definition,
        weights: Weights,
        info: SAEInfo,
        *,
        residence: Residence | None = None,
        dtype: mx.Dtype = mx.float32,
    ) -> None:
        """``residence`` says where the encoder is kept; by default in memory if it takes under a quarter of it."""
        check(definition, weights, info.name or "The SAE")
        self.definition = definition
        self.info = info
        self.dtype = dtype
        self.residence: Residence = residence or _residence(weights, dtype)
        self._weights = weights
        self._encoder = make_encoder(weights.w_enc, self.residence, dtype)
        self._b_dec = weights.b_dec.read()
        bounds = {name: BOUNDS.get(name, float(np.finfo(np.float32).max)) for name in weights.vectors}
        self._vectors = {name: replace(t, bound=bounds[name]).read() for name, t in weights.vectors.items()}
        self._decoder = DecoderMatrix(weights.w_dec, self.residence, dtype, unit_rows=definition.scale_by_norm)
        self._w_skip = None if weights.w_skip is None else weights.w_skip.read(dtype=dtype)

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> Self:
        """Load an SAE from a file or folder; see :func:`lens_tui.load_sae` for the options.

        Raises ``LensError`` if it is of another kind than this class.
        """
        sae = cls.opener(path, **options)
        if not isinstance(sae, cls):
            raise LensError(
                f"{sae.info.name} is a {sae.info.architecture} SAE, not one for {cls.__name__}.",
                f"Use load_sae or {type(sae).__name__}.",
            )
        return sae

    @classmethod
    def from_arrays(
        cls,
        w_enc: Any,
        w_dec: Any,
        b_dec: Any,
        *,
        definition: Definition | None = None,
        w_skip: Any = None,
        **vectors: Any,
    ) -> Self:
        """Make an SAE of arrays.

        Args:
            w_enc: the encoder, ``(d_in, width)``.
            w_dec: the decoder, ``(width, d_out)``.
            b_dec: the decoder's bias, ``(d_out,)``.
            definition: how activations are made; by default that of the class.
            w_skip: the skip connection of a transcoder, ``(d_in, d_out)``.
            **vectors: those that its activation needs (``b_enc``, ``threshold``, ...), each ``(width,)``.

        Raises:
            LensError: for a definition of another class, and shapes that do not fit.
        """
        definition = definition or Definition(activation=cls.activation)
        if not issubclass(SAE.kinds[definition.activation], cls):
            raise LensError(
                f"A {definition.activation} SAE is not a {cls.__name__}.", "Use the class of its activation."
            )
        weights = Weights(
            w_enc=in_memory("w_enc", w_enc),
            w_dec=in_memory("w_dec", w_dec),
            b_dec=in_memory("b_dec", b_dec),
            vectors={name: in_memory(name, value) for name, value in vectors.items()},
            w_skip=None if w_skip is None else in_memory("w_skip", w_skip),
        )
        info = SAEInfo("", "", "", definition.activation, "", -1, 0, 0, "", k=definition.k, format="arrays")
        return build(definition, weights, info, residence="memory")  # type: ignore[return-value]

    @property
    def d_model(self) -> int:
        """Width of what it reads."""
        return self._weights.d_in

    @property
    def d_out(self) -> int:
        """Width of what it gives."""
        return self._weights.d_out

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self._weights.width

    @property
    def tensors(self) -> Mapping[str, mx.array]:
        """The small tensors by name: ``b_dec``, those of the activation, and where there are any ``w_skip`` and the
        ``norms`` of decoder rows that activations are multiplied by."""
        more = {"w_skip": self._w_skip, "norms": self._decoder.norms}
        known = {name: tensor for name, tensor in more.items() if tensor is not None}
        return {"b_dec": self._b_dec, **self._vectors, **known}

    def encoder_columns(self, ids: Ids) -> mx.array:
        """The encoder of some features as it is stored, ``(d_model, len(ids))`` float32."""
        return self._encoder.columns(self._ids(ids)).astype(mx.float32)

    def encode(self, residual: mx.array) -> mx.array:
        """Activations ``(..., d_sae)`` of residuals ``(..., d_model)``, all of them, mostly zeros.

        For wide SAEs use :meth:`top_k`, which never holds more than a block of them. Raises ``LensError`` for residuals
        that are not finite, and where the product is beyond float32; inside ``mx.compile`` and ``mx.vmap``, where
        nothing can be looked at, the activations are NaN there.
        """
        self._check_residual(residual)
        made = self._encoded(residual)
        self._check_finite(made)
        return made

    def encode_features(self, residual: mx.array, ids: Ids) -> mx.array:
        """Activations ``(..., len(ids))`` of some features; only their part of the encoder is read.

        A TopK SAE has to compute all of them, since its latents compete. Nothing is computed yet, so that it can be
        part of a model's forward pass: where residuals are not finite, neither are activations.
        """
        places = self._ids(ids)
        columns = mx.array(places.astype(np.int32))
        if self.definition.activation in ("topk", "groupmax"):
            return mx.take(self._encoded(residual), columns, axis=-1)
        x, lead = self._rows(residual)
        if not places.size:
            return mx.zeros((*lead, 0))
        product = self._prepare(x).astype(self.dtype) @ self._encoder.columns(places).astype(self.dtype)
        return self._activate(product.astype(mx.float32), columns).reshape(*lead, places.size)

    def top_k(self, residual: mx.array, k: int) -> tuple[mx.array, mx.array]:
        """The ``k`` strongest features of each token: ids (int32) and activations ``(..., k)``, strongest first.

        Places beyond the active features hold id -1 and activation 0. Memory stays near one block
        of 1024 tokens by 16384 latents, whatever the width.
        """
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= self.d_sae:
            raise LensError(f"k is {k!r}; this SAE has {self.d_sae} features.", f"Choose k from 1 to {self.d_sae}.")
        x, lead = self._rows(residual)
        if not x.shape[0]:
            return mx.zeros((*lead, k), dtype=mx.int32), mx.zeros((*lead, k))
        self._check_residual(x)
        parts = [self._top_rows(self._prepare(x[rows]), k) for rows in row_chunks(x.shape[0])]
        ids, values = mx.concatenate([part[0] for part in parts]), mx.concatenate([part[1] for part in parts])
        self._check_finite(values)
        return ids.reshape(*lead, k), values.reshape(*lead, k)

    def decode(self, activations: mx.array, like: mx.array | None = None) -> mx.array:
        """The reconstruction ``(..., d_out)`` of activations ``(..., d_sae)``, without skip connection.

        An SAE that normalises each token by its own statistics needs them to undo it: give the residuals
        ``like (..., d_model)`` they were encoded from. Raises ``LensError`` without.
        """
        if activations.shape[-1:] != (self.d_sae,):
            raise LensError(
                f"The activations have shape {tuple(activations.shape)}; this SAE has {self.d_sae} features.",
                "The last axis must be the features.",
            )
        lead = activations.shape[:-1]
        z = activations.reshape(-1, self.d_sae).astype(mx.float32)
        out = self._decoder.product(z) + self._b_dec
        residual = None if like is None else self._rows(like)[0]
        made = undone(self.definition, out, residual)
        self._check_finite(made)
        return made.reshape(*lead, self.d_out)

    def reconstruct(self, residual: mx.array, target: mx.array | None = None) -> Reconstruction:
        """Encode, decode, and what is left over, computed at once; for gradients use ``decode(encode(x))``.

        ``target (..., d_out)`` is what a transcoder should have given.
        """
        x, lead = self._rows(residual)
        self._check_residual(x)
        parts = [self._reconstruct_rows(x[rows]) for rows in row_chunks(x.shape[0])]
        output = mx.concatenate([part[0] for part in parts]) if parts else mx.zeros((0, self.d_out))
        l0 = mx.concatenate([part[1] for part in parts]) if parts else mx.zeros((0,), dtype=mx.int32)
        self._check_finite(output)
        goal = x if target is None and not self.info.is_transcoder else None
        if target is not None:
            if target.size != output.size:
                raise LensError(f"The target has shape {tuple(target.shape)}, the output {(*lead, self.d_out)}.")
            goal = target.reshape(-1, self.d_out)
        error = None if goal is None or goal.shape != output.shape else goal.astype(mx.float32) - output
        fvu = None if error is None or goal is None else fraction_unexplained(goal, error)
        shaped = None if error is None else error.reshape(*lead, self.d_out)
        return Reconstruction(output.reshape(*lead, self.d_out), shaped, l0.reshape(lead), fvu)

    def directions(self, ids: Ids | None = None) -> mx.array:
        """Unit decoder rows ``(len(ids), d_out)`` of features; of all with ``None``. A row of zeros stays zero."""
        rows = self._decoder_rows(ids)
        norm = mx.linalg.norm(rows, axis=-1, keepdims=True)
        return rows / mx.where(norm > 0, norm, 1.0)

    def vector(self, feature: int, *, max_activation: float | None = None) -> SteeringVector:
        """A feature's decoder direction as a steering vector, with where it comes from and where it belongs.

        ``max_activation`` is the largest activation seen, as the SAE gives it; it is noted in units of the direction.
        Raises ``LensError`` for an SAE whose layer or site is not known.
        """
        row = np.asarray(self._decoder_rows([feature])[0])
        info = self.info
        if info.layer_out < 0 or not info.site_out:
            raise LensError(
                f"It is not known which layer and site {info.name or 'the SAE'} is for.", "Give them when loading it."
            )
        unit = None if max_activation is None else max_activation * float(self.decoder_norms([feature])[0])
        facts = {"sae": info.id, "feature": int(feature), "format": info.format}
        return SteeringVector.of(
            f"{info.name} {feature}",
            row,
            info.layer_out,
            site=info.site_out,
            model=info.model_name,
            origin=Origin("feature", facts),
            max_activation=unit,
        )

    def effects(self, ids: Ids) -> mx.array:
        """What one unit of each feature's activation adds to the decoder's output ``(len(ids), d_out)``, before it is
        scaled back to raw units."""
        return self._decoder.effects(self._ids(ids))

    def decoder_norms(self, ids: Ids | None = None) -> mx.array:
        """How far one unit of a feature's activation moves the output ``(len(ids),)``: the length of its decoder row.

        An activation times this is in units of the unit direction (up to a token's own scale, if it is normalised).
        """
        rows = self._decoder_rows(ids)
        norm = mx.linalg.norm(rows, axis=-1)
        moved = mx.where(norm > 0, 1.0, 0.0) if self._decoder.norms is not None else norm
        return moved / self.definition.output_scale

    def __repr__(self) -> str:
        where = f"{self.info.site or 'site unknown'} of layer {self.info.layer}"
        return f"<{type(self).__name__} {self.info.name or 'unnamed'}: {self.d_model} -> {self.d_sae}, {where}>"

    # What subclasses define.

    def _activate(self, product: mx.array, columns: slice | mx.array) -> mx.array:
        """Activations of some latents from their part of ``x @ w_enc``."""
        return self._scaled(mx.maximum(product + self._vectors["b_enc"][columns], 0), columns)

    def _compete(self, activations: mx.array) -> mx.array:
        """What is left of all activations ``(n, d_sae)`` when latents compete; here they do not."""
        return activations

    @property
    def _most(self) -> int:
        """The most latents that can be active on a token."""
        return self.d_sae

    # The common way.

    def _encoded(self, residual: mx.array) -> mx.array:
        x, lead = self._rows(residual)
        return self._dense(self._prepare(x)).reshape(*lead, self.d_sae)

    def _check_residual(self, residual: mx.array) -> None:
        """Raise ``LensError`` with the first token whose residual no product can be made of."""
        rows = self._rows(residual)[0]
        row = _first_not(lambda: mx.abs(rows) <= _LARGEST_RESIDUAL)
        if row is not None:
            what = "NaN or infinity" if not np.isfinite(_numbers(rows[row])).all() else "numbers beyond any model's"
            raise LensError(
                f"The residual of token {row}, which {self.info.name or 'the SAE'} is to read, holds {what}.",
                "Check the model's precision: float16 overflows on some models.",
            )

    def _check_finite(self, values: mx.array) -> None:
        """Raise ``LensError`` with the first token for which a product was beyond the type of the weights."""
        row = _first_not(lambda: mx.isfinite(values.reshape(-1, values.shape[-1])))
        if row is not None:
            name, kind = self.info.name or "The SAE", str(self.dtype).rpartition(".")[2]
            raise LensError(
                f"{name} gives numbers beyond {kind} at token {row}: its weights, or what it was given, are too large.",
                "Check that it was made for this model and layer, and load it with dtype=mx.float32.",
            )

    def _rows(self, residual: mx.array) -> tuple[mx.array, tuple[int, ...]]:
        if not isinstance(residual, mx.array):  # NumPy's, or lists
            residual = mx.array(numbers(residual, "The residuals").astype(np.float32))
        d = self.d_model
        shape = tuple(residual.shape)
        if shape[-1:] != (d,) and len(shape) >= 2 and shape[-2] * shape[-1] == d:
            shape = (*shape[:-2], d)  # heads apart, as some hooks give them
        if shape[-1:] != (d,):
            raise LensError(
                f"The residuals have shape {tuple(residual.shape)}; this SAE reads width {d}.",
                f"It was made for {self.info.model_name or 'another model'}, {self.info.site or 'an unknown site'}.",
            )
        return residual.reshape(-1, d), shape[:-1]

    def _prepare(self, x: mx.array) -> mx.array:
        x = applied(self.definition, x)
        return x - self._b_dec if self.definition.subtract_b_dec else x

    def _block(self, x: mx.array, block: int) -> mx.array:
        """Activations of a block of latents, computed at once: for what needs no gradient."""
        product = self._encoder.now(x, block)
        if self.dtype == mx.float16:
            self._check_finite(product)
        return self._activate(product, self._encoder.spans[block])

    def _scaled(self, activations: mx.array, columns: slice | mx.array) -> mx.array:
        norms = self._decoder.norms
        return activations if norms is None else activations * norms[columns]

    def _dense(self, x: mx.array) -> mx.array:
        parts = [self._activate(self._encoder.product(x, i), span) for i, span in enumerate(self._encoder.spans)]
        return self._compete(parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=-1))

    def _top_rows(self, x: mx.array, k: int) -> tuple[mx.array, mx.array]:
        keep = min(k, self._most)
        best = self._best(x, keep)
        mx.eval(best.ids, best.values)
        ids, values = best.in_order()
        if keep < k:
            ids = mx.pad(ids, [(0, 0), (0, k - keep)], constant_values=mx.array(-1, dtype=mx.int32))
            values = mx.pad(values, [(0, 0), (0, k - keep)])
        mx.eval(ids, values)
        return ids, values

    def _best(self, x: mx.array, k: int) -> Best:
        best = nothing(x.shape[0])
        for block, span in enumerate(self._encoder.spans):
            best = best.with_block(self._block(x, block), span.start, k)
            mx.eval(best.ids, best.values)
        return best

    def _reconstruct_rows(self, x: mx.array) -> tuple[mx.array, mx.array]:
        ready = self._prepare(x)
        out, l0 = self._decoded(ready)
        out = out + self._b_dec
        if self._w_skip is not None:
            # The skip connection takes what the encoder takes, before b_dec is subtracted.
            plain = ready + self._b_dec if self.definition.subtract_b_dec else ready
            out = out + (plain.astype(self.dtype) @ self._w_skip).astype(mx.float32)
        out = undone(self.definition, out, x)
        mx.eval(out, l0)
        return out, l0

    def _decoded(self, ready: mx.array) -> tuple[mx.array, mx.array]:
        """``a @ w_dec`` and the number of active latents, a block of latents at a time."""
        out = mx.zeros((ready.shape[0], self.d_out))
        l0 = mx.zeros((ready.shape[0],), dtype=mx.int32)
        for block, span in enumerate(self._encoder.spans):
            z = self._block(ready, block)
            out, l0 = out + self._decoder.now(z, span), l0 + mx.sum(z > 0, axis=-1).astype(mx.int32)
            mx.eval(out, l0)
        return out, l0

    def _decoder_rows(self, ids: Ids | None) -> mx.array:
        return self._decoder.rows(None if ids is None else self._ids(ids))

    def _ids(self, ids: Ids) -> NDArray[np.int64]:
        given = np.asarray(ids.tolist() if isinstance(ids, mx.array) else ids)
        if given.size == 0:
            return np.zeros(0, np.int64)
        if given.ndim != 1 or not np.issubdtype(given.dtype, np.integer):
            raise LensError("Feature ids must be a list of whole numbers.", "For one feature give [id].")
        wrong = given[(given < 0) | (given >= self.d_sae)]
        if wrong.size:
            raise LensError(f"There is no feature {int(wrong[0])}: this SAE has {self.d_sae}.", _range(self.d_sae))
        return given.astype(np.int64)


_LARGEST_RESIDUAL = 1e15
"""With weights of at most ``tensors.LARGEST``, products of smaller residuals are within float32."""


def _first_not(good: Callable[[], mx.array]) -> int | None:
    """The first row ``(n, m)`` with something not ``good``; ``None`` without one, or where nothing can be looked at."""
    found = good()
    if not found.size:
        return None
    try:
        if bool(mx.all(found).item()):
            return None
        return int(np.argmin(np.asarray(mx.all(found, axis=-1))))
    except ValueError:  # inside mx.compile or mx.vmap there are no numbers to look at
        return None


def _numbers(array: mx.array) -> NDArray[np.float32]:
    return np.asarray(array.astype(mx.float32))


def _range(width: int) -> str:
    return f"Choose from 0 to {width - 1}."


def _residence(weights: Weights, dtype: mx.Dtype) -> Residence:
    return "memory" if weights.d_in * weights.width * dtype.size * 4 <= machine_memory() else "disk"


def build(
    definition: Definition,
    weights: Weights,
    info: SAEInfo,
    *,
    residence: Residence | None = None,
    dtype: mx.Dtype = mx.float32,
) -> SAE:
    """The SAE of the class that its activation asks for. Raises ``LensError`` if the tensors do not fit."""
    return SAE.kinds[definition.activation](
        definition, weights, with_shape(info, weights), residence=residence, dtype=dtype
    )


def with_shape(info: SAEInfo, weights: Weights) -> SAEInfo:
    """The record with the shape that the tensors have."""
    return replace(info, d_model=weights.d_in, width=weights.width, d_out=weights.d_out)
