"""What an SAE computes by, and its tensors in weight files: read only where they are looked at, and checked there."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError, read_files
from lens_tui.records.file_arrays import NUMBERS, FileArray, OpenFile, file_array, member_place, npy_array
from lens_tui.records.read_files import AGAIN, explained, open_zip, parse_json, short_path
from lens_tui.records.sanitise import one_line
from lens_tui.records.torch_files import TorchTensor, load_torch

Index = slice | NDArray[np.int64]

LARGEST = 1e12
"""No weight is larger: products of such with activations, and of those with such, are within float32."""


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor on disk or in memory; bfloat16 is held as its bits (uint16), since NumPy has no such type.

    ``array`` is usually in a file: what is not read takes no memory of ours. With ``scales``, of shape ``(rows, 1)``
    or ``(1, columns)``, the matrix is ``array * scales``: 8-bit integers with one scale a latent. No number read may
    be larger in size than ``bound``.
    """

    name: str
    array: NDArray[Any] | FileArray
    bfloat16: bool = False
    scales: NDArray[np.float32] | None = None
    bound: float = LARGEST

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, as in the file."""
        return tuple(self.array.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return int(self.array.nbytes) + (0 if self.scales is None else int(self.scales.nbytes))

    @property
    def T(self) -> Stored:
        """The transpose; nothing is copied."""
        return replace(self, array=self.array.T, scales=None if self.scales is None else self.scales.T)

    @property
    def turned(self) -> bool:
        """Whether columns, not rows, lie together."""
        if isinstance(self.array, FileArray):
            return self.array.turned
        return self.array.ndim == 2 and self.array.strides[0] < self.array.strides[1]

    def host(self, rows: Index | None = None, columns: Index | None = None) -> NDArray[Any]:
        """The same as :meth:`read` in NumPy, float32."""
        part = self._part(rows, columns)
        self._check(part)
        if self.bfloat16:
            bits: NDArray[np.uint32] = np.left_shift(part, 16, dtype=np.uint32)
            return bits.view(np.float32)
        return part.astype(np.float32, copy=False)

    def fill(self, out: NDArray[np.float32], columns: slice) -> None:
        """Some columns of a matrix as :meth:`host` gives them, in memory that is there.

        It is fastest where the file has float32 and ``out`` lies as it does (:attr:`turned`).
        """
        if isinstance(self.array, FileArray) and self.array.dtype == np.float32 and self.scales is None:
            self.array.fill(out, columns)
            self._check(out)
        else:
            np.copyto(out, self.host(columns=columns))

    def read(
        self, rows: Index | None = None, columns: Index | None = None, *, dtype: mx.Dtype = mx.float32
    ) -> mx.array:
        """The tensor, or some rows or columns of a matrix, as an evaluated array.

        Raises ``LensError`` for NaN, and for numbers that are too large for a weight or for ``dtype``.
        """
        part = self._part(rows, columns)
        self._check(part)
        # What lies turned in the file is copied as it lies, and turned afterwards.
        turned = part.ndim == 2 and part.strides[0] < part.strides[1]
        part = np.ascontiguousarray(part.T if turned else part)
        if part.dtype == np.float64:
            part = part.astype(np.float32)
        value = mx.array(part)
        value = (value.view(mx.bfloat16) if self.bfloat16 else value).astype(dtype)
        value = value.T if turned else value
        mx.eval(value)
        if dtype == mx.float16 and not bool(mx.all(mx.isfinite(value)).item()):
            raise self._wrong(finite=False)
        return value

    def _check(self, part: NDArray[Any]) -> None:
        """Raise ``LensError`` for NaN and what is too large; on a CPU NumPy finds out ten times as fast as MLX."""
        most = _largest(part, bfloat16=self.bfloat16)
        if not most <= self.bound:
            raise self._wrong(finite=bool(np.isfinite(most)))

    def _part(self, rows: Index | None, columns: Index | None) -> NDArray[Any]:
        part = _cut(self.array, rows, columns)
        if self.scales is None:
            return part
        tall, wide = self.scales.shape
        with np.errstate(over="ignore"):
            made: NDArray[Any] = part * _cut(self.scales, None if tall == 1 else rows, None if wide == 1 else columns)
        return made

    def _wrong(self, *, finite: bool) -> LensError:
        if finite:
            return LensError(f"The tensor {self.name} holds numbers beyond {self.bound:g}.", "Fetch the file again.")
        return LensError(f"The tensor {self.name} holds NaN or infinity.", "Fetch the file again.")


def _largest(part: NDArray[Any], *, bfloat16: bool) -> float:
    """The largest size among numbers; NaN if one of them is."""
    if not part.size:
        return 0.0
    if not bfloat16 and part.dtype != np.float16:
        return max(float(part.max()), -float(part.min()))
    # Among floats of one sign the bits, as whole numbers, stand in the order of the sizes, with infinity and NaN last.
    positive, negative = int(part.view(np.int16).max()), int(part.view(np.uint16).max()) - (1 << 15)
    bits = np.array([max(positive, negative, 0)], np.uint16)
    return float(((bits.astype(np.uint32) << 16).view(np.float32) if bfloat16 else bits.view(np.float16))[0])


def _cut(array: NDArray[Any] | FileArray, rows: Index | None, columns: Index | None) -> NDArray[Any]:
    if isinstance(array, FileArray):
        return array.take(rows, columns)
    part = array if rows is None else array[rows]
    return part if columns is None else part[:, columns]


def in_memory(name: str, values: Any) -> Stored:
    """Wrap a NumPy array or anything NumPy makes one of, as float32."""
    with np.errstate(over="ignore"):
        return Stored(name, np.asarray(values, dtype=np.float32))


LARGEST_CODE = 127
SUFFIX = "_scale"


def quantised(matrix: NDArray[np.float32], latents: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """A matrix as signed bytes and the scales of its latents, which lie along axis ``latents``.

    Each weight is off by at most half a scale. A latent that is all zeros has scale 1.
    """
    largest = np.abs(matrix).max(axis=1 - latents)
    scales = np.where(largest > 0, largest / LARGEST_CODE, 1).astype(np.float32)
    return np.rint(matrix / np.expand_dims(scales, 1 - latents)).astype(np.int8), scales


def in_eight_bits(w_enc: NDArray[np.float32], w_dec: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """The tensors of a file that stand for ``w_enc (d_in, n)`` and ``w_dec (n, d_out)``."""
    made: dict[str, NDArray[Any]] = {}
    for name, matrix, latents in (("w_enc", w_enc, 1), ("w_dec", w_dec, 0)):
        made[name], made[name + SUFFIX] = quantised(matrix, latents)
    return made


def with_scales(matrix: Stored, tensors: dict[str, Stored], name: str, latents: int, path: Path) -> Stored:
    """``matrix``, the tensor ``name`` of a file, with its scales if it is in 8 bits.

    Raises ``LensError`` if they are missing, too few, not positive, or there for a matrix that is not in 8 bits.
    """
    scales = tensors.get(name + SUFFIX)
    if (matrix.array.dtype == np.int8) != (scales is not None):
        what = f"{name} in 8 bits without {name}{SUFFIX}" if scales is None else f"{name}{SUFFIX} without 8-bit {name}"
        raise LensError(f"{short_path(path)} has {what}.", "Fetch it again.")
    if scales is None or len(matrix.shape) != 2:
        return matrix
    if scales.shape != (matrix.shape[latents],):
        raise LensError(f"{name}{SUFFIX} of {short_path(path)} has shape {scales.shape}; it needs one number a latent.")
    values = scales.host()
    if not (values > 0).all():
        raise LensError(f"{name}{SUFFIX} of {short_path(path)} holds numbers that are not positive.", "Fetch it again.")
    return replace(matrix, scales=np.expand_dims(values, 1 - latents))


_MAX_JSON = 2 << 20
_MAX_HEADER = 2 << 20
"""Bytes of JSON: an empty list is two of them in a file, and seventy in memory."""
_MAX_ARRAYS = 10_000
_TYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of at most 2 MB. Raises ``LensError`` for anything else."""
    value = read_files.read_json(path, _MAX_JSON)
    if not isinstance(value, dict):
        raise LensError(f"{short_path(path)} holds a {type(value).__name__}, not an object.", AGAIN)
    return value


