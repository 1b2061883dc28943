"""Small SAE files of every format, written with plain NumPy."""

from __future__ import annotations

import io
import json
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
D, N = 32, 96
_KINDS = {"float32": "F32", "float16": "F16", "float64": "F64", "int8": "I8"}


def numbers(seed: int = 0, d: int = D, n: int = N, d_out: int | None = None) -> dict[str, Array]:
    """Weights and residuals that make some latents fire and others not; decoder rows are of unequal length."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "w_enc": normal(d, n) / d**0.5,
        "w_dec": normal(n, d_out or d) * rng.uniform(0.5, 2, (n, 1)).astype(np.float32),
        "b_enc": 0.3 * normal(n),
        "b_dec": normal(d_out or d),
        "threshold": rng.uniform(0.2, 1.5, n).astype(np.float32),
        "b_gate": 0.5 * normal(n),
        "b_mag": 0.5 * normal(n),
        "r_mag": 0.2 * normal(n),
        "w_skip": normal(d, d_out or d) / d**0.5,
        "x": 2 * normal(3, 5, d) + 0.5,
    }


def write_safetensors(path: Path, tensors: Mapping[str, Array], bfloat16: bool = False) -> Path:
    """The format by hand: 8 bytes of length, JSON, data. ``bfloat16`` cuts float32 to its upper half."""
    header: dict[str, Any] = {}
    data = b""
    for name, array in tensors.items():
        raw = (array.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16) if bfloat16 else array
        kind = "BF16" if bfloat16 else _KINDS[str(array.dtype)]
        body = np.ascontiguousarray(raw).tobytes()
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(body)]}
        data += body
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def cut(array: Array) -> Array:
    """What is left of float32 after a trip through bfloat16 that cuts."""
    bits: Array = array.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    return bits.view(np.float32)


def write_torch(path: Path, values: Any, storage: str = "FloatStorage") -> Path:
    """A file as ``torch.save`` writes it, without torch: stand-ins of its names are pickled by their place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    storages: list[bytes] = []
    with _stand_ins() as (rebuild, kinds):

        class Pickler(pickle.Pickler):
            def persistent_id(self, obj: Any) -> Any:
                if not isinstance(obj, _Raw):
                    return None
                storages.append(obj.data)
                return ("storage", kinds[storage], str(len(storages) - 1), "cpu", obj.count)

            def reducer_override(self, obj: Any) -> Any:
                if not isinstance(obj, np.ndarray):
                    return NotImplemented
                return rebuild, _pieces(obj, storage)

        buffer = io.BytesIO()
        Pickler(buffer, protocol=2).dump(OrderedDict(values) if isinstance(values, Mapping) else values)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", buffer.getvalue())
        archive.writestr("archive/byteorder", "little")
        for i, data in enumerate(storages):
            archive.writestr(f"archive/data/{i}", data)
        archive.writestr("archive/version", "3\n")
    return path


class _Raw:
    def __init__(self, data: bytes, count: int) -> None:
        self.data, self.count = data, count


def _pieces(array: Array, storage: str) -> tuple[Any, ...]:
    if not array.flags.c_contiguous and isinstance(array.base, np.ndarray):  # a view, kept as one
        base = array.base
        offset = (array.ctypes.data - base.ctypes.data) // array.itemsize
        strides = tuple(step // array.itemsize for step in array.strides)
        return _Raw(base.tobytes(order="A"), base.size), offset, array.shape, strides, False, OrderedDict()
    flat = np.ascontiguousarray(array)
    if storage == "BFloat16Storage":
        flat = (flat.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    if storage == "HalfStorage":
        flat = flat.astype(np.float16)
    strides = tuple(step // flat.itemsize for step in flat.reshape(array.shape).strides)
    return _Raw(flat.tobytes(), flat.size), 0, array.shape, strides, False, OrderedDict()


class _stand_ins:
    """Modules that look like torch while something is pickled."""

    def __enter__(self) -> tuple[Callable[..., Any], dict[str, type]]:
        torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

        def rebuild(*_: Any) -> None: ...

        rebuild.__module__, rebuild.__qualname__, rebuild.__name__ = (
            "torch._utils",
            "_rebuild_tensor_v2",
            "_rebuild_tensor_v2",
        )
        utils._rebuild_tensor_v2 = rebuild  # type: ignore[attr-defined]
        kinds = {
            name: type(name, (), {"__module__": "torch"}) for name in ("FloatStorage", "HalfStorage", "BFloat16Storage")
        }
        for name, kind in kinds.items():
            setattr(torch, name, kind)
        self._before = {name: sys.modules.get(name) for name in ("torch", "torch._utils")}
        sys.modules.update({"torch": torch, "torch._utils": utils})
        return rebuild, kinds

    def __exit__(self, *_: object) -> None:
        for name, module in self._before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
