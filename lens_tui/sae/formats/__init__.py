"""One file per SAE file format; the table of readers is here. A new format is one new file and one line."""

from __future__ import annotations

from . import (
    circuit_tracer,
    dictionary_learning,
    gemma_scope_1,
    gemma_scope_2,
    llama_scope,
    mlxterp,
    qwen_scope,
    saelens,
    sparsify,
)
from .parts import Format

FORMATS: tuple[Format, ...] = (
    gemma_scope_2.FORMAT,
    gemma_scope_1.FORMAT,
    sparsify.FORMAT,
    saelens.FORMAT,
    circuit_tracer.FORMAT,
    llama_scope.FORMAT,
    qwen_scope.FORMAT,
    dictionary_learning.FORMAT,
    mlxterp.FORMAT,
)
"""In the order in which they are tried."""
