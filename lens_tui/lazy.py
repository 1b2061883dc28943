"""Public names that are imported the first time they are used."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy(package: str, homes: Mapping[str, str]) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """``__all__``, ``__getattr__`` and ``__dir__`` of a package whose names come from its modules on first use.

    Type checkers cannot follow this: the package also imports the same names under ``TYPE_CHECKING``
    (``from .model import LensModel as LensModel``), and a test compares the two.

    Args:
        package: the package's ``__name__``.
        homes: for each module (absolute, or relative to the package, such as ``.model``) its names, separated by
            blanks.

    Returns:
        the sorted public names, and the two functions, to be assigned at the top level of the package.
    """
    home = {name: module for module, names in homes.items() for name in names.split()}

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(home[name], package), name)

    return sorted(home), get, lambda: sorted({*vars(sys.modules[package]), *home})
