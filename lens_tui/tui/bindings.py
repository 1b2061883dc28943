"""Textual bindings made of the key table."""

from __future__ import annotations

from textual.binding import Binding, BindingType

from .keys import in_scope, split

PRIORITY = frozenset({"app.quit", "app.suspend"})


def bindings(scope: str) -> list[BindingType]:
    """The bindings of one scope, for a class's ``BINDINGS``: each carries its id, so that users can move it."""
    return [
        Binding(
            ",".join(split(key.keys)),
            key.action,
            key.description,
            show=bool(key.footer),
            id=key.id,
            tooltip=key.description,
            priority=key.id in PRIORITY,
        )
        for key in in_scope(scope)
    ]
