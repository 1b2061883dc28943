"""What the app was about, saved at each change, so that the next start can take it up again.

Each process has a file of its own, so two windows never write the same one. A
file is whose app still runs, or it is left by one that was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import disk, paths
from .chat import Turn
from .codec import from_json, to_json
from .disk import is_owner_alive, own_birth
from .errors import LensError
from .gates import Watched
from .interventions import BenchRow, mode_of
from .read_files import FileAbsent, explained, read_json
from .run import Sampling
from .sanitise import sanitise_token
from .steering_vector import TokenWeight

_VERSION = 1
_MAX_BYTES = 256 << 20
MOST_KEPT = 20
"""Sessions that were cut off and neither taken up nor forgotten."""


@dataclass(frozen=True, slots=True)
class SavedSession:
    """The parts of a session that are worth taking up again. ``model`` and ``sae`` are ids to load by.

    ``turns`` are the conversation before the prompt; ``chat`` whether prompts go in as one, ``None`` as is usual.
    """

    model: str = ""
    sae: str = ""
    screen: str = ""
    prompt: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    steers: tuple[BenchRow, ...] = ()
    turns: tuple[Turn, ...] = ()
    chat: bool | None = None
    monitors: tuple[Watched, ...] = ()


@dataclass(frozen=True, slots=True)
class CutOff:
    """A session that an app did not end well. ``session`` is ``None`` where ``problem`` says why it cannot be read.

    ``changed`` is when it was last written, seconds since 1970.
    """

    path: Path
    changed: float
    session: SavedSession | None = None
    problem: str = ""


_STARTED = f"{time.time_ns():x}"


def own_file() -> Path:
    """The file of this process. Its name was never another's: the number of a process is used again."""
    return paths.sessions_folder() / f"{os.getpid()}-{_STARTED}.json"


def save_session(session: SavedSession, path: Path | None = None) -> None:
    """Write the session, whole or not at all. Raises :class:`LensError` if the disk refuses."""
    # Escaped, for a prompt may hold what has no UTF-8.
    text = json.dumps(_to_json(session), allow_nan=False, separators=(",", ":"))
    disk.write_text(path or own_file(), text + "\n")


def interrupted_sessions(folder: Path | None = None) -> list[CutOff]:
    """Every session that was cut off, newest first: of apps that neither ended well nor still run.

    One that cannot be read is moved aside under another name, which its
    ``problem`` says; one of a newer version is left as it is. At most
    ``MOST_KEPT`` are kept: older ones are deleted.
    """
    place = folder or paths.sessions_folder()
    files = [*place.glob("*.json"), *([paths.session_file()] if folder is None else [])]
    found = [item for file in files if (item := _cut_off(file)) is not None]
    found.sort(key=lambda item: item.changed, reverse=True)
    readable = [item for item in found if item.session is not None]
    for old in readable[MOST_KEPT:]:
        forget_session(old.path)
    with contextlib.suppress(OSError):
        disk.remove_leftovers(place)
    return [item for item in found if item not in readable[MOST_KEPT:]]


def resumable_sessions() -> list[CutOff]:
    """Those that were cut off and the one of the app that ended well last, newest first."""
    last = _cut_off(paths.last_session_file(), ended=True)
    found = [*interrupted_sessions(), *([last] if last is not None else [])]
    return sorted(found, key=lambda item: item.changed, reverse=True)


def end_session() -> None:
    """The app ended well: its session is the last one, and is offered to nobody who does not ask for it."""
    with contextlib.suppress(OSError):
        own_file().replace(paths.last_session_file())


def forget_session(path: Path | None = None) -> None:
    """The app ended well, or nobody wants it: there is nothing to take up."""
    with contextlib.suppress(OSError):
        (path or own_file()).unlink()


