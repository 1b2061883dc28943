"""Fetch files of a repository from the Hugging Face hub; run as a process of its own by :mod:`.hub_fetch`.

``python -m lens_tui.records.hub_process WISH``, where ``WISH`` is a JSON object (:class:`Wish`), prints JSON lines:
``{"done": bytes, "total": bytes}`` while it works, then ``{"path": folder, "first": name}``,
``{"absent": [names]}`` or ``{"message": ..., "hint": ...}``. It ends when its standard input closes, so it never
outlives the app. A process can be stopped at once, in mid-transfer, which the hub's own threads cannot.
"""

from __future__ import annotations

import fcntl
import fnmatch
import glob
import hashlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lens_tui.records import LensError
from lens_tui.records.hub import explain_hub

from .paths import expanded

_EVERY = 0.1  # seconds between two lines of progress
_PATIENCE = 20.0  # seconds for the hub's first answer
_LARGE = 8 << 20  # bytes from which a file that broke off is worth going on with
_LARGEST = 50_000_000_000  # what the hub gives over plain HTTP; the client has another way for more
_AT_ONCE = 4
_CHUNK = 1 << 20  # the client's own 10 MiB are lost whenever a transfer is stopped, and progress goes in jumps
PART = ".lens-tui.incomplete"
"""The end of the name of a file that broke off; the client's own listing knows it as one by the last part."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What to fetch.

    Args:
        repo_id: the repository, ``org/name``.
        patterns: shell patterns of names; what matches any is fetched.
        first_of: names of which the first that the repository has is fetched too. If it has none, nothing is.
        revision: the branch, tag or commit; ``None`` is ``main``.
        cache_dir: the hub's cache; ``None`` is the usual one.
    """

    repo_id: str
    patterns: tuple[str, ...]
    first_of: tuple[str, ...] = ()
    revision: str | None = None
    cache_dir: str | None = None


@dataclass(frozen=True, slots=True)
class _File:
    """A file at the hub and its places in the cache: its contents, the part that came so far, the link to them."""

    name: str
    size: int
    sha256: str
    blob: Path
    link: Path

    @property
    def part(self) -> Path:
        return self.blob.with_name(self.blob.name + PART)

    @property
    def here(self) -> int:
        """Bytes of it that are on this disk."""
        if self.link.exists() or self.blob.exists():
            return self.size
        try:
            return min(self.size, self.part.stat().st_size)
        except OSError:
            return 0


class _FilesMissing(Exception):
    """The repository has none of the files that one was wanted of; ``args`` are the names of those it has."""