def container(path: Path) -> str:
    """``safetensors``, ``npz`` or ``torch``, by the first bytes of a file; ``""`` if it is none of them.

    Raises ``LensError`` for what cannot be read.
    """
    file = OpenFile(path)
    start = file.read(0, min(file.size, 9))
    if start[:4] == b"PK\x03\x04":
        if path.suffix in _BY_SUFFIX:  # what is wrong with it is reported by the reader of what it claims to be
            return _BY_SUFFIX[path.suffix]
        with open_zip(path) as archive:
            return "npz" if any(name.endswith(".npy") for name in archive.namelist()) else "torch"
    if len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] <= max(file.size, _MAX_HEADER):
        return "safetensors"
    return _BY_SUFFIX.get(path.suffix, "")


_BY_SUFFIX = {".npz": "npz", ".pt": "torch", ".pth": "torch"}


def read_values(path: Path) -> dict[str, Any]:
    """What a weight file holds by name, its tensors as :class:`Stored`, whatever its kind and name are.

    A torch file may hold other values beside them. Raises ``LensError`` for a file of an unknown kind,
    is damaged, or asks for anything but tensors.
    """
    kind = container(path)
    if not kind and path.suffix != ".safetensors":
        raise LensError(f"{short_path(path)} is not a weight file.", "Supported are safetensors, npz and torch files.")
    readers = {"npz": read_npz, "torch": read_torch, "safetensors": read_safetensors}
    return dict(readers[kind or "safetensors"](path))


