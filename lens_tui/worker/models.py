"""The models and SAEs at hand without a network, and the check of a path or id someone typed. No MLX."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lens_tui import demo
from lens_tui.records import LensError, paths
from lens_tui.records.hub import CachedRepo, cached_repos, quiet_hub
from lens_tui.records.read_files import read_json
from lens_tui.records.recent import recent_models
from lens_tui.records.sanitise import one_line

from .model_files import ModelEntry, read_model_folder

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}")


@dataclass(frozen=True, slots=True)
class SAEEntry:
    """An SAE that could be loaded: ``path`` is what ``LoadSAE`` takes. Strings are safe to show."""

    path: str
    name: str
    source: str
    nbytes: int = 0


def list_models(
    cache_dir: Path | None = None, recent: Path | None = None, folders: Sequence[str | Path] = ()
) -> list[ModelEntry]:
    """The bundled demo, then models in the Hugging Face cache and folders used lately, newest first.

    ``folders`` are looked through for models one level down. ``cache_dir`` and
    ``recent`` default to the user's own. Reads only the disk; a few milliseconds
    for each model, so call it off the screen's thread.
    """
    found = [*cached_models(cache_dir), *_folders(recent, folders)]
    found.sort(key=lambda entry: entry.used, reverse=True)
    return [entry for entry in (demo_model(), *found) if entry is not None]


def demo_model() -> ModelEntry | None:
    """The bundled model, or ``None`` in an installation without it."""
    try:
        return read_model_folder(demo.model_path(), model_id=demo.NAME, source="demo")
    except LensError:
        return None


def cached_models(cache_dir: Path | None = None) -> list[ModelEntry]:
    """Language models in the Hugging Face cache: those with a config.json and safetensors weights."""
    entries = (_cached_model(repo) for repo in _repos(cache_dir))
    return sorted((entry for entry in entries if entry), key=lambda entry: entry.used, reverse=True)


def check_model(typed: str) -> ModelEntry:
    """What someone typed as a model: ``demo``, a folder, or a hub id (cached or not).

    A folder wins over a hub id of the same spelling. Raises :class:`LensError`
    with one sentence if it is none of these or cannot be loaded.
    """
    text = typed.strip()
    if text == demo.NAME:
        entry = demo_model()
        if entry is None:
            raise LensError("This installation has no bundled model.", "Reinstall mlx-lens-tui.")
        return entry
    folder = Path(text).expanduser()
    if text and folder.is_dir():
        entry = read_model_folder(folder.resolve())
        if entry.problem:
            raise LensError(f"{one_line(str(folder), 120)} cannot be loaded.", entry.problem)
        return entry
    if folder.is_file():
        raise LensError(f"{one_line(text, 120)} is a file.", "Give the folder that holds config.json and the weights.")
    if not _HUB_ID.fullmatch(text) or ".." in text or "--" in text:
        hint = "Give a folder, a hub id like org/name, or demo."
        raise LensError(f"There is no model at {one_line(text, 120) or 'an empty path'}.", hint)
    cached = next((entry for entry in cached_models() if entry.id == text), None)
    return cached or ModelEntry(id=text, name=one_line(text, 80), source="hub")


def list_saes(entry_or_id: str, cache_dir: Path | None = None) -> list[SAEEntry]:
    """SAEs at hand for a model, by its id: bundled or trained here, and Gemma Scope folders in the Hugging Face cache.

    A Gemma Scope repository counts if its name contains the model's (``gemma-3-1b``
    in ``gemma-scope-2-1b-it``). Whether an SAE fits is measured after loading.
    """
    own = _trained_here(entry_or_id)
    if entry_or_id == demo.NAME:
        bundled = demo.sae_paths().items()
        return [*(SAEEntry(str(path), one_line(name), "demo", _size(path)) for name, path in bundled), *own]
    fitting = [repo for repo in _repos(cache_dir) if _same_family(repo.repo_id, entry_or_id)]
    return [*own, *(sae for repo in sorted(fitting, key=lambda repo: repo.repo_id) for sae in _scope_folders(repo))]


def _trained_here(model: str) -> list[SAEEntry]:
    """The SAEs in the user's folder that say they were trained on this model."""
    names = {model, Path(model).name}
    found = []
    for file in sorted(paths.saes_folder().glob("*/config.json")):
        try:
            config = read_json(file)
        except LensError:
            continue
        says = config.get("model_name") if isinstance(config, dict) else None
        if isinstance(says, str) and says in names and (file.parent / "params.safetensors").is_file():
            found.append(SAEEntry(str(file.parent), one_line(file.parent.name, 120), "own", _size(file.parent)))
    return found


def _repos(cache_dir: Path | None) -> list[CachedRepo]:
    """What is in the Hugging Face cache; nothing if there is none."""
    quiet_hub()
    return cached_repos(cache_dir)


def _scope_folders(repo: CachedRepo) -> list[SAEEntry]:
    snapshot = repo.snapshot
    weights = sorted({*snapshot.glob("**/params.safetensors"), *snapshot.glob("**/params.npz")})
    names = [(file.parent, file.parent.relative_to(snapshot).as_posix()) for file in weights]
    return [
        SAEEntry(str(folder), one_line(f"{repo.repo_id}/{name}", 120), "cache", _size(folder)) for folder, name in names
    ]


def _same_family(repo_id: str, model: str) -> bool:
    # gemma-scope-2-1b-it is of gemma-3-1b-it; gemma-scope-2b-pt-res of gemma-2-2b.
    scope = re.fullmatch(r"google/gemma-scope-(2-)?(\d+[bm])(?:-(pt|it))?.*", repo_id)
    name = re.search(r"gemma-(\d)-(\d+[bm])(?:-(pt|it))?", model.lower())
    if scope is None or name is None:
        return False
    generation = "3" if scope[1] else "2"
    # The first Gemma Scope was trained on base models and is used on the tuned ones too.
    same_tuning = generation == "2" or (scope[3] or "pt") == (name[3] or "pt")
    return generation == name[1] and scope[2] == name[2] and same_tuning


def _cached_model(repo: CachedRepo) -> ModelEntry | None:
    if not any(repo.snapshot.glob("model*.safetensors")):
        return None
    try:
        entry = read_model_folder(repo.snapshot, model_id=repo.repo_id, source="cache")
    except LensError:
        return None
    return replace(entry, used=repo.used) if entry.architecture else None


def _folders(recent: Path | None, folders: Sequence[str | Path]) -> list[ModelEntry]:
    named = [Path(name) for name in recent_models(recent) if Path(name).is_absolute()]
    inside = [place for folder in folders for place in _subfolders(Path(folder).expanduser())]
    entries = []
    for folder in dict.fromkeys(named + inside):
        try:
            entries.append(replace(read_model_folder(folder), used=folder.stat().st_mtime))
        except (LensError, OSError):
            continue
    return entries


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(place.resolve() for place in folder.iterdir() if (place / "config.json").is_file())
    except OSError:
        return []


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