def _cut_off(file: Path, *, ended: bool = False) -> CutOff | None:
    try:
        changed = file.lstat().st_mtime
    except OSError:
        return None
    try:
        session, owner, born = _read(file)
    except FileAbsent:
        return None
    except _Newer as error:
        return CutOff(file, changed, problem=str(error))
    except LensError as error:
        aside = file.with_name(file.name + ".unreadable")
        try:
            file.replace(aside)
        except OSError:
            aside = file
        return CutOff(aside, changed, problem=f"{error.message} It is kept as {aside}.")
    return None if not ended and is_owner_alive(owner, born) else CutOff(file, changed, session)


def _read(file: Path) -> tuple[SavedSession, int, str]:
    """A session, the process it belongs to, and when that began (empty if the file does not say)."""
    data = read_json(file, _MAX_BYTES)
    with explained(file, "Delete it to start afresh."):
        if int(data["version"]) > _VERSION:
            raise _Newer(f"A session of a newer version of mlx-lens-tui is kept as {file}.")
        return _from_json(data), int(data["owner"]), str(data.get("born", ""))


class _Newer(LensError):
    """Written by a newer version."""


class Autosaver:
    """Writes the newest session in a thread of its own, at once, and never two at a time.

    Nothing happens between changes: no timer, no wake-ups. ``error`` holds what
    the disk said last, if it refused; ``refused`` is called with it on that
    thread, once until something could be written again.
    """

    def __init__(self, path: Path | None = None, refused: Callable[[LensError], object] = lambda error: None) -> None:
        self.path = path or own_file()
        self.error: LensError | None = None
        self._refused = refused
        self._newest: SavedSession | None = None
        self._replaced: list[Path] = []
        self._changed = threading.Condition()
        self._closed = False
        self._busy = False
        self._thread = threading.Thread(target=self._run, name="autosave", daemon=True)
        self._thread.start()

    def save(self, session: SavedSession, *, in_place_of: Path | None = None) -> None:
        """Have ``session`` written, then the file deleted whose session it continues; returns at once."""
        with self._changed:
            self._newest = session
            if in_place_of is not None:
                self._replaced.append(in_place_of)
            self._changed.notify_all()

    def flush(self, timeout: float = 2.0) -> bool:
        """Wait until all that was handed in is on the disk; false if it took longer."""
        with self._changed:
            return self._changed.wait_for(lambda: self._newest is None and not self._busy, timeout)

    def close(self, *, forget: bool) -> None:
        """Write what waits and end. ``forget``: the app ended well and leaves nothing to take up."""
        self.flush()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(1.0)
        if forget:
            forget_session(self.path)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._newest is not None or self._closed)
                session, self._newest = self._newest, None
                replaced, self._replaced = self._replaced, []
                if session is None:
                    return
                self._busy = True
            try:
                save_session(session, self.path)
            except Exception as error:  # whatever is in a session, the next one is tried too
                self._failed(error, replaced)
            else:
                self.error = None
                for path in replaced:
                    forget_session(path)

    def _failed(self, error: Exception, replaced: list[Path]) -> None:
        first = self.error is None
        self.error = error if isinstance(error, LensError) else LensError(f"The session cannot be written: {error}.")
        with self._changed:
            self._replaced = [*replaced, *self._replaced]
        if first:
            self._refused(self.error)


_HEAD = ("version", "owner", "born")


def _to_json(session: SavedSession) -> dict[str, Any]:
    return {"version": _VERSION, "owner": os.getpid(), "born": own_birth(), **to_json(session)}


def _from_json(data: Any) -> SavedSession:
    session = from_json(SavedSession, {name: value for name, value in data.items() if name not in _HEAD})
    return replace(session, steers=tuple(map(_row, session.steers)))


def _row(row: BenchRow) -> BenchRow:
    mode_of(row.mode)  # refused here, not when the bench is run
    return replace(row, promoted=_showable(row.promoted), suppressed=_showable(row.suppressed))


def _showable(tokens: tuple[TokenWeight, ...]) -> tuple[TokenWeight, ...]:
    return tuple(replace(token, text=sanitise_token(token.text)) for token in tokens)
