"""What the app was about, saved at each change, so that the next start can take it up again."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import atomic, paths
from .codec import positions_from_json, sampling_from_json, to_json, vector_from_json
from .errors import LensError
from .interventions import Positions
from .modes import mode_of
from .process import is_alive
from .run import TokenWeight
from .sampling import Sampling
from .sanitise import sanitise_token
from .vectors import SteeringVector

_VERSION = 1


@dataclass(frozen=True, slots=True, eq=False)
class SavedSteer:
    """One row of the vector bench.

    ``residual_norm``, ``promoted`` and ``suppressed`` were measured of its vector, and need not be again.
    """

    id: str
    vector: SteeringVector
    layer: int
    scale: float
    enabled: bool = True
    arm: int = 1
    residual_norm: float | None = None
    promoted: tuple[TokenWeight, ...] = ()
    suppressed: tuple[TokenWeight, ...] = ()
    mode: str = "add"
    positions: Positions | None = None


@dataclass(frozen=True, slots=True)
class SavedSession:
    """The parts of a session that are worth taking up again. ``model`` and ``sae`` are ids to load by."""

    model: str = ""
    sae: str = ""
    screen: str = ""
    prompt: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    steers: tuple[SavedSteer, ...] = ()


def save_session(session: SavedSession, path: Path | None = None) -> None:
    """Write the session, whole or not at all. Raises :class:`LensError` if the disk refuses."""
    atomic.write_json(path or paths.session_file(), _to_json(session))


def read_session(path: Path | None = None) -> SavedSession | None:
    """The session last written, or ``None`` if there is none. Raises :class:`LensError` if the file is damaged."""
    file = path or paths.session_file()
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        return _from_json(data)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise LensError(f"The saved session {file} cannot be read: {error}", "Delete it to start afresh.") from error


def interrupted_session(path: Path | None = None) -> SavedSession | None:
    """The session of an app that was killed, or ``None``: it ended well, still runs, or left nothing readable."""
    file = path or paths.session_file()
    try:
        owner = int(json.loads(file.read_text(encoding="utf-8"))["owner"])
        if owner == os.getpid() or is_alive(owner):
            return None
        atomic.remove_leftovers(file.parent)
        return read_session(file)
    except (LensError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def forget_session(path: Path | None = None) -> None:
    """The app ended well: there is nothing to take up."""
    (path or paths.session_file()).unlink(missing_ok=True)


class Autosaver:
    """Writes the newest session in a thread of its own, at once, and never two at a time.

    Nothing happens between changes: no timer, no wake-ups. ``error`` holds what
    the disk said last, if it refused.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or paths.session_file()
        self.error: LensError | None = None
        self._newest: SavedSession | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._busy = False
        self._thread = threading.Thread(target=self._run, name="autosave", daemon=True)
        self._thread.start()

    def save(self, session: SavedSession) -> None:
        """Have ``session`` written; returns at once."""
        with self._changed:
            self._newest = session
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
                if session is None:
                    return
                self._busy = True
            try:
                save_session(session, self.path)
                self.error = None
            except LensError as error:
                self.error = error


def _to_json(session: SavedSession) -> dict[str, Any]:
    steers = [
        {
            "id": row.id,
            "vector": to_json(row.vector),
            "layer": row.layer,
            "scale": row.scale,
            "enabled": row.enabled,
            "arm": row.arm,
            "residual_norm": row.residual_norm,
            "promoted": [[token.token_id, token.text, token.value] for token in row.promoted],
            "suppressed": [[token.token_id, token.text, token.value] for token in row.suppressed],
            "mode": row.mode,
            "positions": to_json(row.positions),
        }
        for row in session.steers
    ]
    return {
        "version": _VERSION,
        "owner": os.getpid(),
        "model": session.model,
        "sae": session.sae,
        "screen": session.screen,
        "prompt": session.prompt,
        "sampling": to_json(session.sampling),
        "steers": steers,
    }


def _from_json(data: Any) -> SavedSession:
    if int(data["version"]) > _VERSION:
        raise ValueError("it was written by a newer version.")
    return SavedSession(
        model=str(data["model"]),
        sae=str(data["sae"]),
        screen=str(data["screen"]),
        prompt=str(data["prompt"]),
        sampling=sampling_from_json(data["sampling"]),
        steers=tuple(_steer(row) for row in data["steers"]),
    )


def _steer(row: Any) -> SavedSteer:
    norm, positions = row.get("residual_norm"), row.get("positions")
    return SavedSteer(
        str(row["id"]),
        vector_from_json(row["vector"]),
        int(row["layer"]),
        float(row["scale"]),
        bool(row["enabled"]),
        int(row["arm"]),
        None if norm is None else float(norm),
        _tokens(row.get("promoted", ())),
        _tokens(row.get("suppressed", ())),
        mode_of(str(row.get("mode", "add"))).id,
        None if positions is None else positions_from_json(positions),
    )


def _tokens(rows: Any) -> tuple[TokenWeight, ...]:
    return tuple(TokenWeight(int(token), sanitise_token(str(text)), float(value)) for token, text, value in rows)
