"""What can be called up on every screen: the table of keys with what the numbers are, and the themes."""

from __future__ import annotations

from textwrap import wrap
from typing import Any, NamedTuple

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Input, Static

from lens_tui.records import glossary
from lens_tui.records.glossary_terms import GlossaryTerm
from lens_tui.tui.format import fit
from lens_tui.tui.host import host
from lens_tui.tui.keys import GROUPS, SCREENS, Key, by_id
from lens_tui.tui.screens.form import Dialog
from lens_tui.tui.themes import HEAT_STEPS, SIGN_STEPS
from lens_tui.tui.widgets.entry import Entry
from lens_tui.tui.widgets.frame import Pane
from lens_tui.tui.widgets.row_list import NO_CURSOR, RowList


class SheetLine(NamedTuple):
    """One line of the sheet: what is in its first column, its text, and what stands muted at its right end.

    A heading has only a ``head``; a line that goes on has none.
    """

    head: str = ""
    text: str = ""
    end: str = ""
    muted: bool = False


HEAD = 16
"""Cells of the first column: keys, or the name of a number."""
ID = 24
"""Cells of a key's id, where there is room for it."""
PAGES = ("Keys", "Numbers")


class HelpScreen(Dialog[None]):
    """Two pages: every key that works on the screen below, and what every number on it is. Typing filters both.

    Textual's ``HelpPanel`` takes a third of the width, follows the focused widget alone, and has neither a filter nor
    the ids that a user's ``[keys]`` table names.

    Args:
        below: the screen that is explained.
        words: what is filtered by at first; with it the page of numbers shows.
    """

    BINDINGS = [
        Binding("escape", "dismiss", "close"),
        Binding("down", "move(1)", "down"),
        Binding("up", "move(-1)", "up"),
        Binding("pagedown", "move(10)", "page down"),
        Binding("pageup", "move(-10)", "page up"),
        Binding("tab,shift+tab", "turn", "the other page"),
    ]
    DEFAULT_CSS = """
    HelpScreen .dialog { width: 96%; max-width: 104; height: 90%; }
    HelpScreen Input { margin-bottom: 1; }
    HelpScreen RowList { height: 1fr; }
    """

    def __init__(self, below: Screen[Any], words: str = "") -> None:
        super().__init__()
        self._keys = live_keys(below)
        self._here = _explained(below)
        self._where = dict(SCREENS).get(str(getattr(below, "mode", "")), "")
        self._page, self._words = PAGES[1] if words else PAGES[0], words

    def compose(self) -> ComposeResult:
        """Pages, filter and table."""
        with Vertical(classes="dialog"):
            yield Static("", id="pages", classes="dialog-title")
            yield Entry(self._words, placeholder="type to filter", id="filter", between=" ")
            yield RowList[SheetLine](self._draw, empty="Nothing matches.", caret=False, id="keys")
            yield Static("", id="hint", classes="muted")

    def on_mount(self) -> None:
        """Show all of them."""
        self.query_one(RowList).can_focus = False
        self.query_one(Input).focus()
        self._fill()

    def on_resize(self) -> None:
        """Lines are as long as there is room."""
        self.call_after_refresh(self._fill)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter by key, description or id; numbers by name, other names or definition."""
        self._words = event.value
        self._fill()

    def action_turn(self) -> None:
        """The other page."""
        self._page = PAGES[1 - PAGES.index(self._page)]
        self._fill()

    def _fill(self) -> None:
        words, table = self._words.strip().casefold(), self.query_one(RowList)
        width = (table.scrollable_content_region.width or 60) - len(NO_CURSOR) - 1  # the scroll bar, come or not
        makers = {"Keys": self._key_lines, "Numbers": self._number_lines}
        order = [self._page, *(page for page in PAGES if page != self._page and words)]
        parts = [part for page in order if (part := makers[page](words, width))]
        lines: list[SheetLine] = []
        for part in parts:
            lines += [SheetLine(), *part] if lines else part
        table.show(lines, 0)
        table.scroll_home(animate=False)
        names = [(f"▐{name}▌" if name == self._page else f" {name} ", "" if name == self._page else "$muted")
                 for name in PAGES]  # fmt: skip
        self.query_one("#pages", Static).update(Content.assemble(*names, (f"  {self._where}", "$muted")))
        says = {
            "Keys": "ids are for [keys] in the settings" if _has_ids(width) else "`mlx-lens-tui keys` has their ids",
            "Numbers": "all of them: `mlx-lens-tui glossary`",
        }[self._page]
        self.query_one("#hint", Static).update(
            Content.assemble(("esc", "bold"), " close   ", ("tab", "bold"), f" the other page   {says}")
        )

    def _key_lines(self, words: str, width: int) -> list[SheetLine]:
        lines: list[SheetLine] = []
        for group in (*GROUPS[2:], *GROUPS[1::-1]):  # what works everywhere is known soonest: it is last
            found = [
                line
                for key, keys in self._keys
                if key.group == group and (not words or words in f"{keys} {key.description} {key.id}".casefold())
                for line in _wrapped(keys, key.description, key.id if _has_ids(width) else "", width)
            ]
            if found:
                lines += [SheetLine(), SheetLine(group)] if lines else [SheetLine(group)]
                lines += found
        return lines

    def _number_lines(self, words: str, width: int) -> list[SheetLine]:
        terms = glossary.find(words) if words else self._terms()
        lines: list[SheetLine] = []
        for term in terms:
            lines += [SheetLine()] if lines else []
            named = _wrapped(term.name, term.means, "", width)
            unit = wrap(term.unit_and_source, max(20, width - HEAD)) or [""]
            lines += [*named, *(SheetLine("", part, muted=True) for part in unit)]
        if not terms and not words:
            lines.append(SheetLine("", "This screen has no numbers of its own; type one to look it up."))
        return lines

    def _terms(self) -> list[GlossaryTerm]:
        """What the screen's numbers are: those of the pane with the focus first."""
        here = [glossary.by_id(name) for name in self._here]
        return [*here, *(term for term in glossary.on_screen(self._where) if term not in here)]

    def _draw(self, line: SheetLine, width: int) -> list[Content]:
        if not line.text:
            return [Content.styled(line.head, "bold $accent")]
        room = max(10, width - HEAD - (ID if _has_ids(width) and line.end else 0))
        text = (fit(line.text, room), "$muted" if line.muted else "")
        return [Content.assemble((fit(line.head, HEAD), "bold"), text, (line.end, "$muted"))]

    def action_move(self, rows: int) -> None:
        """Scroll the table while the filter has the focus."""
        self.query_one(RowList).scroll_relative(y=rows, animate=False)


