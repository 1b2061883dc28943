"""An SAE named by its place at the hub, ``org/name/folder``: find its few files and fetch those."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from lens_tui.records import LensError
from lens_tui.records.sanitise import one_line

from .hub import Progress, cached_file, fetch_file, list_files

_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}(/[^\\]*)?")
_WEIGHTS = (
    "params.safetensors",
    "params.npz",
    "sae.safetensors",
    "sae_weights.safetensors",
    "checkpoints/final.safetensors",
    "ae.pt",
    "weights.safetensors",
)
_SUFFIXES = (".safetensors", ".npz", ".pt", ".pth")
_CONFIGS = ("config.json", "cfg.json", "hyperparams.json", "../config.json")


def is_hub_id(text: str) -> bool:
    """Whether it could name something at the hub."""
    return _ID.fullmatch(text) is not None and ".." not in text and "//" not in text


def fetch_sae(text: str, revision: str | None, progress: Progress | None, cache_dir: str | Path | None = None) -> Path:
    """The local file or folder of an SAE at the hub, fetched as far as it is not cached. Raises ``LensError``."""
    parts = text.rstrip("/").split("/")
    repo, inner = "/".join(parts[:2]), "/".join(parts[2:])
    if PurePosixPath(inner).suffix in _SUFFIXES:
        found = _take(repo, [inner], revision, progress, cache_dir, None)
        if found is None:
            raise LensError(f"{one_line(repo, 80)} has no file {one_line(inner, 80)}.", "Check the name.")
        home = PurePosixPath(inner).parent.as_posix()
        _configs(repo, "" if home == "." else home, revision, cache_dir)
        return found
    listed = list_files(repo, revision, inner)
    weights = _take(repo, [_join(inner, name) for name in _WEIGHTS], revision, progress, cache_dir, listed)
    if weights is None:
        raise LensError(f"{one_line(text, 120)} has no weights under a usual name.", _others(repo, inner, listed))
    _configs(repo, inner, revision, cache_dir)
    # Llama Scope's weights are in a folder below that of its configuration.
    return weights.parents[1] if weights.name == "final.safetensors" else weights.parent


def _take(
    repo: str,
    names: Iterable[str],
    revision: str | None,
    progress: Progress | None,
    cache_dir: str | Path | None,
    listed: list[str] | None,
) -> Path | None:
    """The first of some files that is in the cache or, as far as the listing says, at the hub."""
    names = list(names)
    for name in names:
        cached = cached_file(repo, name, revision, cache_dir)
        if isinstance(cached, Path):
            return cached
    wanted = names if listed is None else [name for name in names if name in listed]
    for name in wanted:
        found = fetch_file(repo, name, revision, progress, cache_dir)
        if found is not None:
            return found
    return None


def _configs(repo: str, folder: str, revision: str | None, cache_dir: str | Path | None) -> None:
    for name in _CONFIGS:
        if name.startswith("../"):
            if not folder:
                continue
            above = PurePosixPath(folder).parent.as_posix()
            place = _join("" if above == "." else above, name.removeprefix("../"))
        else:
            place = _join(folder, name)
        if cached_file(repo, place, revision, cache_dir) == "unknown":
            try:
                fetch_file(repo, place, revision, None, cache_dir)
            except LensError:
                return  # no network: what is cached has to do, and what is lacking is said by the reader


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _others(repo: str, inner: str, listed: list[str] | None) -> str:
    """What to give instead: a weight file of another name in the folder, or one of the folders below it."""
    home = PurePosixPath(inner or ".")
    files = [name for name in listed or [] if PurePosixPath(name).suffix in _SUFFIXES]
    here = [f"{repo}/{name}" for name in files if PurePosixPath(name).parent == home]
    found = sorted({PurePosixPath(name).parent.as_posix() for name in files if name.endswith(_WEIGHTS)})
    if not found and not here:
        return "Give the folder or file of one SAE: org/name/folder."
    some = found or sorted(here)
    more = f" and {len(some) - 5} more" if len(some) > 5 else ""
    return f"Give one of its {'folders' if found else 'files'}: {one_line(', '.join(some[:5]), 300)}{more}."
