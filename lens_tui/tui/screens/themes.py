"""The theme picker: each theme shows itself while the cursor is on it."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

from lens_tui.tui.host import host
from lens_tui.tui.themes import HEAT_STEPS, SIGN_STEPS
from lens_tui.tui.widgets.row_list import RowList

from .form import Dialog


class ThemeScreen(Dialog[None]):
    """Move to preview, enter to keep, escape to go back to the theme before."""

    BINDINGS = [("escape,q", "cancel", "cancel"), ("enter", "keep", "keep")]
    DEFAULT_CSS = """
    ThemeScreen { align: right top; background: transparent; }
    ThemeScreen .dialog { width: 50; margin: 2 2; }
    ThemeScreen RowList { height: auto; max-height: 12; }
    """

    def compose(self) -> ComposeResult:
        """The themes and the ramps of the one shown."""
        self._before = self.app.theme
        with Vertical(classes="dialog"):
            yield Static("Theme", classes="dialog-title")
            yield RowList[str](self._draw, id="themes")
            yield Static(Content.assemble("\n", ("⏎", "bold"), " keep   ", ("esc", "bold"), " back"), classes="muted")

    def _draw(self, name: str, width: int) -> list[Content]:
        variables = host(self).themes[name].variables
        heat = [("  ", f"on {variables[f'heat-{step}']}") for step in range(HEAT_STEPS)]
        sign = [(" ", f"on {variables[f'sign-{step}']}") for step in range(SIGN_STEPS)]
        return [Content.assemble(f"{name:<12}", *heat, " ", *sign)]

    def on_mount(self) -> None:
        """Start at the theme that is on."""
        names = list(host(self).themes)
        themes = self.query_one("#themes", RowList)
        themes.show(names, names.index(self._before) if self._before in names else 0)
        themes.styles.height = min(len(names), 12)
        themes.focus()

    def on_row_list_moved(self, event: RowList.Moved) -> None:
        """Show the theme under the cursor."""
        name = event.row_list.row
        if isinstance(name, str):
            self.app.theme = name

    def action_keep(self) -> None:
        """Keep the theme that shows."""
        host(self).keep_theme(self.app.theme)
        self.dismiss()

    def action_cancel(self) -> None:
        """Go back to the theme before."""
        self.app.theme = self._before
        self.dismiss()
