"""What widgets and screens may ask of the app, so that they need not know the app itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from textual.dom import DOMNode

    from .app import LensApp as LensHost
else:
    LensHost = object

__all__ = ["LensHost", "host"]


def host(node: DOMNode) -> LensHost:
    """The running :class:`~lens_tui.tui.app.LensApp`, typed."""
    return cast("LensHost", node.app)
