"""The keys: one table of plain data, the user's changes to it checked, and Textual bindings made of it.

Importing this package does not import Textual, so that the command line can
print and check keys without the app.
"""

from __future__ import annotations

from .check import check_keymap, clashes
from .table import GROUPS, KEYS, PANES, SCREENS, Key, by_id, in_scope

__all__ = ["GROUPS", "KEYS", "PANES", "SCREENS", "Key", "by_id", "check_keymap", "clashes", "in_scope"]
