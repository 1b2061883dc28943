from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import pytest

from lens_tui import LensModel

from . import tiny


@pytest.fixture
def without_compiling() -> Iterator[None]:
    """MLX's compiler takes seconds a function on a CPU, and the arithmetic is the same without."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture
def lens() -> LensModel:
    """A small llama of random weights that no other test has touched; it has no tokenizer."""
    return LensModel.from_model(tiny.llama())


@pytest.fixture(scope="module")
def speaking() -> LensModel:
    """A smaller one with the bundled model's tokenizer."""
    return LensModel.from_model(tiny.llama(layers=2, vocab=8192), tiny.tokenizer())
