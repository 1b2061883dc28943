"""The command ``mlx-lens-tui``: opens the app, or answers one question without it.

Nothing heavy is imported here; each verb imports what it needs when it runs.
"""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command line; the console script's entry point."""
    from .app import run

    run()
