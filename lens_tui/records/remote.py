"""Texts and folders at any address that fsspec knows (``s3://``, ``gs://``, ``memory://``); plain paths never need it.

What is read is copied to the cache folder once and again only when it has changed there; what is written is written
here first and then put there, the files that name others last. So readers and writers of files stay what they are.
Which package a protocol needs (``s3fs`` for ``s3://``) and where it finds its credentials is fsspec's affair.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from . import paths
from .disk import write_json
from .errors import AskedToStop, LensError
from .read_files import read_json
from .sanitise import one_line

_ADDRESS = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.\-]*::)*[A-Za-z][A-Za-z0-9+.\-]*://")
_FILE = "file://"
_PASSWORD = re.compile(r"//[^/@]*@")
_TEXTS = (".txt", ".jsonl")


def is_remote(path: str | Path) -> bool:
    """Whether this is an address that fsspec opens: a ``str`` with a protocol that is not ``file://``."""
    return isinstance(path, str) and _ADDRESS.match(path) is not None and not path.startswith(_FILE)


def plain_path(path: str | Path) -> Path:
    """The path of what is not remote; ``file://`` is taken off."""
    return Path(path.removeprefix(_FILE)) if isinstance(path, str) else path


def without_password(address: str | Path) -> str:
    """An address to show: without a password, in one line."""
    return one_line(_PASSWORD.sub("//", str(address)), 160)


def local_text(text: str | Path) -> Path:
    """Where a text can be read: a plain path as it is; a remote file, or the texts of a remote folder, as a copy here.

    The copy has the file's own name, and of a folder the names below it, so that a corpus is the same corpus wherever
    it lies. What is here already and has not changed there is not fetched again.

    Args:
        text: a path, or an address of a ``.txt`` or ``.jsonl`` file or a folder of them.

    Raises:
        LensError: for an address that cannot be read, and a package that is missing.
    """
    if not is_remote(text):
        return plain_path(text)
    address = str(text)
    with _explained(address, "read"):
        system, root = _opened(address)
        found = _texts(system, root)
    if not found:
        raise LensError(f"There is no .txt or .jsonl file at {without_password(address)}.", "Check the address.")
    home = _copy_of(address)
    top = home / "files" / (PurePosixPath(root).name or "texts")
    record = home / "fetched.json"
    before = read_json(record) if record.is_file() else {}
    now: dict[str, str] = {}
    for name, there in found.items():
        here = top / name if name else top
        with _explained(address, "read"):
            now[name] = _mark(system, there)
            if not (now[name] and before.get(name) == now[name] and here.is_file()):
                _fetch(system, there, here)
    kept = {top / name if name else top for name in now}
    for old in [file for file in (home / "files").rglob("*") if file.is_file() and file not in kept]:
        old.unlink()
    write_json(record, now)
    return top


def _texts(system: Any, root: str) -> dict[str, str]:
    """The files to read by their names below ``root``: ``""`` for ``root`` itself."""
    if system.isfile(root):
        return {"": root}
    below = {_below(root, there): there for there in system.find(root)}
    return {name: there for name, there in sorted(below.items()) if name.endswith(_TEXTS)}


def _below(root: str, there: str) -> str:
    """The name of a file relative to the folder it was found in; a server's word, so held against climbing out."""
    name = there.removeprefix(root).lstrip("/")
    if not name or any(part in ("", ".", "..") for part in name.split("/")) or "\\" in name or "\0" in name:
        raise LensError(f"The file {one_line(there, 120)!r} has a name that no file here can have.", "Rename it there.")
    return name


def _mark(system: Any, there: str) -> str:
    """What changes when the file does; empty where the file system does not say."""
    facts = system.info(there)
    telling = {key: facts[key] for key in ("size", "ETag", "etag", "mtime", "created", "LastModified") if key in facts}
    return hashlib.sha256(repr(telling).encode()).hexdigest()[:32] if len(telling) > 1 else ""


def _fetch(system: Any, there: str, here: Path) -> None:
    here.parent.mkdir(parents=True, exist_ok=True)
    partial = here.with_name(f".{here.name}.{os.getpid()}.partial")
    try:
        system.get_file(there, str(partial))
        os.replace(partial, here)
    finally:
        partial.unlink(missing_ok=True)


