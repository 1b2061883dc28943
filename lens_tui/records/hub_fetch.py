"""Files from the Hugging Face hub: what is in the cache already, and fetching what is not.

The one way in which models and SAEs come, for the app, the command line and the library alike. The cache is used
without asking; a transfer is a process of its own (:mod:`.hub_process`), which a stop ends at once.
"""

from __future__ import annotations

import glob
import json
import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Literal

from .errors import LensError
from .hub import explain_hub, is_whole, quiet_hub, whole_snapshot
from .hub_process import PART, Wish
from .paths import expanded
from .sanitise import one_line

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
_COMMIT = re.compile(r"[0-9a-f]{40}")

Progress = Callable[[int, int], None]
"""``progress(done, total)`` in bytes."""


class NotInRepository(LensError):
    """None of the files that one was wanted of; ``files`` are the names of those there are."""

    def __init__(self, message: str, files: Sequence[str]) -> None:
        super().__init__(message)
        self.files = tuple(files)


def model_from_hub(
    repo_id: str,
    *,
    revision: str | None = None,
    progress: Progress | None = None,
    check: Callable[[], None] = lambda: None,
) -> Path:
    """The folder of a model: that in the cache if it is whole, without asking the hub, or else fetched.

    Args:
        repo_id: ``org/name``.
        revision: a branch, tag or commit. Of a branch or tag that is named the hub is asked, for it may have moved.
        progress: as of :func:`fetch`.
        check: as of :func:`fetch`.

    Raises:
        LensError: for everything that can go wrong with a hub.
    """
    settled = revision is None or _COMMIT.fullmatch(revision) is not None
    if settled and (found := cached_snapshot(repo_id, revision)) is not None:
        return found
    try:
        return fetch(repo_id, revision=revision, progress=progress, check=check)
    except LensError:
        found = whole_snapshot(repo_id) if revision is None else cached_snapshot(repo_id, revision)
        if found is None:
            raise
        return found


def cached_snapshot(repo_id: str, revision: str | None = None) -> Path | None:
    """The folder of a model that is whole in the cache, or ``None``. Never uses the network."""
    quiet_hub()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, IncompleteSnapshotError, LocalEntryNotFoundError

    try:
        patterns = list(MODEL_FILES)
        found = snapshot_download(repo_id, revision=revision, local_files_only=True, allow_patterns=patterns)
        if is_whole(Path(found)):
            return Path(found)
    except (HFValidationError, IncompleteSnapshotError):
        return None
    except (LocalEntryNotFoundError, OSError):
        pass
    return None if revision else whole_snapshot(repo_id)  # main may have moved on since


def cached_file(
    repo_id: str, name: str, revision: str | None, cache_dir: str | Path | None
) -> Path | Literal["absent", "unknown"]:
    """A file of a repository if it is in the cache; never uses the network.

    ``absent``: the hub said before that the repository has no such file; ``unknown``: it was never asked for.
    """
    quiet_hub()
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(repo_id, name, revision=revision, cache_dir=cache_dir)
    except ValueError as error:
        raise explain_hub(error, one_line(repo_id, 80)) from error
    if isinstance(found, str):
        return Path(found)
    return "unknown" if found is None else "absent"


