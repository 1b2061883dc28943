"""What an SAE computes, as data: the one form into which every file format is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lens_tui.records import LensError

from .files import Stored

Activation = Literal["relu", "jumprelu", "topk", "groupmax", "gated"]
Normalization = Literal["none", "layer_norm", "constant_norm_rescale"]

VECTORS: Mapping[Activation, tuple[str, ...]] = {
    "relu": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "topk": ("b_enc",),
    "groupmax": ("b_enc",),
    "gated": ("b_gate", "b_mag", "r_mag"),
}
"""The vectors ``(width,)`` that each activation needs, besides ``b_dec``."""

BOUNDS: Mapping[str, float] = {"r_mag": 60.0}
"""How large the numbers of a vector may be; ``exp(r_mag)`` is a factor. Others may be anything finite: a latent is
switched off by a large threshold or bias."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """How an SAE gets from a residual ``x`` to its reconstruction.

    1. ``x`` is multiplied by ``input_scale``, or normalised by its own statistics (``normalize``):
       ``layer_norm`` subtracts its mean and divides by its standard deviation (of a sample, n - 1) plus 1e-5
       (which SAELens, and so this, leaves out on the way back),
       ``constant_norm_rescale`` scales its length to ``sqrt(d)``.
    2. With ``subtract_b_dec`` the decoder's bias is subtracted.
    3. ``p = x @ w_enc + b_enc``. ``relu``: ``a = max(p, 0)``; ``jumprelu``: ``a = max(p, 0)`` where ``p > threshold``,
       else 0; ``gated``: with ``q = x @ w_enc``, ``a = max(q * exp(r_mag) + b_mag, 0)`` where ``q + b_gate > 0``.
    4. With ``scale_by_norm`` activations are multiplied by the length of their decoder row.
    5. ``topk`` keeps the ``k`` largest of a token, ``groupmax`` the largest of each of ``k`` runs of latents.
    6. ``y = a @ w_dec + b_dec`` (rows made unit with ``scale_by_norm``) ``+ x @ w_skip``; then 1 is undone:
       ``y`` is divided by ``output_scale``, or multiplied by the token's own scale and moved by its mean.
    """

    activation: Activation
    k: int = 0
    subtract_b_dec: bool = False
    input_scale: float = 1.0
    output_scale: float = 1.0
    normalize: Normalization = "none"
    scale_by_norm: bool = False


@dataclass(frozen=True, eq=False, kw_only=True)
class Weights:
    """The tensors: ``w_enc (d_in, width)``, ``w_dec (width, d_out)``, ``b_dec (d_out,)``, ``w_skip (d_in, d_out)``.

    ``vectors`` are those of :data:`VECTORS`, each ``(width,)``.
    """

    w_enc: Stored
    w_dec: Stored
    b_dec: Stored
    vectors: Mapping[str, Stored] = field(default_factory=dict)
    w_skip: Stored | None = None

    def __post_init__(self) -> None:
        """Raise ``LensError`` for matrices that are none."""
        for name, tensor in (("w_enc", self.w_enc), ("w_dec", self.w_dec)):
            if len(tensor.shape) != 2 or min(tensor.shape) < 1:
                raise LensError(f"The tensor {tensor.name} has shape {tensor.shape}; {name} is a matrix.", _HINT)

    @property
    def d_in(self) -> int:
        """Width of what is read."""
        return self.w_enc.shape[0]

    @property
    def width(self) -> int:
        """Number of latents."""
        return self.w_enc.shape[1]

    @property
    def d_out(self) -> int:
        """Width of what is given."""
        return self.w_dec.shape[1]


def check(definition: Definition, weights: Weights, where: str) -> None:
    """Raise ``LensError`` unless the tensors fit each other and the definition, and its scales are scales."""
    for name, scale in (("input_scale", definition.input_scale), ("output_scale", definition.output_scale)):
        if not 1e-12 <= scale <= 1e12:
            raise LensError(f"{name} of {where} is {scale!r}, not a positive number of a usual size.", _HINT)
    d_in, width, d_out = weights.d_in, weights.width, weights.d_out
    wanted: list[tuple[Stored, tuple[int, ...]]] = [(weights.w_dec, (width, d_out)), (weights.b_dec, (d_out,))]
    for name in VECTORS[definition.activation]:
        if name not in weights.vectors:
            raise LensError(f"{where} has no {name}, which a {definition.activation} SAE needs.", _HINT)
        wanted.append((weights.vectors[name], (width,)))
    if weights.w_skip is not None:
        wanted.append((weights.w_skip, (d_in, d_out)))
    for tensor, shape in wanted:
        if tensor.shape != shape:
            raise LensError(f"The tensor {tensor.name} of {where} has shape {tensor.shape}, not {shape}.", _HINT)
    if definition.subtract_b_dec and d_in != d_out:
        raise LensError(f"{where} reads width {d_in} and gives {d_out}, so its b_dec cannot be subtracted.", _HINT)
    if definition.activation in ("topk", "groupmax") and (
        type(definition.k) is not int or not 1 <= definition.k <= width
    ):
        raise LensError(
            f"{where} is a TopK SAE of width {width} with k = {definition.k!r}.", "Give k, from 1 to its width."
        )
    if definition.activation == "groupmax" and width % definition.k:
        raise LensError(f"{where} has {width} latents, which {definition.k} groups do not divide.", _HINT)


_HINT = "The file is damaged or of another format."
