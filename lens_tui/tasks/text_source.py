"""Which text is meant where one is to be read as a whole: a file, a folder, or the bundled one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from lens_tui import demo
from lens_tui.records import LensError, paths
from lens_tui.records.disk import write_text
from lens_tui.records.paths import expanded
from lens_tui.records.remote import is_remote, plain_path

BUNDLED = "bundled"
"""What stands for the text of the bundled index: 236 k tokens that are free to ship (demo/MODEL_CARD.md)."""


def text_source(named: str | Path) -> Path | str:
    """The file or folder of a text, or its address if fsspec is to open it.

    ``bundled``, where nothing of that name is there, is that of the bundled index.
    That one is written to the cache folder as JSONL, a document a line, when it is first asked for.

    Args:
        named: a path, an address such as ``s3://bucket/texts``, or ``"bundled"``.

    Raises:
        LensError: for an empty name, an installation without the bundled index, and a cache that cannot be written.
    """
    if not str(named).strip():
        raise LensError("No text is named.", f"Give a file, a folder, or {BUNDLED}.")
    if is_remote(named):
        return str(named)
    path = expanded(plain_path(named))
    return path if str(named) != BUNDLED or path.exists() else _bundled()


def _bundled() -> Path:
    found = sorted((demo.model_path().parent / "index").glob("text-*"))
    if not found:
        raise LensError("This installation has no bundled text.", "Give a file or a folder.")
    place = paths.folder("cache") / f"{found[0].name}.jsonl"
    if not place.exists():
        write_text(place, "".join(json.dumps({"text": text}) + "\n" for text in _documents(found[0])))
    return place


def _documents(folder: Path) -> list[str]:
    from tokenizers import Tokenizer

    names = ("tokens", "special", "sequence_starts", "sequence_documents")
    tokens, special, starts, documents = (np.load(folder / f"{name}.npy") for name in names)
    tokenizer: Any = Tokenizer.from_file(str(demo.model_path() / "tokenizer.json"))
    ends = [*starts[1:].tolist(), len(tokens)]
    ids: dict[int, list[int]] = {}
    for start, end, document in zip(starts.tolist(), ends, documents.tolist(), strict=True):
        kept = tokens[start:end][~special[start:end]]
        ids.setdefault(document, []).extend(kept.tolist())
    texts: list[str] = tokenizer.decode_batch(list(ids.values()), skip_special_tokens=False)
    return texts
