"""Tensors of a ``torch.save`` file without torch, as :class:`Stored` memory maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lens_tui.records import LensError
from lens_tui.records.mapped import AGAIN, shown
from lens_tui.records.sanitise import one_line
from lens_tui.records.torch_files import TorchTensor, load_torch

from .tensors import Stored


def read_torch(path: Path) -> dict[str, Any]:
    """The dictionary that a ``.pt`` file holds, its tensors as :class:`Stored` memory maps.

    Raises ``LensError`` for a file that is no zip, is cut short, or asks for anything but tensors.
    """
    value = load_torch(path)
    if not isinstance(value, dict):
        raise LensError(f"{shown(path)} holds a {type(value).__name__}, not a dictionary of tensors.", AGAIN)
    return {
        str(name): Stored(one_line(str(name), 60), v.array, v.bfloat16) if isinstance(v, TorchTensor) else v
        for name, v in value.items()
    }
