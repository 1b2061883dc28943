"""Steering vectors as files of many tools: one record out of each, and back where the format can hold it.

======================  ============  ==============================================================
file                    read, write   layers
======================  ============  ==============================================================
``.safetensors``        both          as in the records; directions to the last bit
``.gguf`` (repeng)      both          ``direction.L`` is the output of block L, counted from 0
``.json`` (vLLM-Lens)   both          ``layer_indices``, outputs of blocks, counted from 0
``.npz``                both          the number at the end of each name
``.npy``                both          rows of a matrix, or the layer that is given
``.pt``, ``.pth``       read          CAA's file name, keys of steering-vectors and dictionaries
======================  ============  ==============================================================

No file is unpickled into anything but tensors. Formats without a unit direction get the
vector at its own length (``direction * norm``), so that a coefficient of 1 means the same there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from .. import atomic
from ..errors import LensError
from ..read_files import shown
from ..vectors import SteeringVector
from ..vectors_io import check_fit
from ..vectors_io import save_vector as _save_one
from . import gguf, numpy_files, own, torch_vectors, vllm_lens
from .common import Found, records

READERS: dict[str, Callable[[Path], Found]] = {
    "repeng-gguf": gguf.read,
    "vllm-lens-json": vllm_lens.read,
    "npy": numpy_files.read_npy,
    "npz": numpy_files.read_npz,
    "torch": torch_vectors.read,
}
WRITERS: dict[str, Callable[[Path, Sequence[SteeringVector]], bytes]] = {
    ".safetensors": own.write,
    ".gguf": gguf.write,
    ".json": vllm_lens.write,
    ".npy": numpy_files.write_npy,
    ".npz": numpy_files.write_npz,
}
__all__ = ["READERS", "WRITERS", "check_fit", "load_vectors", "save_vectors", "sniff"]


def load_vectors(
    path: Path | str, *, layer: int | None = None, d_model: int | None = None, model: str | None = None
) -> tuple[SteeringVector, ...]:
    """The vectors of a file of any known format, by layer; what it is is told by its first bytes.

    ``layer`` picks one layer, and says it where the file does not. With ``d_model``
    a vector of another width is refused, with ``model`` one that names another model.
    Raises :class:`LensError` in one sentence for NaN, a zero vector, and all that is no vector.
    """
    file = Path(path)
    kind = sniff(file)
    if kind == "mlx-lens-tui":
        found = own.read(file)
        found = tuple(one for one in found if layer is None or one.layer == layer)
        if not found:
            raise LensError(f"{shown(file)} has no vector for layer {layer}.", "Choose another layer.")
    else:
        found = records(file, kind, READERS[kind](file), layer)
    for vector in found:
        check_fit(vector, d_model=d_model, model=model)
    return found


def save_vectors(vectors: SteeringVector | Sequence[SteeringVector], path: Path | str) -> Path:
    """Write vectors in the format of the path's suffix; returns the file.

    Raises :class:`LensError` for an unknown suffix, and where the format cannot hold
    them (several of one layer, another site than ``resid_post``).
    """
    file = Path(path)
    several = [vectors] if isinstance(vectors, SteeringVector) else list(vectors)
    if file.suffix.lower() not in WRITERS:
        known = ", ".join(WRITERS)
        raise LensError(f"Vectors are not written as {file.suffix or 'a file without suffix'!r}.", f"Use {known}.")
    if not several:
        raise LensError("There is no vector to save.", "Give at least one.")
    if file.suffix.lower() == ".safetensors" and len(several) == 1:
        return _save_one(several[0], file)
    atomic.write_bytes(file, WRITERS[file.suffix.lower()](file, several))
    return file


def sniff(path: Path) -> str:
    """The format of a file: ``mlx-lens-tui`` or a key of :data:`READERS`, by its first bytes and suffix."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise LensError(f"There is no file {shown(path)}.", "Check the path.") from None
    except OSError as error:
        raise LensError(f"{shown(path)} cannot be read: {error.strerror}.", "Check the path.") from error
    suffix = path.suffix.lower()
    if head.startswith(gguf.MAGIC):
        return "repeng-gguf"
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if head.startswith(b"PK"):
        return "npz" if suffix == ".npz" else "torch"
    if suffix == ".safetensors" or head[8:9] == b"{":
        return "mlx-lens-tui"
    if head.lstrip()[:1] == b"{":
        return "vllm-lens-json"
    if suffix in (".pt", ".pth", ".bin"):
        return "torch"
    raise LensError(f"{shown(path)} is no vector file of a known format.", f"Known: {', '.join(WRITERS)}, .pt.")
