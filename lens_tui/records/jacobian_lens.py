"""Jacobian lenses: a matrix for each layer that carries its residual to the last one's, and their files.

Ours is a safetensors file: a tensor ``J.3`` ``(d_model, d_model)`` for each layer, half precision unless asked
otherwise, and the other fields as JSON under ``record`` in its metadata. Published ones (``*_jacobian_lens.pt`` of
``neuronpedia/jacobian-lens``, and vLLM-Lens') are ``torch.save`` files of ``{"J": {layer: matrix}, "n_prompts",
"source_layers", "d_model"}``, read without torch and without running anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .disk import write_bytes
from .errors import LensError
from .paths import expanded
from .read_files import AGAIN, explained, open_regular, parse_json, short_path
from .sanitise import one_line
from .steering_vector import FloatArray
from .torch_files import TorchTensor, load_torch

FORMAT = "mlx-lens-tui.jacobian-lens"
_MAX_HEADER = 4 << 20
_MAX_LAYERS = 1024


@dataclass(frozen=True, slots=True, eq=False)
class JacobianLens:
    """The average Jacobian of the last residual with respect to each layer's, as a map from one to the other.

    ``matrices`` holds for each fitted layer (counted from 0, ``resid_post``) a float32 matrix ``(d_model, d_model)``
    whose row ``i`` is the gradient of the last residual's entry ``i``: ``matrices[layer] @ h`` is what a residual
    ``h`` of that layer comes to. ``n_texts`` and ``n_positions`` say over how many it was averaged (0: not known).
    ``errors`` holds for each layer the standard error of the estimate as a share of its length, from two halves of
    the texts; empty where they are not known. ``facts`` are plain data that would make it again.
    """

    model: str
    matrices: Mapping[int, FloatArray]
    n_texts: int = 0
    n_positions: int = 0
    errors: Mapping[int, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def layers(self) -> tuple[int, ...]:
        """The fitted layers, in order."""
        return tuple(sorted(self.matrices))

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(next(iter(self.matrices.values())).shape[0])

    def matrix(self, layer: int) -> FloatArray:
        """The matrix of a layer. Raises :class:`LensError` for one that was not fitted."""
        if layer not in self.matrices:
            fitted = ", ".join(str(one) for one in self.layers[:40])
            raise LensError(f"The Jacobian lens has no layer {layer}.", f"It has {fitted}.")
        return self.matrices[layer]

    def check_fits(self, d_model: int, n_layers: int, model: str = "") -> None:
        """Raise :class:`LensError` for a model of another width or of too few layers, or (with a name) another one."""
        if self.d_model != d_model:
            raise LensError(
                f"The Jacobian lens is {self.d_model} wide, the model's residual stream {d_model}.",
                "Use one that was fitted to this model.",
            )
        if self.layers[0] < 0 or self.layers[-1] >= n_layers:
            raise LensError(f"The Jacobian lens has a layer {self.layers[-1]}, the model {n_layers} layers.")
        if model and self.model and self.model != model:
            raise LensError(
                f"The Jacobian lens was fitted to {one_line(self.model, 60)}, not to {one_line(model, 60)}.",
                "Use one that was fitted to this model.",
            )


def write_jacobian_lens(lens: JacobianLens, path: Path | str, dtype: Literal["float16", "float32"] = "float16") -> Path:
    """Write a lens as safetensors. Raises :class:`LensError` if the disk refuses, or half precision overflows."""
    from safetensors.numpy import save

    with np.errstate(over="ignore"):
        tensors = {f"J.{layer}": np.ascontiguousarray(lens.matrices[layer], dtype) for layer in lens.layers}
    if not all(np.isfinite(each).all() for each in tensors.values()):
        raise LensError("The Jacobian lens has numbers beyond float16.", "Write it as float32.")
    record = {
        "model": lens.model,
        "n_texts": lens.n_texts,
        "n_positions": lens.n_positions,
        "errors": {str(layer): float(lens.errors[layer]) for layer in sorted(lens.errors)},
        "facts": dict(lens.facts),
    }
    file = expanded(path)
    write_bytes(file, save(tensors, {"format": FORMAT, "version": "1", "record": json.dumps(record)}))
    return file


def read_jacobian_lens(path: Path | str, *, model: str = "") -> JacobianLens:
    """Read a lens: ours, or a published ``.pt``.

    Args:
        path: The file.
        model: What the model is called, for a file that does not say.

    Raises:
        LensError: For a file that is none, is damaged, or holds numbers that are not finite.
    """
    file = expanded(path)
    with explained(file):
        found = _ours(file) if file.suffix == ".safetensors" else _published(file, model)
    _check(file, found)
    return found


def _ours(file: Path) -> JacobianLens:
    from safetensors import safe_open

    with open_regular(file) as handle:
        if int.from_bytes(handle.read(8), "little") > _MAX_HEADER:
            raise LensError(f"{short_path(file)} cannot be read: its header is too large.", AGAIN)
    with safe_open(file, framework="np") as opened:
        metadata: dict[str, str] = opened.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise LensError(f"{short_path(file)} is no Jacobian lens.", "Fit one with `jlens fit`.")
        record: Any = parse_json(metadata["record"], f"{short_path(file)} cannot be read: its record", AGAIN)
        names = [name for name in opened.keys() if name.startswith("J.")]  # noqa: SIM118 - not a mapping
        matrices = {int(name[2:]): opened.get_tensor(name).astype(np.float32) for name in names}
    return JacobianLens(
        model=one_line(str(record["model"]), 120),
        matrices=matrices,
        n_texts=int(record["n_texts"]),
        n_positions=int(record["n_positions"]),
        errors={int(layer): float(value) for layer, value in record["errors"].items()},
        facts={str(key): value for key, value in record["facts"].items()},
    )


def _published(file: Path, model: str) -> JacobianLens:
    held = load_torch(file)
    layers = held.get("J") if isinstance(held, dict) else None
    if not isinstance(layers, dict) or not 0 < len(layers) <= _MAX_LAYERS:
        raise LensError(f"{short_path(file)} is no Jacobian lens.", "A published one holds matrices by layer under J.")
    if not all(type(layer) is int and isinstance(each, TorchTensor) for layer, each in layers.items()):
        raise LensError(f"{short_path(file)} has layers that are no matrices.", AGAIN)
    count = held.get("n_prompts")
    facts = {"file": one_line(file.name, 120), "format": "torch"}
    matrices = {int(layer): each.float32() for layer, each in layers.items()}
    return JacobianLens(model, matrices, n_texts=count if type(count) is int and count > 0 else 0, facts=facts)


def _check(file: Path, found: JacobianLens) -> None:
    shapes = {each.shape for each in found.matrices.values()}
    square = len(shapes) == 1 and all(len(shape) == 2 and shape[0] == shape[1] > 1 for shape in shapes)
    if not square or min(found.matrices) < 0:
        raise LensError(f"{short_path(file)} holds no square matrices of one width, one for each layer.", AGAIN)
    if not all(np.isfinite(each).all() for each in found.matrices.values()):
        raise LensError(f"{short_path(file)} holds numbers that are not finite.", AGAIN)
