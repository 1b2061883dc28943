"""One file per SAE file format; the table of readers is here. A new format is one new file and one line."""

from __future__ import annotations

from . import gemma_scope_2
from .parts import Format

FORMATS: tuple[Format, ...] = (gemma_scope_2.FORMAT,)
"""In the order in which they are tried."""
