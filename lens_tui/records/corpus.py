"""Texts to learn from or to index: a folder, a text file or a JSONL file, found once and read on demand.

A ``.txt`` file holds documents separated by a line that reads exactly
``<|endoftext|>``; without one the whole file is a document. A ``.jsonl`` file
holds one JSON object a line, its text under a named key. Only the places of the
documents are kept in memory (16 bytes each), never the text.
"""

from __future__ import annotations

import hashlib
import mmap
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import LensError
from .paths import expanded
from .read_files import explained, open_regular, parse_json, read_lines, read_text
from .remote import local_text
from .sanitise import one_line

SEPARATOR = "<|endoftext|>"
MAX_DOCUMENT_BYTES = 1 << 20
"""Longer documents are cut at a line end: no reader has to hold a whole library in memory."""

_SEPARATOR_LINE = re.compile(rb"(?:^|(?<=\n))" + re.escape(SEPARATOR.encode()) + rb"[ \t]*\r?(?:\n|\Z)")
_SUFFIXES = (".txt", ".jsonl")


@dataclass(frozen=True, slots=True)
class Document:
    """A text and where it came from: its number in the corpus, its file and its number in that file."""

    index: int
    text: str
    file: str
    index_in_file: int


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order (files by name, then in the order of the file).

    ``files`` are the paths, ``names`` the same relative to what was opened,
    ``spans`` has shape ``(n, 4)``: file number, number in the file, first byte,
    end byte. ``sha256`` is over names and contents of all files, so that it says
    which corpus it was, whatever part of it a split holds.
    """

    files: tuple[Path, ...]
    names: tuple[str, ...]
    spans: NDArray[np.int64]
    sha256: str
    text_key: str = "text"

    def __len__(self) -> int:
        return len(self.spans)

    @property
    def nbytes(self) -> int:
        """Bytes of text in the documents of this corpus (for JSONL: of the lines that hold them)."""
        return int((self.spans[:, 3] - self.spans[:, 2]).sum())

    def __getitem__(self, index: int) -> Document:
        return next(self.read([range(len(self))[index]]))

    def __iter__(self) -> Iterator[Document]:
        return self.read(range(len(self)))

    def read(self, indices: Sequence[int]) -> Iterator[Document]:
        """The documents at ``indices``, in that order. Raises ``LensError`` for text that is not UTF-8 or not JSON."""
        handles: dict[int, mmap.mmap] = {}
        try:
            for index in indices:
                file, number, start, end = (int(value) for value in self.spans[index])
                if file not in handles:
                    handles[file] = _open(self.files[file])
                jsonl = self.files[file].suffix == ".jsonl"
                text = _decode(handles[file], start, end, self.names[file], number, jsonl, self.text_key)
                yield Document(int(index), text, self.names[file], number)
        finally:
            for handle in handles.values():
                handle.close()

    def split(self, every: int = 40, remainder: int = 7) -> tuple[Corpus, Corpus]:
        """``(kept, held_out)``: held out are documents whose number in their file is ``remainder`` modulo ``every``."""
        if every < 2 or not 0 <= remainder < every:
            raise LensError(
                f"A split of every {every} with remainder {remainder} holds nothing out.", "Use every >= 2."
            )
        held = self.spans[:, 1] % every == remainder
        return replace(self, spans=self.spans[~held]), replace(self, spans=self.spans[held])


def open_corpus(path: str | Path, *, text_key: str = "text") -> Corpus:
    """Find the documents of a folder (all ``.txt`` and ``.jsonl`` below it), a text file or a JSONL file.

    What lies at an address of fsspec (``s3://...``, given as ``str``) is copied to the cache folder and read there.
    Reads every byte once to find separators and to hash. Raises ``LensError``
    when there is nothing to read.
    """
    root = expanded(local_text(path))
    files, names = _files(root)
    digest = hashlib.sha256()
    parts = []
    for number, (file, name) in enumerate(zip(files, names, strict=True)):
        digest.update(name.encode() + b"\0")
        if file.stat().st_size == 0:
            continue
        view = _open(file)
        try:
            _hash(file, view, digest)
            spans = list(_lines(view) if file.suffix == ".jsonl" else _documents(view))
        finally:
            view.close()
        rows = np.asarray([(number, i, start, end) for i, (start, end) in enumerate(spans)], np.int64)
        parts.append(rows.reshape(-1, 4))
    table = np.concatenate(parts) if parts else np.zeros((0, 4), np.int64)
    if not len(table):
        raise LensError(f"There is no text in {root.name}.", "Give a folder, a .txt or a .jsonl file with text in it.")
    return Corpus(tuple(files), tuple(names), table, digest.hexdigest(), text_key)


def _files(root: Path) -> tuple[list[Path], list[str]]:
    if root.is_file():
        if root.suffix == ".gz" or root.suffix == ".json":
            raise LensError(f"{root.name} is not a text or JSONL file.", "Unpack it to .txt or .jsonl first.")
        return [root], [root.name]
    if not root.is_dir():
        raise LensError(f"There is no file or folder {root}.", "Check the path.")
    found = sorted(
        file
        for file in root.rglob("*")
        if file.suffix in _SUFFIXES
        and file.is_file()
        and not any(p.startswith(".") for p in file.relative_to(root).parts)
    )
    if not found:
        raise LensError(f"The folder {root.name} contains no .txt or .jsonl file.", "Put the texts into such files.")
    return found, [file.relative_to(root).as_posix() for file in found]


def _open(file: Path) -> mmap.mmap:
    with explained(file), open_regular(file) as handle:
        view = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    return view


def _hash(file: Path, view: mmap.mmap, digest: hashlib._Hash) -> None:
    digest.update(len(view).to_bytes(8, "little"))
    for start in range(0, len(view), 1 << 20):
        piece = view[start : start + (1 << 20)]
        if b"\0" in piece:  # a sparse file may be as large as it likes
            raise LensError(f"{one_line(file.name, 80)} is not text.", "Give .txt or .jsonl files in UTF-8.")
        digest.update(piece)


def _documents(view: mmap.mmap) -> Iterator[tuple[int, int]]:
    start = 3 if view[:3] == b"\xef\xbb\xbf" else 0
    for match in _SEPARATOR_LINE.finditer(view, start):
        yield from _pieces(view, start, match.start())
        start = match.end()
    yield from _pieces(view, start, len(view))


def _pieces(view: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int]]:
    while start < end and view[start : start + 1].isspace():
        start += 1
    while end > start and view[end - 1 : end].isspace():
        end -= 1
    while end - start > MAX_DOCUMENT_BYTES:
        cut = view.rfind(b"\n", start, start + MAX_DOCUMENT_BYTES) + 1
        if cut <= start:
            cut = start + MAX_DOCUMENT_BYTES
            # Not inside a character: that is at most three bytes back, in text.
            cut -= next((back for back in range(4) if view[cut - back] & 0xC0 != 0x80), 0)
        yield start, cut
        start = cut
    if end > start:
        yield start, end


def _lines(view: mmap.mmap) -> Iterator[tuple[int, int]]:
    start = 3 if view[:3] == b"\xef\xbb\xbf" else 0
    while start < len(view):
        end = view.find(b"\n", start)
        end = len(view) if end < 0 else end
        if view[start:end].strip():
            yield start, end
        start = end + 1


def _decode(view: mmap.mmap, start: int, end: int, name: str, number: int, jsonl: bool, key: str) -> str:
    try:
        text = view[start:end].decode("utf-8")
    except UnicodeDecodeError as error:
        raise LensError(
            f"Document {number + 1} of {name} is not UTF-8 (byte {error.start}).", "Convert the file."
        ) from error
    if not jsonl:
        return text
    try:
        return _under(key, text, name)
    except LensError:  # which line it is takes a look at all before it, so that it is counted here alone
        line = view[:start].count(b"\n") + 1
        return _under(key, text, f"Line {line} of {name}")


def _under(key: str, line: str, where: str) -> str:
    value = parse_json(line, where)
    if isinstance(value, dict) and isinstance(value.get(key), str):
        return str(value[key])
    has = ", ".join(repr(one_line(str(name), 20)) for name in list(value)[:5]) if isinstance(value, dict) else ""
    hint = f"It has {has}: name the key that holds the text." if has else f'Write {{"{one_line(key, 40)}": "..."}}.'
    raise LensError(f"{where} has no text under {key!r}.", hint)


MAX_BYTES = 64 << 20
MAX_PAIRS = 20_000
_LINE = re.compile(r"[^\r\n]+")  # only these end a line: JSON may hold other separators
_KEYS = "positive and negative, or question, answer_matching_behavior and answer_not_matching_behavior"


def read_pairs(path: Path | str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Positive and negative texts, as many of one as of the other, pair by pair.

    ``.jsonl`` holds an object on each line and ``.json`` a list of them, with the keys ``positive`` and
    ``negative``, or those of Anthropic's model-written evaluations and of CAA: ``question``,
    ``answer_matching_behavior`` and ``answer_not_matching_behavior``, where each text is the question with one answer.
    Any other file has a pair on each line, the two texts separated by a tab. Raises :class:`LensError` with the
    number of the pair that is wrong.
    """
    file = expanded(path)
    name = one_line(file.name, 80)
    text = read_text(file, MAX_BYTES, encoding="utf-8-sig")
    pairs = [_pair(row, f"{name}, pair {number}") for number, row in enumerate(_rows(file, text, name), 1)]
    if not pairs:
        raise LensError(
            f"{name} contains no pairs.", "Write one on each line, the two texts separated by a tab, or JSONL."
        )
    if len(pairs) > MAX_PAIRS:
        raise LensError(f"{name} holds more than {MAX_PAIRS} pairs.", "Sample them.")
    return tuple(one for one, _ in pairs), tuple(other for _, other in pairs)


def _rows(file: Path, text: str, name: str) -> list[Any]:
    suffix = file.suffix.lower()
    if suffix == ".json":
        found = parse_json(text, name)
        return found if isinstance(found, list) else [found]
    # One more than is allowed is enough to say that there are too many.
    lines = list(islice((line[0] for line in _LINE.finditer(text) if line[0].strip()), MAX_PAIRS + 1))
    if suffix == ".jsonl":
        return [parse_json(line, f"{name}, pair {number}") for number, line in enumerate(lines, 1)]
    return [line.split("\t") for line in lines]


def _pair(row: Any, where: str) -> tuple[str, str]:
    if isinstance(row, dict) and {"positive", "negative"} <= row.keys():
        found = [row["positive"], row["negative"]]
    elif (
        isinstance(row, dict) and {"question", "answer_matching_behavior", "answer_not_matching_behavior"} <= row.keys()
    ):
        answers = [row["answer_matching_behavior"], row["answer_not_matching_behavior"]]
        found = [_answered(row["question"], answer) for answer in answers]
    elif isinstance(row, list) and len(row) == 2:
        found = row
    elif isinstance(row, list):
        raise LensError(f"{where} has {len(row)} texts, not two.", "Separate two texts by a tab.")
    else:
        raise LensError(f"{where} does not have two texts.", f"Its keys must be {_KEYS}.")
    if not all(isinstance(text, str) and text.strip() for text in found):
        raise LensError(f"{where} has a text that is empty or missing.", "Give both.")
    return found[0], found[1]


def _answered(question: Any, answer: Any) -> Any:
    if not isinstance(question, str) or not isinstance(answer, str):
        return None
    return question + ("" if question[-1:].isspace() or answer[:1].isspace() else " ") + answer


def read_questions(path: Path | str) -> tuple[tuple[str, str, str], ...]:
    """Questions with the answer that shows a behaviour and the one that does not.

    ``.json`` holds a list and ``.jsonl`` an object on each line, with CAA's keys ``question``,
    ``answer_matching_behavior`` and ``answer_not_matching_behavior``. Raises :class:`LensError` with the number of the
    question that is wrong.
    """
    file = expanded(path)
    name = one_line(file.name, 80)
    rows = _rows(file, read_text(file, MAX_BYTES, encoding="utf-8-sig"), name)
    if not rows:
        raise LensError(f"{name} contains no questions.", f"Write objects with {', '.join(_ASKED)}.")
    return tuple(_question(row, f"{name}, question {number}") for number, row in enumerate(rows[:MAX_PAIRS], 1))


_ASKED = ("question", "answer_matching_behavior", "answer_not_matching_behavior")


def _question(row: Any, where: str) -> tuple[str, str, str]:
    found = [row.get(key) if isinstance(row, dict) else None for key in _ASKED]
    if not all(isinstance(text, str) and text.strip() for text in found):
        raise LensError(f"{where} has not all of {', '.join(_ASKED)}.", "Give each as a text.")
    question, matching, other = found
    return str(question), str(matching), str(other)


@dataclass(frozen=True, slots=True)
class LabelledTexts:
    """Texts, a label for each, and what each belongs to (``None`` where the file names no groups).

    A text may be its token ids, and its label one for each of its tokens.
    """

    texts: tuple[str | tuple[int, ...], ...]
    labels: tuple[float | tuple[float, ...], ...]
    groups: tuple[str, ...] | None = None

    @property
    def by_token(self) -> bool:
        """Whether tokens have labels, and not texts."""
        return any(isinstance(label, tuple) for label in self.labels)


def read_labelled(path: Path | str) -> LabelledTexts:
    """Read JSONL with ``text`` and ``label`` (a number, ``true`` or ``false``), and ``group`` on every line or none.

    In place of ``text`` a line may have ``token_ids``, and in place of ``label`` a list ``labels``, one for each token.

    Raises :class:`LensError` with the number of the line that is wrong.
    """
    file = expanded(path)
    name = one_line(file.name, 80)
    rows = [_labelled(line, f"Line {number} of {name}") for number, line in read_lines(file) if line.strip()]
    if not rows:
        raise LensError(f"{name} has no labelled texts.", 'Write {"text": ..., "label": 1} on each line.')
    groups = [group for *_, group in rows]
    if any(group is None for group in groups) and any(group is not None for group in groups):
        raise LensError(f"Some lines of {name} have a group and others have none.", "Give every line one, or none.")
    named = None if groups[0] is None else tuple(str(group) for group in groups)
    return LabelledTexts(tuple(text for text, *_ in rows), tuple(label for _, label, _ in rows), named)


def _labelled(line: bytes, where: str) -> tuple[str | tuple[int, ...], float | tuple[float, ...], Any]:
    row = parse_json(line, where)
    row = row if isinstance(row, dict) else {}
    text, label = _text_or_ids(row), _label_or_labels(row)
    if not text or label is None:
        raise LensError(f"{where} is not an object with a text and a label.", 'Write {"text": ..., "label": 1}.')
    if isinstance(text, tuple) and isinstance(label, tuple) and len(text) != len(label):
        raise LensError(f"{where} has {len(text)} token_ids and {len(label)} labels.", "Give one for each.")
    group = row.get("group")
    if group is not None and not isinstance(group, (str, int)):
        raise LensError(f"{where} has a group that is neither a text nor a number.")
    return text, label, group


def _text_or_ids(row: dict[str, Any]) -> str | tuple[int, ...]:
    text, ids = row.get("text"), row.get("token_ids")
    if isinstance(text, str):
        return text
    good = isinstance(ids, list) and all(type(token) is int and token >= 0 for token in ids)
    return tuple(ids) if good and ids else ()


def _label_or_labels(row: dict[str, Any]) -> float | tuple[float, ...] | None:
    label, labels = row.get("label"), row.get("labels")
    if isinstance(label, (int, float)):
        return float(label)
    if isinstance(labels, list) and labels and all(isinstance(each, (int, float)) for each in labels):
        return tuple(float(each) for each in labels)
    return None
