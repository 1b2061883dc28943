"""The one door for files that anyone may have written: settings, vectors, labels, models, indexes.

Every function here reads regular files only (a pipe would hang, a device never ends), looks at the size before it
reads, and lets nothing out but :class:`LensError`: one sentence that names the file. What unfolds (archives, ``.gz``,
JSON, TOML) is bounded by what it would take in memory, not by its size on the disk. NumPy is not imported;
arrays in files are in ``file_arrays``.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import stat
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from .errors import LensError
from .sanitise import one_line

AGAIN = "Fetch it again, or check that it is the right file."
CORRECT = "Correct it, or check that it is the right file."
"""For what people write themselves; :data:`AGAIN` is for what programs do."""
MAX_TEXT = 4 << 20
"""Bytes of a text or a configuration, unless a caller says otherwise."""
MAX_TOML = 256 << 10
_TOML_DEPTH = 16
MAX_LINE = 4 << 20
MAX_DEPTH = 64
"""Lists and objects within each other, in JSON and TOML."""
MAX_PARSED = 256 << 20
"""Bytes that the objects of a parsed file may take in memory, as far as its punctuation tells."""
MAX_DIRECTORY = 2 << 20
"""Bytes of an archive's directory."""
_PIECE = 1 << 20
_BLANKS = 100_000
_FOLDED = 25
"""How many times its size a compressed text may unfold, beyond the first 8 MB; exports reach about 10."""


class FileAbsent(LensError):
    """There is no such file: for callers to whom that is no fault."""


def short_path(path: Path | str) -> str:
    """A path, or its last three parts behind ``…/`` where it has more, safe to show."""
    whole = Path(path)
    parts = whole.parts[1:] if whole.anchor else whole.parts
    return one_line(str(path) if len(parts) <= 3 else "/".join(("…", *parts[-3:])), 120)


@contextmanager
def explained(path: Path | str, hint: str = AGAIN) -> Iterator[None]:
    """Whatever is raised within is a :class:`LensError` that names the file.

    For reading files from anywhere, where every kind of nonsense raises an
    exception of its own; a ``LensError`` goes through as it is.
    """
    try:
        yield
    except LensError:
        raise
    except FileNotFoundError as error:
        raise FileAbsent(f"There is no file {short_path(path)}.", "Check the path.") from error
    except OSError as error:
        reason = one_line(error.strerror or str(error), 100)
        raise LensError(f"{short_path(path)} cannot be read: {reason}.", "Check the path and permissions.") from error
    except MemoryError as error:
        raise LensError(f"{short_path(path)} needs more memory than there is.", hint) from error
    except Exception as error:
        reason = one_line(f"{type(error).__name__}: {error}".rstrip(": ."), 100)
        raise LensError(
            f"{short_path(path)} cannot be read: it is damaged or of another kind ({reason}).", hint
        ) from error


def regular_size(path: Path | str, limit: int | None = None) -> int:
    """The bytes of a regular file. Raises :class:`LensError` for a folder, pipe or device, and for more than ``limit``.

    For readers that open a path themselves.
    """
    with explained(path):
        return _checked(path, os.stat(path), limit)


