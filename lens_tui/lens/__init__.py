"""The interpretability library: read and push on the residual stream of MLX models.

Its public names are in :mod:`lens_tui`.
"""

from __future__ import annotations

import resource
from importlib import import_module

from . import light_imports


def _with_few_files() -> None:
    """Import mlx-lm where fewer than 4096 files may be open: it asks for that many on import, and fails if refused."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most == resource.RLIM_INFINITY or most >= 4096:
        return
    ask = resource.setrlimit

    def ask_for_what_there_is(kind: int, limits: tuple[int, int]) -> None:
        ask(kind, (min(limits[0], most), min(limits[1], most)))

    resource.setrlimit = ask_for_what_there_is
    try:
        import_module("mlx_lm.utils")
    finally:
        resource.setrlimit = ask


light_imports.watch()
_with_few_files()