def bring(wish: Wish) -> tuple[Path, str]:
    """Have the files in the hub's cache, printing progress; the folder, and the name of the first of ``first_of``."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    # This one request fails at once where listing the tree would try again for half a minute.
    info = HfApi().model_info(wish.repo_id, revision=wish.revision, files_metadata=True, timeout=_PATIENCE)
    cache = expanded(wish.cache_dir or HF_HUB_CACHE)
    home = cache / repo_folder_name(repo_id=wish.repo_id, repo_type="model")
    files = {file.name: file for file in _files(info, home)}
    first = next((name for name in wish.first_of if name in files), "")
    _note_absent(home / ".no_exist" / str(info.sha), wish, files)
    if wish.first_of and not first:
        raise _FilesMissing(*files)
    wanted = [file for name, file in files.items() if name == first or _matches(name, wish.patterns)]
    if not first and not any(file.name.endswith((".safetensors", ".npz", ".pt", ".gguf")) for file in wanted):
        raise LensError(
            f"{wish.repo_id} has no weights that mlx-lm could load.", "Look for a safetensors version of it."
        )
    _check_space(sum(file.size - file.here for file in wanted), cache)
    threading.Thread(target=_report, args=(wanted,), daemon=True).start()

    def have(chosen: Iterable[_File]) -> Path:
        names = [glob.escape(file.name) for file in chosen]
        # The revision by its name: the cache then knows which commit it is.
        found = snapshot_download(wish.repo_id, revision=wish.revision, cache_dir=cache, allow_patterns=names)
        return Path(found)

    # The large files last: a snapshot whose weights are there is whole.
    large = [file for file in wanted if _LARGE <= file.size <= _LARGEST and file.here < file.size]
    if large:
        have(file for file in wanted if file not in large)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda file: _go_on(wish.repo_id, str(info.sha), file), large))
    folder = have(wanted)
    total = sum(file.size for file in wanted)
    say(done=total, total=total)
    return folder, first


def _files(info: Any, home: Path) -> Iterable[_File]:
    for file in info.siblings or ():
        name, lfs = str(file.rfilename), file.lfs
        sha256 = str(lfs.sha256) if lfs else ""
        etag = sha256 or str(file.blob_id or "")
        size = int((lfs.size if lfs else file.size) or 0)
        yield _File(name, size, sha256, home / "blobs" / etag, home / "snapshots" / str(info.sha) / name)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _note_absent(folder: Path, wish: Wish, files: Mapping[str, _File]) -> None:
    """Leave the client's own mark for files that were asked for by name and that the repository lacks.

    It is then known without a network that what is in the cache is all there is.
    """
    named = [pattern.replace("[[]", "[") for pattern in wish.patterns if not glob.has_magic(pattern.replace("[[]", ""))]
    for name in (*named, *wish.first_of):
        if name not in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()


def _go_on(repo_id: str, commit: str, file: _File) -> None:
    """Fetch one file from where it broke off, into its place in the cache.

    The client begins every file anew. What was put together from two transfers is held against its SHA-256.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils._headers import build_hf_headers

    file.part.parent.mkdir(parents=True, exist_ok=True)
    with file.part.open("ab") as out:
        fcntl.flock(out, fcntl.LOCK_EX)  # another window may be at the same file
        if file.blob.exists():
            return
        begun = out.seek(0, os.SEEK_END)
        if begun > file.size:
            begun = out.truncate(0)
        url = hf_hub_url(repo_id, file.name, revision=commit)
        http_get(url, out, resume_size=begun, headers=build_hf_headers(), expected_size=file.size)
        out.flush()
        if begun and file.sha256 and _sha256(file.part) != file.sha256:
            file.part.unlink()
            raise LensError(f"{file.name} of {repo_id} arrived damaged.", "Fetch it again: the download starts over.")
        file.part.replace(file.blob)


def _sha256(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def say(**values: object) -> None:
    """Print one line for the reader."""
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def _report(files: list[_File]) -> None:
    total, said = sum(file.size for file in files), -1
    while True:
        done = sum(file.here for file in files)
        if said != done:
            said = done
            say(done=done, total=total)
        time.sleep(_EVERY)


def _check_space(needed: int, cache: Path) -> None:
    folder = next((place for place in (cache, *cache.parents) if place.exists()), Path("/"))
    free = shutil.disk_usage(folder).free
    if needed > free:
        lacking = f"It takes {needed / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free."
        raise LensError("There is not enough free space for the download.", lacking)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def main() -> None:
    """The process: see the module's docstring."""
    from huggingface_hub import constants

    constants.DOWNLOAD_CHUNK_SIZE = _CHUNK
    threading.Thread(target=_end_with_parent, daemon=True).start()
    wish = Wish(**json.loads(sys.argv[1]))
    try:
        folder, first = bring(wish)
    except _FilesMissing as absent:
        say(absent=absent.args)
    except LensError as error:
        say(message=error.message, hint=error.hint)
    except Exception as error:
        said = explain_hub(error, wish.repo_id)
        say(message=said.message, hint=said.hint)
    else:
        say(path=str(folder), first=first)
    os._exit(0)  # the hub's transfer threads need not be waited for


if __name__ == "__main__":
    main()
