"""The machine and the versions that figures belong to, in a line."""

from __future__ import annotations

import gc
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mlx.core as mx

from lens_tui import blas

from .report import Device


@dataclass(frozen=True)
class Options:
    """How a benchmark is to run: ``quick`` for a look, ``peers`` the Pythons in which peers live."""

    quick: bool = False
    peers: tuple[str, ...] = ()

    def repeats(self, usual: int) -> int:
        """Turns of each contender: fewer for a look, and never none."""
        return max(1, usual // 3) if self.quick else usual


def device() -> Device:
    """What MLX computes on."""
    return "gpu" if mx.default_device().type == mx.DeviceType.gpu else "cpu"


def fresh() -> None:
    """Nothing is still computing, and no memory is at hand that others left."""
    gc.collect()
    mx.synchronize()
    mx.clear_cache()


def facts() -> dict[str, Any]:
    """The machine, the versions and the day."""
    found = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": str(mx.device_info().get("device_name", "GPU")) if device() == "gpu" else "",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("mlx", "mlx-lm", "textual", "numpy")},
        "blas": blas.state().says if device() == "cpu" else "",
        "load": round(os.getloadavg()[0], 1),
        "day": time.strftime("%Y-%m-%d"),
    }
    return found


def in_words(found: Mapping[str, Any]) -> str:
    """The same in a line."""
    versions = [f"{name} {number}" for name, number in found["versions"].items() if number]
    parts = [found["gpu"], f"{found['cores']} cores of {found['processor']}", found["system"]]
    parts += [f"Python {found['python']}", *versions, found["blas"]]
    return f"{found['day']}: {', '.join(part for part in parts if part)}; load {found['load']} at the start."


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
