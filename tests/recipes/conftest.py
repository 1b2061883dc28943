"""A corpus of three small domains, its tokenizer and token files, and settings of a model that trains in seconds."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import pytest

from recipes.corpus import SEPARATOR, read_corpus
from recipes.model import Shape
from recipes.tokenizer import save_tokenizer, train_tokenizer
from recipes.tokens import prepare
from recipes.train import Settings

WORDS = {
    "farm": ["cow", "barn", "hay", "milk", "gate", "field", "mud", "spade"],
    "ship": ["mast", "sail", "rope", "wave", "salt", "deck", "gull", "oar"],
    "code": ["def", "return", "self", "import", "yield", "class", "None", "pass"],
}


@pytest.fixture(autouse=True, scope="module")
def _uncompiled() -> Iterator[None]:
    """Compiling one step for a CPU takes half a minute; the arithmetic is the same without.

    For a module and what is made for it, which is what takes longest.
    """
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Folders ``corpus``, ``tokenizer`` and ``tokens``, and small ``settings``."""
    root: Path = tmp_path_factory.mktemp("recipe")
    source = random.Random(1)
    (root / "corpus").mkdir()
    for name, words in WORDS.items():
        texts = [" ".join(source.choices(words, k=source.randint(20, 60))) + f" end {i}." for i in range(90)]
        (root / "corpus" / f"{name}.txt").write_text(f"\n{SEPARATOR}\n".join(texts) + f"\n{SEPARATOR}\n")
    domains = read_corpus(root / "corpus")
    tokenizer = train_tokenizer(domains, vocabulary=300)
    save_tokenizer(tokenizer, root / "tokenizer", context=32)
    prepare(domains, tokenizer, root / "tokens")
    shape = Shape(d_model=32, layers=2, d_ff=64, heads=2, head_dim=16, vocabulary=300, context=32)
    settings = Settings(shape=shape, epochs=2, batch=4, dropout=0.1, compute="float32")
    return SimpleNamespace(root=root, domains=domains, tokenizer=tokenizer, settings=settings)