def read_safetensors(path: Path) -> dict[str, Stored]:
    """The float and integer tensors of a safetensors file by name, not read yet."""
    file = OpenFile(path)
    length = struct.unpack("<Q", file.read(0, 8))[0] if file.size >= 8 else 0
    if not 2 <= length <= min(_MAX_HEADER, file.size - 8):
        raise LensError(
            f"{short_path(path)} is not a complete safetensors file: its header claims {length} bytes.", AGAIN
        )
    try:
        header = parse_json(file.read(8, length), f"The header of {short_path(path)}", AGAIN)
        entries = {str(name): entry for name, entry in header.items() if name != "__metadata__"}
        found = {name: _safetensor(file, name, entry, 8 + length) for name, entry in entries.items()}
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except LensError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise LensError(f"{short_path(path)} has a damaged safetensors header.", AGAIN) from error
    if sum(tensor.nbytes for tensor in found.values()) != end or 8 + length + end != file.size:
        raise LensError(f"{short_path(path)} has other bytes than its header says.", AGAIN)
    return found


def _safetensor(file: OpenFile, name: str, entry: dict[str, Any], base: int) -> Stored:
    kind, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in _TYPES:
        raise LensError(
            f"The tensor {one_line(name, 60)} of {short_path(file.path)} is of type {one_line(str(kind), 20)}.", NUMBERS
        )
    if not isinstance(shape, list) or not all(
        type(number) is int and 0 <= number < 1 << 62 for number in (start, stop, *shape)
    ):
        raise ValueError(name)
    array = file_array(file, _TYPES[kind], shape, base + start, stop - start)
    return Stored(one_line(name, 60), array, kind == "BF16")


def read_npz(path: Path) -> dict[str, Stored]:
    """The arrays of an ``.npz``, not read yet; compressed ones are refused, for their parts cannot be read alone."""
    file, found = OpenFile(path), {}
    with explained(path), open_zip(path) as archive:
        members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
        if len(members) > _MAX_ARRAYS:
            raise LensError(f"{short_path(path)} holds {len(members)} arrays.", AGAIN)
        for member in members:
            name = member.filename.removesuffix(".npy")
            found[name] = Stored(one_line(name, 60), npy_array(file, *member_place(file, member)))
    return found


def read_torch(path: Path) -> dict[str, Any]:
    """The dictionary that a ``.pt`` file holds, its tensors as :class:`Stored`."""
    value = load_torch(path)
    if not isinstance(value, dict):
        raise LensError(f"{short_path(path)} holds a {type(value).__name__}, not a dictionary of tensors.", AGAIN)
    return {str(name): _stored(str(name), item) for name, item in value.items()}


def _stored(name: str, value: Any) -> Any:
    if not isinstance(value, TorchTensor):
        return value
    array = value.array if isinstance(value.array, FileArray) else np.asarray(value.array)
    return Stored(one_line(name, 60), array, value.bfloat16)


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
        """Raise ``LensError`` for tensors that are not matrices."""
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