def _explained(below: Screen[Any]) -> tuple[str, ...]:
    """The numbers of the pane with the focus, by their ids in the glossary."""
    around = below.focused.ancestors_with_self if below.focused is not None else ()
    pane = next((node for node in around if isinstance(node, Pane)), None)
    return () if pane is None else tuple(dict.fromkeys(pane.explains))


def _has_ids(width: int) -> bool:
    """Whether there is room for the keys' ids beside what they do."""
    return width >= HEAD + ID + 44


def _wrapped(head: str, text: str, end: str, width: int) -> list[SheetLine]:
    """A head and its text in as many lines as they need; ``end`` is in the first of them."""
    texts = wrap(text, max(20, width - HEAD - (ID if end else 0) - 1)) or [""]
    heads = wrap(head, HEAD - 1) or [""]
    rows = range(max(len(texts), len(heads)))
    return [
        SheetLine(heads[at] if at < len(heads) else "", texts[at] if at < len(texts) else " ", end if at == 0 else "")
        for at in rows
    ]


def live_keys(screen: Screen[object]) -> list[tuple[Key, str]]:
    """Each key of the table that is bound on a screen now, with its keys as written on key caps."""
    caps: dict[str, list[str]] = {}
    for active in screen.active_bindings.values():
        if active.binding.id in by_id():
            caps.setdefault(active.binding.id or "", []).append(screen.app.get_key_display(active.binding))
    return [(key, " ".join(caps[name])) for name, key in by_id().items() if name in caps]


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
        self._looks = host(self).looks
        self._before = self._looks.chosen
        with Vertical(classes="dialog"):
            yield Static("Theme", classes="dialog-title")
            yield RowList[str](self._draw, id="themes")
            yield Static(Content.assemble("\n", ("⏎", "bold"), " keep   ", ("esc", "bold"), " back"), classes="muted")

    def _draw(self, name: str, width: int) -> list[Content]:
        variables = host(self).themes[self._looks.theme_of(name)].variables
        heat = [("  ", f"on {variables[f'heat-{step}']}") for step in range(HEAT_STEPS)]
        sign = [(" ", f"on {variables[f'sign-{step}']}") for step in range(SIGN_STEPS)]
        return [Content.assemble(f"{name:<12}", *heat, " ", *sign)]

    def on_mount(self) -> None:
        """Start at the theme that is on."""
        names = self._looks.names
        themes = self.query_one("#themes", RowList)
        themes.show(names, names.index(self._before) if self._before in names else 0)
        themes.styles.height = min(len(names), 12)
        themes.focus()

    def on_row_list_moved(self, event: RowList.Moved) -> None:
        """Show the theme under the cursor."""
        name = event.row_list.row
        if isinstance(name, str):
            self._looks.show(name)

    def action_keep(self) -> None:
        """Keep the theme that shows."""
        host(self).keep_theme(self._looks.chosen)
        self.dismiss()

    def action_cancel(self) -> None:
        """Go back to the theme before."""
        self._looks.show(self._before)
        self.dismiss()
