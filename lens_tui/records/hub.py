"""How this package speaks with the Hugging Face hub's client: quietly, and of its errors in one sentence."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import LensError
from .read_files import read_json


def quiet_hub() -> None:
    """Tell the hub's client to send no telemetry and draw no bars; the user's own settings win."""
    for name in ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_UPDATE_CHECK"):
        os.environ.setdefault(name, "1")


def whole_snapshot(repo_id: str, cache: Path | None = None) -> Path | None:
    """The newest whole snapshot of a model in the hub's cache, whatever its refs point at; ``None`` without one.

    Whole is a config.json, and every file of weights that its index names, links to something.
    """
    from huggingface_hub import constants

    folder = (cache or Path(constants.HF_HUB_CACHE)) / f"models--{repo_id.replace('/', '--')}" / "snapshots"
    try:
        found = [place for place in folder.iterdir() if place.is_dir() and _whole(place)]
        return max(found, key=lambda place: place.stat().st_mtime, default=None)
    except OSError:
        return None


def _whole(snapshot: Path) -> bool:
    wanted = {file.name for file in snapshot.glob("model*.safetensors")}
    index = snapshot / "model.safetensors.index.json"
    if index.exists():
        try:
            wanted |= set(read_json(index, 64 << 20)["weight_map"].values())
        except (LensError, KeyError, TypeError, AttributeError):
            return False
    files = [snapshot / name for name in ("config.json", *wanted) if "/" not in name]
    return bool(wanted) and all(file.is_file() for file in files)


def explain_hub(error: BaseException, repo: str, *, kept: str, absent: LensError | None = None) -> LensError:
    """What the hub's client raised, in one sentence.

    ``repo`` is safe to show. ``kept`` says what a transfer that broke off leaves
    behind; ``absent`` is what to say where the cache lacks the file and the hub is
    not asked or not reached, ``None`` to treat that as any other trouble with the network.
    """
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
        case errors.OfflineModeIsEnabled() | errors.LocalEntryNotFoundError() if absent is not None:
            return absent
        case errors.HfHubHTTPError() if error.response is not None:
            return LensError(f"The hub answered {error.response.status_code} for {repo}.", "Try again later.")
        case OSError() if error.errno is not None and error.strerror:
            return LensError(f"Fetching {repo} failed: {error.strerror}.", "Check free space and permissions.")
    return LensError(f"The hub could not be reached for {repo} ({type(error).__name__}).", f"Check the network; {kept}")
