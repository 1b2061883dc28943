"""Fetch a repository's files from the Hugging Face hub; run as a process of its own.

``python -m lens_tui.tasks.fetch REPO REVISION PATTERN...`` prints JSON lines:
``{"done": bytes, "total": bytes}`` while it works, then ``{"path": folder}`` or
``{"message": ..., "hint": ...}``. It ends when its standard input closes, so it
never outlives the app. A process can be stopped at once, in mid-transfer, which
the hub's own threads cannot; files that were complete stay in the cache.
"""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lens_tui.records import LensError
from lens_tui.records.hub import SilentBar, explain_hub

_EVERY = 0.1  # seconds between two lines of progress
_PATIENCE = 20.0  # seconds for the hub's first answer


def fetch(repo_id: str, revision: str, patterns: list[str]) -> Path:
    """Bring the files that match into the hub's cache and return their folder, printing progress."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    try:
        # This one request fails at once where listing the tree would try again for half a minute.
        info = HfApi().model_info(repo_id, revision=revision, files_metadata=True, timeout=_PATIENCE)
        sizes = _sizes(info.siblings or (), patterns)
        if not any(name.endswith((".safetensors", ".npz", ".pt", ".gguf")) for name in sizes):
            raise LensError(
                f"{repo_id} has no weights that mlx-lm could load.", "Look for a safetensors version of it."
            )
        _check_space(sum(sizes.values()), Path(HF_HUB_CACHE))
        threading.Thread(target=_report, args=(sum(sizes.values()),), daemon=True).start()
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=patterns, tqdm_class=Bar))
    except LensError:
        raise
    except Exception as error:
        raise _explained(error, repo_id) from error


def _explained(error: Exception, repo_id: str) -> LensError:
    offline = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE")
    away = LensError(f"{repo_id} is not on this disk, and the hub is switched off.", "Unset HF_HUB_OFFLINE.")
    kept = "files that came whole are kept."
    return explain_hub(error, repo_id, kept=kept, absent=away if offline else None)


class Bar(SilentBar):
    """Its class's ``done`` is the bytes of all files that are on the disk."""

    done = 0

    def __init__(self, iterable: Iterable[Any] = (), **options: Any) -> None:
        super().__init__(iterable, **options)
        # The hub keeps a second bar for bytes on the wire; what is on the disk is the one that counts.
        self._counts = options.get("unit") == "B" and "Downloading" not in str(options.get("desc"))

    def update(self, n: float | None = 1) -> None:
        """Add ``n`` bytes (or files, which do not count)."""
        super().update(n)
        if self._counts:
            Bar.done = self.n


def say(**values: object) -> None:
    """Print one line for the reader."""
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def _report(total: int) -> None:
    said = -1
    while True:
        if said != Bar.done:
            said = Bar.done
            say(done=min(said, total), total=total)
        time.sleep(_EVERY)


def _sizes(files: Iterable[Any], patterns: list[str]) -> dict[str, int]:
    sizes = {str(file.rfilename): int(file.size or 0) for file in files}
    return {name: size for name, size in sizes.items() if any(fnmatch.fnmatch(name, p) for p in patterns)}


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
    threading.Thread(target=_end_with_parent, daemon=True).start()
    repo_id, revision, *patterns = sys.argv[1:]
    try:
        say(path=str(fetch(repo_id, revision, patterns)))
    except LensError as error:
        say(message=error.message, hint=error.hint)
    sys.stdout.flush()
    os._exit(0)  # the hub's transfer threads need not be waited for


if __name__ == "__main__":
    main()
