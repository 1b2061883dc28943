"""How this package speaks with the Hugging Face hub's client: quietly, and of its errors in one sentence."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .errors import LensError
from .read_files import changed_at, read_json, read_text
from .sanitise import one_line


def quiet_hub() -> None:
    """Tell the hub's client to send no telemetry; the user's own settings win."""
    for name in ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_UPDATE_CHECK"):
        os.environ.setdefault(name, "1")


@dataclass(frozen=True, slots=True)
class CachedRepo:
    """A model repository in the hub's cache.

    Args:
        repo_id: ``org/name``.
        snapshot: the snapshot to use.
        used: when its weights were last read, in seconds since 1970.
        partial: bytes of a download that broke off.
    """

    repo_id: str
    snapshot: Path
    used: float
    partial: int = 0


def cached_repos(cache: Path | None = None) -> list[CachedRepo]:
    """The model repositories in the hub's cache, those with broken links and refs to nothing among them.

    The client's own listing leaves those out. Of several snapshots that of ``main``
    is taken if it is whole, else the newest whole one, else ``main``'s or the newest as it is.
    """
    from huggingface_hub import constants

    found = []
    for folder in sorted(_entries(cache or Path(constants.HF_HUB_CACHE))):
        owner, _, name = folder.name.removeprefix("models--").partition("--")
        snapshot = _snapshot(folder) if folder.name.startswith("models--") else None
        if snapshot is not None:
            repo_id = f"{owner}/{name.replace('--', '/')}" if name else owner
            partial = sum(_size(file) for file in (folder / "blobs").glob("*.incomplete"))
            found.append(CachedRepo(repo_id, snapshot, _last_read(snapshot), partial))
    return found


def remove_repo(repo_id: str) -> int:
    """Take a model repository out of the hub's cache, all its revisions, and return the bytes that are free by it.

    Raises :class:`LensError` if it is not there or may not be removed.
    """
    from huggingface_hub import constants

    home = Path(constants.HF_HUB_CACHE)
    folder = home / f"models--{repo_id.replace('/', '--')}"
    if "/" not in repo_id or folder.parent != home or not folder.is_dir():
        raise LensError(f"{one_line(repo_id, 80)} is not in the cache.", f"The cache is {home}.")
    freed = sum(_size(file) for file in folder.rglob("*") if not file.is_symlink())
    going = folder.with_name(f".removing-{os.getpid()}-{folder.name}")
    try:
        folder.rename(going)  # gone as a whole: what is cut off half way is not taken for a model
        shutil.rmtree(going)
        shutil.rmtree(home / ".locks" / folder.name, ignore_errors=True)
    except OSError as error:
        raise LensError(f"{folder} could not be removed: {error.strerror}.", "Check its permissions.") from error
    return freed


def remove_files(files: Iterable[Path]) -> int:
    """Take single files out of the hub's cache, links with what they link to; the bytes that are free by it."""
    freed = 0
    for file in files:
        for place in {file.resolve(), file}:
            try:
                freed += 0 if place.is_symlink() else _size(place)
                place.unlink(missing_ok=True)
            except OSError as error:
                raise LensError(f"{place} could not be removed: {error.strerror}.", "Check its permissions.") from error
    return freed


def _size(file: Path) -> int:
    try:
        return file.stat().st_size if file.is_file() else 0
    except OSError:
        return 0


def _snapshot(folder: Path) -> Path | None:
    snapshots = [place for place in _entries(folder / "snapshots") if place.is_dir()]
    try:
        main = folder / "snapshots" / read_text(folder / "refs" / "main", 1024).strip()
    except LensError:
        main = None
    if main in snapshots and is_whole(main):
        return main
    newest = sorted(snapshots, key=changed_at)
    whole = [place for place in newest if is_whole(place)]
    return whole[-1] if whole else main if main in snapshots else newest[-1] if newest else None


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _last_read(snapshot: Path) -> float:
    used = [changed_at(snapshot)]
    for file in snapshot.glob("model*.safetensors"):  # config.json is read by whoever lists the models
        try:
            used.append(file.stat().st_atime)
        except OSError:
            continue
    return max(used)


def whole_snapshot(repo_id: str) -> Path | None:
    """A whole snapshot of a model in the hub's cache, ``main``'s or else the newest; ``None`` without one."""
    from huggingface_hub import constants

    found = _snapshot(Path(constants.HF_HUB_CACHE) / f"models--{repo_id.replace('/', '--')}")
    return found if found is not None and is_whole(found) else None


def is_whole(snapshot: Path) -> bool:
    """Whether a model's config.json, and every file of weights that its index names, link to something."""
    wanted = {file.name for file in snapshot.glob("model*.safetensors")}
    index = snapshot / "model.safetensors.index.json"
    if index.exists():
        try:
            wanted |= set(read_json(index, 64 << 20)["weight_map"].values())
        except (LensError, KeyError, TypeError, AttributeError):
            return False
    files = [snapshot / name for name in ("config.json", *wanted) if "/" not in name]
    return bool(wanted) and all(file.is_file() for file in files)


def explain_hub(error: BaseException, repo: str) -> LensError:
    """What the hub's client raised, in one sentence. ``repo`` is safe to show."""
    from huggingface_hub import errors

    match error:
        case errors.GatedRepoError():
            hint = "Accept its terms on its page at the hub, then log in with `hf auth login`."
            return LensError(f"{repo} is gated: its owner wants you to accept terms first.", hint)
        case errors.RepositoryNotFoundError():
            hint = "Check the spelling; for a private one log in with `hf auth login`."
            return LensError(f"There is no {repo} on the hub, or it is private.", hint)
        case errors.RevisionNotFoundError():
            return LensError(f"{repo} has no such revision.", "Check the branch, tag or commit.")
        case errors.HFValidationError():
            return LensError(f"{repo} is not a hub id.", "A hub id looks like org/name.")
        case errors.HfHubHTTPError() if error.response is not None:
            return LensError(f"The hub answered {error.response.status_code} for {repo}.", "Try again later.")
        case OSError() if error.errno is not None and error.strerror:
            return LensError(f"Fetching {repo} failed: {error.strerror}.", "Check free space and permissions.")
    hint = "Check the network; what came so far is kept."
    return LensError(f"The hub could not be reached for {repo} ({type(error).__name__}).", hint)
