"""How an SAE is typed: a path or a name, and after ``@`` the place it reads, for files that do not say it."""

from __future__ import annotations

import re
from pathlib import Path

_PLACE = re.compile(r"(?P<name>.+)@(?P<layer>\d{1,4})(?::(?P<site>[a-z_]+))?")


def split_place(text: str) -> tuple[str, int | None, str | None]:
    """``sae.pt@4:mlp_out`` as path or name, layer and site; the site is ``resid_post`` if only a layer is given.

    What exists on disk under the whole text is taken as it stands. ``None`` where nothing is said.
    """
    match = _PLACE.fullmatch(text.strip())
    if match is None or Path(text).expanduser().exists():
        return text, None, None
    return match["name"], int(match["layer"]), match["site"] or "resid_post"