def first_file(
    repo_id: str,
    names: Sequence[str],
    beside: Sequence[str] = (),
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """The first of some files that a repository has, from the cache if what is there is all that is wanted.

    Args:
        repo_id: ``org/name``.
        names: the files, in the order in which they are wanted.
        beside: files that come along if the repository has them.
        revision: a branch, tag or commit.
        cache_dir: the hub's cache; by default the usual one.
        progress: as of :func:`fetch`.

    Raises:
        NotInRepository: if it has none of them.
        LensError: for everything else that can go wrong with a hub.
    """
    for name in names:
        known = cached_file(repo_id, name, revision, cache_dir)
        if isinstance(known, Path):
            if all(cached_file(repo_id, other, revision, cache_dir) != "unknown" for other in beside):
                return known
            break
        if known == "unknown":
            break
    patterns = [glob.escape(name) for name in beside]
    return fetch(repo_id, patterns, first_of=names, revision=revision, cache_dir=cache_dir, progress=progress)


def fetch(
    repo_id: str,
    patterns: Sequence[str] = MODEL_FILES,
    *,
    first_of: Sequence[str] = (),
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    progress: Progress | None = None,
    check: Callable[[], None] = lambda: None,
) -> Path:
    """Fetch files and return the folder they are in, or the path of the first of ``first_of``.

    What came of a transfer that was stopped is kept, and the next one goes on from there.

    Args:
        repo_id: ``org/name``.
        patterns: shell patterns; what matches any is fetched. By default what mlx-lm reads of a model.
        first_of: names of which the first that the repository has is fetched too.
        revision: a branch, tag or commit; ``None`` is ``main``.
        cache_dir: the hub's cache; by default the usual one.
        progress: called about twenty times a second once the sizes are known, also while nothing arrives. What it
            raises ends the transfer. By default a bar is drawn on standard error.
        check: called twenty times a second from the start; may raise to stop the transfer at once.

    Raises:
        NotInRepository: if the repository has none of ``first_of``.
        LensError: for everything else that can go wrong with a hub.
    """
    shown = one_line(repo_id, 80)
    if is_offline():
        raise LensError(f"{shown} is not in the cache, and the hub is switched off.", "Unset HF_HUB_OFFLINE.")
    wish = Wish(repo_id, tuple(patterns), tuple(first_of), revision, str(cache_dir) if cache_dir else None)
    before = _partial(wish)
    command = [sys.executable, "-m", "lens_tui.records.hub_process", json.dumps(asdict(wish))]
    with ExitStack() as stack:
        show = progress or stack.enter_context(_Bar(shown))
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_environment()
        )
        try:
            said = _follow(process, show, check)
        finally:
            process.kill()
            assert process.stdin is not None
            process.stdin.close()
            process.wait()
            for left in _partial(wish) - before:  # the client names them at random and cannot take them up again
                left.unlink(missing_ok=True)
    if said is None:
        raise LensError(f"Fetching {shown} ended early.", "Try again.")
    if "absent" in said:
        raise NotInRepository(f"{shown} has no such file.", said["absent"])
    if "message" in said:
        raise LensError(said["message"], said["hint"])
    return Path(said["path"], said["first"])


def _follow(process: subprocess.Popen[bytes], show: Progress, check: Callable[[], None]) -> dict[str, Any] | None:
    """Pass progress on until the process says how it went; ``None`` if it ends without a word."""
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    assert process.stdout is not None
    threading.Thread(target=_pump, args=(process.stdout, lines), daemon=True).start()
    sizes: tuple[int, int] | None = None
    while True:
        check()
        try:
            line = lines.get(timeout=_LOOK)
        except queue.Empty:
            line = None
        if line == b"":
            return None
        said = json.loads(line) if line else {}
        if said and "done" not in said:
            return dict(said)
        if said:
            sizes = said["done"], said["total"]
        if sizes is not None:
            show(*sizes)


def _pump(pipe: IO[bytes], lines: queue.SimpleQueue[bytes]) -> None:
    with pipe:
        for line in pipe:
            lines.put(line)
    lines.put(b"")


class _Bar:
    """Draws a transfer as the hub's own client does; nothing is drawn for what is over at once."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._bar: Any = None

    def __enter__(self) -> Progress:
        return self._show

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def _show(self, done: int, total: int) -> None:
        if self._bar is None:
            from huggingface_hub import utils

            bars: Any = utils  # untyped
            self._bar = bars.tqdm(total=total, initial=done, unit="B", unit_scale=True, desc=self._name)
        self._bar.update(done - self._bar.n)


def is_offline() -> bool:
    """Whether the hub's client is told to stay off the network."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _partial(wish: Wish) -> set[Path]:
    from huggingface_hub import constants

    cache = expanded(wish.cache_dir or constants.HF_HUB_CACHE)
    found: Iterable[Path] = (cache / f"models--{wish.repo_id.replace('/', '--')}" / "blobs").glob("*.incomplete")
    return {file for file in found if not file.name.endswith(PART)}


def _environment() -> dict[str, str]:
    quiet_hub()
    from huggingface_hub import constants

    # The child must find this very package, also when it runs from a checkout that is not installed.
    home = str(Path(__file__).parents[2])
    rest = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": f"{home}{os.pathsep}{rest}" if rest else home,
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        # One cache and one hub for what is looked up here and fetched there.
        "HF_HUB_CACHE": constants.HF_HUB_CACHE,
        "HF_ENDPOINT": constants.ENDPOINT,
    }
