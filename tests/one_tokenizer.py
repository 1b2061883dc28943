"""A tokenizer read once for all models of a module's tests whose files say the same: half of loading a small one."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_KNOWN: dict[tuple[Any, ...], Any] = {}


@pytest.fixture(scope="module", autouse=True)
def one_tokenizer() -> Iterator[None]:
    """mlx-lm's ``load_tokenizer`` with a memory; each model has its own wrapper, as its ends of text may differ."""
    from mlx_lm import utils

    read: Any = utils.load_tokenizer

    def once(folder: Path, options: dict[str, Any], eos_token_ids: Any = None) -> Any:
        files = sorted(file for ending in ("*.json", "*.jinja", "*.model", "*.txt") for file in folder.glob(ending))
        says = [(file.name, hashlib.sha256(file.read_bytes()).digest()) for file in files]
        key = (*says, repr(options), repr(eos_token_ids))
        if key not in _KNOWN:
            _KNOWN[key] = read(folder, options, eos_token_ids=eos_token_ids)
        wrapper = copy.copy(_KNOWN[key])
        wrapper._eos_token_ids = set(wrapper._eos_token_ids)
        return wrapper

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "load_tokenizer", once)
        yield
