"""What of the user's settings the app starts with. Without a settings file nothing heavy is imported."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lens_tui.records import LensError, Sampling, paths

if TYPE_CHECKING:
    from lens_tui.records.info import Dequantize

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Preferences:
    """The settings the app reads at its start; ``problems`` says what in the file could not be used."""

    theme: str = ""
    tint: str = "tint"
    keys: Mapping[str, str] = field(default_factory=dict)
    sampling: Sampling | None = None
    model: str = ""
    keep_session: bool = True
    keep_history: bool = True
    folders: tuple[str, ...] = ()
    dequantize: Dequantize = "auto"
    problems: tuple[str, ...] = ()


def preferences() -> Preferences:
    """The user's settings, or the defaults with the reason why they could not be read."""
    if not paths.settings_file().exists():
        return Preferences()
    from lens_tui.records.settings import load_settings

    try:
        settings = load_settings()
    except LensError as error:
        return Preferences(problems=(str(error),))
    return Preferences(
        settings.look.theme,
        settings.look.tint,
        settings.keys,
        settings.generate.sampling(),
        settings.models.open,
        settings.keep.session,
        settings.keep.history,
        tuple(settings.models.folders),
        settings.models.dequantize,
    )


def remember_theme(name: str) -> str:
    """Write the theme into the user's settings, leaving the rest of the file as it is; says why if it cannot."""
    from lens_tui.records.settings import set_one

    try:
        set_one("look", "theme", name)
    except (LensError, OSError) as error:
        _log.warning("the theme could not be remembered: %s", error)
        return f"The theme is not remembered. {error}"
    return ""