def changed_at(path: Path) -> float:
    """When a file or folder was changed last, in seconds since 1970; 0 of a broken link, or one removed since."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def open_regular(path: Path | str, limit: int | None = None) -> BinaryIO:
    """A regular file open for reading bytes. Errors as in :func:`regular_size`."""
    with explained(path):
        _checked(path, os.stat(path), limit)  # before it is opened: opening a device may already do something
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            _checked(path, os.fstat(handle), limit)
            return open(handle, "rb")
        except BaseException:
            os.close(handle)
            raise


def read_bytes(path: Path | str, limit: int) -> bytes:
    """A whole file of at most ``limit`` bytes."""
    with explained(path), open_regular(path, limit) as file:
        data = file.read(limit + 1)
        if len(data) > limit:  # it grew, or its size is not what it says
            raise _too_large(path, len(data), limit)
        return data


def read_text(path: Path | str, limit: int = MAX_TEXT, *, encoding: str = "utf-8") -> str:
    """A whole text file of at most ``limit`` bytes. Raises :class:`LensError` where it is not UTF-8."""
    return decoded(read_bytes(path, limit), short_path(path), encoding)


def decoded(data: bytes, where: str, encoding: str = "utf-8") -> str:
    """Bytes as text, or a :class:`LensError` that says at which byte of ``where`` they are none."""
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise LensError(f"{where} is not UTF-8 (byte {error.start}).", "Save it as UTF-8.") from error


def read_json(path: Path | str, limit: int = MAX_TEXT) -> Any:
    """The JSON value of a file of at most ``limit`` bytes. What :func:`parse_json` refuses is refused."""
    where = short_path(path)
    with explained(path), open_regular(path, limit) as file:
        pieces, cost = [], 0
        while piece := file.read(_PIECE):  # what is too much is refused before it is in memory
            cost += _cost(piece)
            _check_cost(cost, where)
            pieces.append(piece)
            if len(pieces) * _PIECE > limit + 2 * _PIECE:
                raise _too_large(path, limit + 1, limit)
    return parse_json(b"".join(pieces), where, AGAIN)


def check_json_object(path: Path | str, limit: int = MAX_TEXT, keys: tuple[str, ...] = ()) -> None:
    """Raise :class:`LensError` if a file that another library will parse is no JSON object or would take all memory.

    ``keys`` have to stand somewhere in it: what is of another kind is refused before anyone parses it.
    """
    cost, begun, before = 0, b"", b""
    missing = {f'"{key}"'.encode() for key in keys}
    with explained(path), open_regular(path, limit) as file:
        while piece := file.read(_PIECE):
            begun = begun or piece.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
            cost += _cost(piece)
            _check_cost(cost, short_path(path))
            missing = {key for key in missing if key not in before + piece}
            before = piece[-64:]  # a key may begin in one piece and end in the next
    if begun != b"{":
        raise LensError(f"{short_path(path)} is not a JSON object.", AGAIN)
    if missing:
        raise LensError(f"{short_path(path)} has no {min(missing).decode()}, which every such file has.", AGAIN)


def parse_json(data: bytes | str, where: str, hint: str = CORRECT) -> Any:
    """A JSON value; ``where`` names it in errors, and ``hint`` says what to do.

    Raises :class:`LensError` for what is not JSON, numbers of thousands of digits, lists within lists without
    end, and so many values that they would take more than 256 MB.
    """
    if len(data) > _PIECE:
        _check_cost(_cost(data), where)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError, MemoryError) as error:
        reason = "nested without end" if isinstance(error, RecursionError) else one_line(str(error), 80).rstrip(".")
        raise LensError(f"{where} is not valid JSON ({reason}).", hint) from error
    level = [value]
    for _ in range(MAX_DEPTH):
        parts = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list))
        level = [item for part in parts for item in part if isinstance(item, dict | list)]
        if not level:
            return value
    raise LensError(f"{where} is not usable JSON: it has lists or objects more than {MAX_DEPTH} deep.", hint)


def read_toml(path: Path | str) -> dict[str, Any]:
    """The tables of a TOML file of at most 256 kB. What :func:`parse_toml` refuses is refused."""
    return parse_toml(read_text(path, MAX_TOML), short_path(path))


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """TOML; ``where`` names it in errors. Raises :class:`LensError` for what is none, or nested too deep."""
    if len(text) > MAX_TOML:
        raise LensError(f"{where} is larger than any such file.", AGAIN)
    bare = _TOML_STRING.sub("_", text)  # so that what is in strings and comments counts for nothing
    if max(part.count(".") for part in _TOML_BETWEEN.split(bare)) > _TOML_DEPTH or _depth(bare) > _TOML_DEPTH:
        raise LensError(f"{where} has keys or lists more than {_TOML_DEPTH} deep.", "Correct it.")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        raise LensError(
            f"{where} is not TOML: {one_line(str(error), 160).rstrip('.')}.", "Correct that line."
        ) from error


def read_lines(path: Path | str) -> Iterator[tuple[int, bytes]]:
    """The lines of a ``.jsonl`` or other text that are not blank, with their numbers from 1; unfolded if it is ``.gz``.

    Raises :class:`LensError` for a line of more than 4 MB, endless blank lines, a
    file that unpacks to more than text can, and one that is damaged or cut short.
    """
    number = total = blank = 0
    with explained(path), open_regular(path) as file:
        zipped = Path(path).suffix == ".gz"
        allowed = (8 << 20) + _FOLDED * os.fstat(file.fileno()).st_size
        stream = cast("IO[bytes]", gzip.GzipFile(fileobj=file)) if zipped else file
        while True:
            try:
                line = stream.readline(MAX_LINE + 1)
            except Exception as error:
                message = f"{short_path(path)} is cut short or damaged after line {number}."
                raise LensError(message, "Download it again.") from error
            if not line:
                return
            number, total = number + 1, total + len(line)
            if len(line) > MAX_LINE:
                raise LensError(f"Line {number} of {short_path(path)} is longer than {MAX_LINE >> 20} MB.", "Split it.")
            if zipped and total > allowed:
                raise LensError(f"{short_path(path)} unpacks to far more than it should.", AGAIN)
            if line.strip():
                yield number, line
            elif (blank := blank + 1) > _BLANKS:
                raise LensError(f"{short_path(path)} has more than {_BLANKS} blank lines.", AGAIN)


@contextmanager
def open_zip(path: Path | str, limit: int | None = None) -> Iterator[zipfile.ZipFile]:
    """An archive, whose directory is small. What is raised within is explained as by :func:`explained`."""
    with explained(path), _Careful(open_regular(path, limit)) as file, zipfile.ZipFile(file) as archive:
        yield archive


def read_member(path: Path | str, archive: zipfile.ZipFile, member: zipfile.ZipInfo, limit: int) -> bytes:
    """A member of an archive that unpacks to at most ``limit`` bytes, whatever its directory says of it."""
    name = one_line(member.filename, 60)
    # Of these two, unlike the others, zipfile unfolds no more than is asked for.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
        raise LensError(f"{name} in {short_path(path)} is packed in an unusual way.", AGAIN)
    data = bytearray()
    with explained(path), archive.open(member) as file:
        while member.file_size <= limit and len(data) <= limit and (piece := file.read(_PIECE)):
            data += piece
    if member.file_size > limit or len(data) > limit:
        most = f"{limit / 1e6:.1f} MB" if limit >= 100_000 else f"{limit} bytes"
        raise LensError(f"{name} in {short_path(path)} unpacks to more than {most}.", AGAIN)
    return bytes(data)


class _Careful(io.BufferedReader):
    """Refuses to read at once what no directory of an archive takes: ``zipfile`` believes what a file says of it."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(cast("io.BufferedReader", file).detach())

    def read(self, size: int | None = -1, /) -> bytes:
        """As a file's, of at most :data:`MAX_DIRECTORY` bytes."""
        if size is None or size < 0:
            size = os.fstat(self.fileno()).st_size - self.tell()
        if size > MAX_DIRECTORY:
            raise ValueError("its directory is too large")
        return super().read(size)


