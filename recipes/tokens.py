"""Token files: what the model trains on and what it is judged by, as flat arrays with document borders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from recipes.corpus import Domain
from recipes.tokenizer import END_OF_TEXT

SPLITS = ("train", "held_out")


@dataclass(frozen=True, slots=True)
class TokenSet:
    """The documents of one domain and split.

    Attributes:
        ids: all token ids in a row, uint16; each document begins with the end-of-text marker.
        starts: where each document begins, with the total length as last entry: (documents + 1,).
        characters: the length of each document's text in Unicode characters: (documents,).
    """

    ids: NDArray[np.uint16]
    starts: NDArray[np.int64]
    characters: NDArray[np.int64]

    def document(self, index: int) -> NDArray[np.uint16]:
        """The ids of one document, marker first."""
        return self.ids[self.starts[index] : self.starts[index + 1]]

    def select(self, indices: Iterable[int]) -> TokenSet:
        """The same kind of set with some documents only."""
        chosen = list(indices)
        parts = [self.document(index) for index in chosen]
        ids = np.concatenate(parts) if parts else self.ids[:0]
        return TokenSet(ids, _starts([len(part) for part in parts]), self.characters[chosen])

    def __len__(self) -> int:
        return len(self.characters)


def encode(tokenizer: Tokenizer, documents: Sequence[str]) -> TokenSet:
    """Encode documents, each with the end-of-text marker in front."""
    if tokenizer.get_vocab_size() > np.iinfo(np.uint16).max + 1:
        raise ValueError(f"a vocabulary of {tokenizer.get_vocab_size()} does not fit 16 bits")
    rows = [[END_OF_TEXT, *code.ids] for code in tokenizer.encode_batch(list(documents), add_special_tokens=False)]
    ids = np.concatenate([np.array(row, dtype=np.uint16) for row in rows])
    return TokenSet(ids, _starts([len(row) for row in rows]), np.array([len(text) for text in documents], np.int64))


def prepare(domains: Sequence[Domain], tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    """Write ``train.npz``, ``held_out.npz`` and ``manifest.json``; returns the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest: dict[str, Any] = {"vocabulary": tokenizer.get_vocab_size(), "domains": {}}
    sets: dict[str, dict[str, NDArray[Any]]] = {split: {} for split in SPLITS}
    for domain in domains:
        for split, documents in (("train", domain.train), ("held_out", domain.held_out)):
            tokens = encode(tokenizer, documents)
            sets[split] |= {
                f"{domain.name}/ids": tokens.ids,
                f"{domain.name}/starts": tokens.starts,
                f"{domain.name}/characters": tokens.characters,
            }
            manifest["domains"].setdefault(domain.name, {})[split] = {
                "documents": len(tokens),
                "tokens": len(tokens.ids),
                "characters": int(tokens.characters.sum()),
                "sha256": hashlib.sha256(tokens.ids.tobytes()).hexdigest(),
            }
    for split, arrays in sets.items():
        np.savez(folder / f"{split}.npz", allow_pickle=False, **arrays)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def load_tokens(folder: Path, split: str) -> dict[str, TokenSet]:
    """Read one split (``train`` or ``held_out``): domain name -> documents."""
    with np.load(folder / f"{split}.npz", allow_pickle=False) as file:
        names = sorted({key.rsplit("/", 1)[0] for key in file.files})
        return {
            name: TokenSet(file[f"{name}/ids"], file[f"{name}/starts"], file[f"{name}/characters"]) for name in names
        }


def check_vocabulary(sets: Mapping[str, TokenSet], vocabulary: int) -> None:
    """Refuse ids that the embedding does not have: MLX does not check a gather, and the loss would become NaN."""
    for name, tokens in sets.items():
        if len(tokens.ids) and int(tokens.ids.max()) >= vocabulary:
            raise ValueError(f"{name}: token id {int(tokens.ids.max())} is outside the vocabulary of {vocabulary}")


def _starts(lengths: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.array(lengths, dtype=np.int64), dtype=np.int64)])