class OutFolder:
    """A folder that results go to: a plain one, or a remote one with a copy here of what is being written.

    ``local`` is where to write. For a plain folder it is that folder and everything else does nothing; for a remote
    one :meth:`fetch` brings what is there, and :meth:`keep` puts a file or folder there.
    """

    def __init__(self, out: str | Path) -> None:
        self.remote = is_remote(out)
        self.name = without_password(out)
        self._address = str(out).rstrip("/") if self.remote else ""
        self.local = _copy_of(self._address) / "out" if self.remote else plain_path(out)

    def has(self, name: str) -> bool:
        """Whether there is such a file; of a remote folder: there, whatever is here."""
        if not self.remote:
            return (self.local / name).is_file()
        with _explained(self._address, "read"):
            system, root = _opened(self._address)
            return bool(system.isfile(f"{root}/{name}"))

    def folders(self) -> list[str]:
        """The names of the folders in it."""
        if not self.remote:
            return sorted(place.name for place in self.local.iterdir() if place.is_dir()) if self.local.is_dir() else []
        with _explained(self._address, "read"):
            system, root = _opened(self._address)
            found = system.ls(root, detail=True) if system.exists(root) else []
            return sorted(item["name"].rstrip("/").rpartition("/")[2] for item in found if item["type"] == "directory")

    def fetch(self, name: str = "") -> Path:
        """Bring a file, a folder, or all of it, unless something of that name is here: what a kill left is newer.

        Returns where it is here.
        """
        here = self.local / name
        if not self.remote or here.is_file() or (here.is_dir() and any(here.iterdir())):
            return here
        with _explained(self._address, "read"):
            system, root = _opened(self._address)
            place = f"{root}/{name}".rstrip("/")
            if system.isfile(place):
                _fetch(system, place, here)
            elif system.exists(place):
                for there in system.find(place):
                    _fetch(system, there, here / _below(place, there))
        return here

    def keep(self, name: str = "", *, drop: bool = False) -> None:
        """Put a file, a folder, or all of it there; with ``drop`` nothing of it stays here."""
        if not self.remote:
            return
        here = self.local / name
        with _explained(self._address, "written"):
            system, root = _opened(self._address)
            files = [here] if here.is_file() else [file for file in here.rglob("*") if file.is_file()]
            # Manifests last: what they name is there before they are.
            for file in sorted(files, key=lambda file: (file.suffix == ".json", file)):
                if file.name.startswith(".") or file.name == "lock":
                    continue
                there = f"{root}/{file.relative_to(self.local).as_posix()}"
                system.makedirs(there.rpartition("/")[0], exist_ok=True)
                system.put_file(str(file), there)
        if drop:
            shutil.rmtree(here, ignore_errors=True) if here.is_dir() else here.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Take a file or folder away there."""
        if not self.remote:
            return
        with _explained(self._address, "written"):
            system, root = _opened(self._address)
            if system.exists(f"{root}/{name}"):
                system.rm(f"{root}/{name}", recursive=True)


def local_folder(path: str | Path) -> Path:
    """A folder to read: a plain one as it is, a remote one as a copy here."""
    if not is_remote(path):
        return plain_path(path)
    home, _, name = str(path).rstrip("/").rpartition("/")
    return OutFolder(home).fetch(name)


@contextmanager
def written_to(out: str | Path) -> Iterator[Path]:
    """A folder to write results to, which go to ``out`` if that is an address; what was there is here before.

    Work that raises leaves the copy in the cache, where the same work finds it again.
    """
    folder = OutFolder(out)
    folder.fetch()
    yield folder.local
    folder.keep(drop=True)


def _copy_of(address: str) -> Path:
    """The folder of the cache for what belongs to an address."""
    return paths.folder("cache") / "remote" / hashlib.sha256(address.encode()).hexdigest()[:16]


def _opened(address: str) -> tuple[Any, str]:
    """The file system of an address and the place in it."""
    try:
        import fsspec
    except ImportError:
        raise LensError(
            f"{without_password(address)} needs the package fsspec.",
            "pip install 'mlx-lens-tui[ray]', or give a plain path.",
        ) from None
    try:
        system, place = fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise LensError(
            f"{without_password(address)} needs another package: {error}.", "Install it, then ask again."
        ) from None
    except ValueError as error:
        raise LensError(
            f"{without_password(address)} cannot be opened: {error}.", "Check the protocol before ://."
        ) from None
    return system, str(place).rstrip("/")


@contextmanager
def _explained(address: str, what: str) -> Iterator[None]:
    """One sentence for whatever a file system of others raises; what this package raises passes."""
    try:
        yield
    except (LensError, AskedToStop):
        raise
    except FileNotFoundError:
        raise LensError(f"There is nothing at {without_password(address)}.", "Check the address.") from None
    except Exception as error:
        reason = one_line(_PASSWORD.sub("//", str(error)), 200) or type(error).__name__
        hint = "Check the address, the network and the credentials."
        raise LensError(f"{without_password(address)} could not be {what}: {reason}.", hint) from error
