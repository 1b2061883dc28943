"""Where things are kept: the platform's folders, or one folder named by ``LENS_TUI_HOME``.

On Linux these follow XDG, on macOS ``~/Library``. With ``LENS_TUI_HOME`` set
everything is under that folder, which is what tests and portable installs use;
``LENS_TUI_CONFIG`` names a file of settings in the place of the one there.
Asking for a path never creates anything; :func:`refusal`, which says why a
folder cannot be written, makes it.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Literal

APP = "mlx-lens-tui"
HOME_VARIABLE = "LENS_TUI_HOME"
CONFIG_VARIABLE = "LENS_TUI_CONFIG"

Kind = Literal["config", "data", "state", "cache"]


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with ``~`` and ``~user`` as their folders; of a user who does not exist it stays as it is.

    ``Path.expanduser`` raises there, and so at every letter of a path that is being typed.
    """
    return Path(os.path.expanduser(path))


def folder(kind: Kind) -> Path:
    """The folder for settings (config), things made (data), sessions and logs (state), or what can be made again."""
    if home := os.environ.get(HOME_VARIABLE):
        return expanded(home) / kind
    import platformdirs

    found = {
        "config": platformdirs.user_config_path,
        "data": platformdirs.user_data_path,
        "state": platformdirs.user_state_path,
        "cache": platformdirs.user_cache_path,
    }[kind](APP, appauthor=False)
    # macOS has one folder for config, data and state: keep them apart inside it.
    shared = platformdirs.user_config_path(APP, appauthor=False) == platformdirs.user_state_path(APP, appauthor=False)
    return found / kind if shared and kind != "cache" else found


def settings_file() -> Path:
    """The user's settings, TOML: the file that ``LENS_TUI_CONFIG`` names, or the one in the folder for settings."""
    if named := os.environ.get(CONFIG_VARIABLE):
        return expanded(named)
    return folder("config") / "settings.toml"


def themes_folder() -> Path:
    """The user's own themes."""
    return folder("config") / "themes"


def vectors_folder() -> Path:
    """Saved steering vectors."""
    return folder("data") / "vectors"


def saes_folder() -> Path:
    """SAEs trained here."""
    return folder("data") / "saes"


def indexes_folder() -> Path:
    """Feature indexes built here."""
    return folder("data") / "indexes"


def jacobian_lenses_folder() -> Path:
    """Jacobian lenses fitted here, a file a model."""
    return folder("data") / "jacobian-lenses"


def exports_folder() -> Path:
    """Where runs are exported to unless another folder is named."""
    return folder("data") / "exports"


def copied_file() -> Path:
    """The text last copied, where no clipboard is known to have taken it."""
    return folder("state") / "copied.txt"


def database_file() -> Path:
    """Runs and labels, SQLite."""
    return folder("data") / "lens.sqlite3"


def database_kept() -> bool:
    """Whether anything was ever kept in the database."""
    try:
        return database_file().stat().st_size > 0
    except OSError:
        return False


def sessions_folder() -> Path:
    """What was on the screen of each app that runs or was cut off, a file a process, to take up again."""
    return folder("state") / "sessions"


def session_file() -> Path:
    """Where versions up to 0.1 kept the one session there was."""
    return folder("state") / "session.json"


def last_session_file() -> Path:
    """What was on the screen of the app that ended well last, for ``--resume``."""
    return folder("state") / "last-session.json"


def unfinished_file() -> Path:
    """Indexes and trainings that were begun and are not done."""
    return folder("state") / "unfinished.json"


def recent_file() -> Path:
    """Model folders and ids used lately."""
    return folder("state") / "recent.json"


def refusal(place: Path) -> str:
    """Why nothing can be written into a folder, in the system's words; empty if something can. Makes the folder."""
    probe = place / f".{os.getpid()}.probe"
    try:
        place.mkdir(parents=True, exist_ok=True)
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT, 0o600))
        probe.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def settle_temporary() -> None:
    """Have a folder for temporary files that can be written to, which MLX compiles in on a CPU.

    ``TMPDIR`` is set if the one that there is cannot be used; with none at all MLX is told to compile nothing.
    """
    first = next((os.environ[name] for name in _TEMPORARY if os.environ.get(name)), "/tmp")
    for place in map(Path, (first, "/tmp", "/var/tmp")):
        if _holds(place):
            break
    else:
        place = folder("cache")
        if refusal(place) or not _holds(place):
            os.environ["MLX_DISABLE_COMPILE"] = "1"
            return
    if str(place) != first:
        os.environ["TMPDIR"] = str(place)


def _holds(place: Path) -> bool:
    """Whether a folder is there and takes a small file: a full one may still take an empty one."""
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(_SMALL))
    except OSError:
        return False
    return True


_SMALL = 1 << 16
_TEMPORARY = ("TMPDIR", "TMP", "TEMP", "TEMPDIR")
"""What C++ looks at, in its order."""


def log_file() -> Path:
    """The log; older ones are beside it with a number."""
    return folder("state") / "lens.log"
