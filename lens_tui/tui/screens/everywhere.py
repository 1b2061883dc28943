"""What can be called up on every screen: the table of keys, the palette of commands, and the themes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import partial

from textual.app import ComposeResult
from textual.command import CommandPalette, DiscoveryHit, Hit, Hits, Provider
from textual.containers import Vertical
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Input, Static

from lens_tui.tui.format import fit
from lens_tui.tui.host import host
from lens_tui.tui.keys import GROUPS, Key, by_id
from lens_tui.tui.screens.form import Dialog, Once
from lens_tui.tui.themes import HEAT_STEPS, SIGN_STEPS
from lens_tui.tui.widgets.entry import Entry
from lens_tui.tui.widgets.row_list import RowList

Line = tuple[str, str, str]
"""Keys, what they do and the id; a heading has only its text, first."""


class HelpScreen(Dialog[None]):
    """Every key that works on the screen below, in the key table's groups. Typing filters.

    Textual's ``HelpPanel`` takes a third of the width, follows the focused widget alone, and has neither a filter nor
    the ids that a user's ``[keys]`` table names.
    """

    BINDINGS = [("escape", "dismiss", "close"), ("down", "move(1)", "down"), ("up", "move(-1)", "up"),
                ("pagedown", "move(10)", "page down"), ("pageup", "move(-10)", "page up")]  # fmt: skip
    DEFAULT_CSS = """
    HelpScreen .dialog { height: 90%; }
    HelpScreen Input { margin-bottom: 1; }
    HelpScreen RowList { height: 1fr; }
    """

    def __init__(self, below: Screen[object]) -> None:
        super().__init__()
        self._keys = live_keys(below)

    def compose(self) -> ComposeResult:
        """Filter and table."""
        with Vertical(classes="dialog"):
            yield Static("Keys that work here", classes="dialog-title")
            yield Entry(placeholder="type to filter", id="filter", between=" ")
            yield RowList[Line](self._draw, empty="No key matches.", caret=False, id="keys")
            yield Static(
                Content.assemble(
                    ("esc", "bold"), " close   every id can be given other keys under [keys] in the settings"
                ),
                classes="muted",
            )

    def on_mount(self) -> None:
        """Show all of them."""
        self.query_one(RowList).can_focus = False
        self._fill("")
        self.query_one(Input).focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter by key, description or id."""
        self._fill(event.value.strip().lower())

    def _fill(self, words: str) -> None:
        lines: list[Line] = []
        for group in GROUPS:
            found = [
                (keys, key.description, key.id)
                for key, keys in self._keys
                if key.group == group and (not words or words in f"{keys} {key.description} {key.id}".lower())
            ]
            if found:
                lines += [("", "", ""), (group, "", "")] if lines else [(group, "", "")]
                lines += found
        self.query_one(RowList).show(lines, 0)

    def _draw(self, line: Line, width: int) -> list[Content]:
        keys, text, key_id = line
        if not text:
            return [Content.styled(keys, "bold $accent")]
        room = max(10, width - 18 - 24)
        return [Content.assemble((fit(keys, 18), "bold"), fit(text, room), (fit(key_id, 24), "$muted"))]

    def action_move(self, rows: int) -> None:
        """Scroll the table while the filter has the focus."""
        self.query_one(RowList).scroll_relative(y=rows, animate=False)


def live_keys(screen: Screen[object]) -> list[tuple[Key, str]]:
    """Each key of the table that is bound on a screen now, with its keys as written on key caps."""
    caps: dict[str, list[str]] = {}
    for active in screen.active_bindings.values():
        if active.binding.id in by_id():
            caps.setdefault(active.binding.id or "", []).append(screen.app.get_key_display(active.binding))
    return [(key, " ".join(caps[name])) for name, key in by_id().items() if name in caps]


_SKIP = ("move.", "app.commands", "app.next_pane", "app.previous_pane", "app.interrupt")


class Palette(CommandPalette, Once[None]):
    """Textual's palette, closed once."""

    def _action_command_list(self, action: str) -> None:
        with suppress(KeyError):  # keys that come before the list has been laid out
            super()._action_command_list(action)


class LensCommands(Provider):
    """Commands for where the palette was opened: what the keys do, by name, and each theme."""

    def _commands(self) -> Iterator[tuple[str, str, Callable[[], object]]]:
        app = host(self.screen)
        seen: set[str] = set()
        for active in self.screen.active_bindings.values():
            key = by_id().get(active.binding.id or "")
            if key is None or key.id in seen or key.id.startswith(_SKIP):
                continue
            seen.add(key.id)
            cap = app.get_key_display(active.binding)
            run = partial(app.run_action, active.binding.action, active.node)
            yield f"{key.group}: {key.description}", cap, run
        for name in app.themes:
            yield f"Theme: {name}", "", partial(app.keep_theme, name)

    async def discover(self) -> Hits:
        """Everything, before a letter is typed."""
        for name, cap, run in self._commands():
            yield DiscoveryHit(_with_key(Content(name), cap), run, text=name)

    async def search(self, query: str) -> AsyncIterator[Hit]:
        """What matches, best first."""
        matcher = self.matcher(query)
        for name, cap, run in self._commands():
            score = matcher.match(name)
            if score > 0:
                yield Hit(score, _with_key(matcher.highlight(name), cap), run, text=name)


def _with_key(name: Content, cap: str) -> Content:
    return Content.assemble(name, (f"   {cap}", "$muted not bold not underline")) if cap else name


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
