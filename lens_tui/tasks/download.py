"""Models from the Hugging Face hub: what is in the cache already, and fetching what is not."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import lens_tui
from lens_tui.records import LensError
from lens_tui.records.hub import quiet_hub, whole_snapshot

# What mlx-lm reads of a model. Python files are left out: code that comes with a model is never run.
MODEL_FILES = (
    "*.json",
    "model*.safetensors",
    "tokenizer.model",
    "*.tiktoken",
    "tiktoken.model",
    "*.txt",
    "*.jsonl",
    "*.jinja",
)
_LOOK = 0.05  # seconds between two looks at the stop flag


def cached_snapshot(repo_id: str, patterns: Sequence[str] = MODEL_FILES) -> Path | None:
    """The folder of a repository that is complete in the cache, or ``None``. Never uses the network."""
    quiet_hub()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id, local_files_only=True, allow_patterns=list(patterns)))
    except HFValidationError:
        return None
    except (LocalEntryNotFoundError, OSError):
        return whole_snapshot(repo_id)  # main may have moved on since


def download(
    repo_id: str,
    on_bytes: Callable[[int, int], None],
    check: Callable[[], None],
    *,
    revision: str = "main",
    patterns: Sequence[str] = MODEL_FILES,
) -> Path:
    """Fetch the files that match and return their folder.

    ``on_bytes(done, total)`` is called about ten times a second. ``check()`` is
    called twenty times a second and may raise to stop the transfer at once; files
    that were complete stay and are not fetched again. Raises :class:`LensError`
    for everything that can go wrong with a hub.
    """
    before = _partial(repo_id)
    command = [sys.executable, "-m", "lens_tui.tasks.fetch", repo_id, revision, *patterns]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_environment()
    )
    assert process.stdout is not None
    assert process.stdin is not None
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_pump, args=(process.stdout, lines), daemon=True).start()
    try:
        while True:
            check()
            try:
                line = lines.get(timeout=_LOOK)
            except queue.Empty:
                continue
            if not line:
                raise LensError(f"Fetching {repo_id} ended early.", "Try again.")
            said = json.loads(line)
            if "path" in said:
                return Path(said["path"])
            if "message" in said:
                raise LensError(said["message"], said["hint"])
            on_bytes(said["done"], said["total"])
    finally:
        process.kill()
        process.stdin.close()
        process.wait()
        for left in _partial(repo_id) - before:  # the client names them at random and cannot take them up again
            left.unlink(missing_ok=True)


def _partial(repo_id: str) -> set[Path]:
    from huggingface_hub import constants

    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or constants.HF_HOME) / "hub")
    return set((cache.expanduser() / f"models--{repo_id.replace('/', '--')}" / "blobs").glob("*.incomplete"))


def _pump(pipe: IO[bytes], lines: queue.SimpleQueue[bytes]) -> None:
    with pipe:
        for line in pipe:
            lines.put(line)
    lines.put(b"")


def _environment() -> dict[str, str]:
    quiet_hub()
    # The child must find this very package, also when it runs from a checkout that is not installed.
    home = str(Path(lens_tui.__file__).parents[1])
    rest = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{home}{os.pathsep}{rest}" if rest else home}