_TOML_STRING = re.compile(
    r'''"""(?:[^\\]|\\.)*?(?:"""|\Z)|"(?:[^"\\\n]|\\.)*"?|#[^\n]*|''' r"""'''.*?(?:'''|\Z)|'[^'\n]*'?""", re.DOTALL
)
"""A string or a comment. One that is not closed runs to the end, so that no character is looked at twice."""
_TOML_BETWEEN = re.compile(r"[=,\[\]{}\n]")


def _holds(data: bytes, least: int) -> bool:
    return len(data.translate(None, bytes(range(least, 256)))) != len(data)


def _depth(text: str) -> int:
    depth = most = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth += 1 if bracket in "[{" else -1
        most = max(most, depth)
    return most


def _cost(data: bytes | str) -> int:
    """About how many bytes the text of a piece of JSON and its values take as objects of Python."""
    if isinstance(data, str):
        return 64 * data.count("[") + 200 * data.count("{") + 48 * data.count(",")
    wide = 1 if data.isascii() else 4 if _holds(data, 0xF0) else 2 if _holds(data, 0xC4) else 1  # bytes a character
    return 64 * data.count(b"[") + 200 * data.count(b"{") + 48 * data.count(b",") + (wide - 1) * len(data)


def _check_cost(cost: int, where: str) -> None:
    if cost > MAX_PARSED:
        raise LensError(f"{where} holds too many values to be read at once.", "Split it into smaller files.")


def _checked(path: Path | str, facts: os.stat_result, limit: int | None) -> int:
    if not stat.S_ISREG(facts.st_mode):
        kind = "a folder" if stat.S_ISDIR(facts.st_mode) else "not a regular file but a pipe or a device"
        raise LensError(f"{short_path(path)} is {kind}.", "Give a file.")
    if limit is not None and facts.st_size > limit:
        raise _too_large(path, facts.st_size, limit)
    return facts.st_size


def _too_large(path: Path | str, size: int, limit: int) -> LensError:
    return LensError(f"{short_path(path)} has {size / 1e6:.1f} MB; at most {limit / 1e6:.1f} MB are read.", AGAIN)
