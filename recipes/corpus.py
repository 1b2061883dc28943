"""Reading the training corpus: one text file per domain, documents divided by a marker line.

The split is by document and fixed: in each file, the documents whose index leaves 7
when divided by 40 are held out. They are never trained on, neither by the tokenizer
nor by the model.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SEPARATOR = "<|endoftext|>"
HELD_OUT_EVERY = 40
HELD_OUT_INDEX = 7


@dataclass(frozen=True, slots=True)
class Domain:
    """The documents of one file of the corpus, split into those trained on and those held out."""

    name: str
    train: tuple[str, ...]
    held_out: tuple[str, ...]


def split_documents(name: str, text: str) -> Domain:
    """Cut a domain's text at its marker lines and set every 40th document aside."""
    documents = [part.strip() for part in text.split(SEPARATOR)]
    documents = [document for document in documents if document]
    held = {index for index in range(len(documents)) if index % HELD_OUT_EVERY == HELD_OUT_INDEX}
    return Domain(
        name,
        tuple(document for index, document in enumerate(documents) if index not in held),
        tuple(document for index, document in enumerate(documents) if index in held),
    )


def read_corpus(source: Path) -> list[Domain]:
    """Read every ``NAME.txt`` of a folder or of a tar archive, sorted by name.

    Raises:
        ValueError: the source holds no text file, or a file holds fewer documents than
            one period of the split, so that nothing would be held out.
    """
    domains = [split_documents(name, text) for name, text in sorted(_texts(source))]
    if not domains:
        raise ValueError(f"{source} holds no .txt file; give a folder or a tar archive with one file per domain")
    for domain in domains:
        if not domain.held_out:
            raise ValueError(f"{domain.name}.txt has no document to hold out; it needs more than {HELD_OUT_INDEX}")
    return domains


def _texts(source: Path) -> Iterator[tuple[str, str]]:
    if source.is_dir():
        for path in source.glob("*.txt"):
            yield path.stem, path.read_text(encoding="utf-8")
        return
    with tarfile.open(source) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.name.endswith(".txt") else None
            if content is not None:
                yield Path(member.name).stem, content.read().decode("utf-8")
