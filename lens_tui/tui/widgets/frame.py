"""What every screen is made of: header, status and footer, the hairlines between them, panes, and its base class.

A screen is one file in ``screens`` with a ``.tcss`` of the same name beside it. It
subclasses :class:`LensScreen`, sets ``mode``, yields its panes from ``body``
and, where it cares, overrides ``session_changed``. A pane with a state of its own
is a widget that keeps it; the screen takes messages from one pane to another. It asks for work with
``self.lens.submit(job, slot, handler)``; the handler gets that job's events
until the job ends or another job takes its slot.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, ClassVar

from rich.cells import cell_len
from textual import events
from textual.app import ComposeResult, RenderResult
from textual.binding import Binding
from textual.containers import Container, Vertical, VerticalScroll
from textual.content import Content
from textual.geometry import Size
from textual.reactive import reactive
from textual.screen import Screen
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Input, Static

from lens_tui.records.wording import many
from lens_tui.tui.bindings import bindings
from lens_tui.tui.format import bar, fit, model_name, size
from lens_tui.tui.host import BUSY, FAILED, Activity, LensHost, host
from lens_tui.tui.keys import SCREENS, by_id
from lens_tui.tui.session import Session
from lens_tui.tui.tour import TourLine
from lens_tui.tui.widgets.dirty_compositor import DirtyCompositor


class Divider(Widget):
    """One cell wide or one cell high, whichever its size says."""

    DEFAULT_CSS = "Divider { width: 1; height: 1fr; color: $hairline; }"

    def render(self) -> RenderResult:
        """A thin line in the longer direction."""
        if self.size.width > 1:
            return Content("─" * self.size.width)
        return Content("\n".join("│" * self.size.height))


APP_NAME = "lens"


def takes_text(widget: Widget | None) -> bool:
    """Whether keys are letters there: an ``Input``, or a text area, which says so itself (importing it is slow)."""
    return isinstance(widget, Input) or bool(getattr(widget, "takes_text", False))


class Hairline(Widget):
    """A rule of one row across the screen."""

    DEFAULT_CSS = "Hairline { height: 1; color: $hairline; }"

    def render(self) -> RenderResult:
        """One thin line."""
        return Content("─" * self.size.width)


class Header(Widget):
    """What is loaded, on the left; the screens, on the right, the current one between bars."""

    DEFAULT_CSS = "Header { height: 1; padding: 0 1; }"

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def on_mount(self) -> None:
        """Follow the session."""
        host(self).store.subscribe(self._changed)

    def _changed(self, old: Session, new: Session) -> None:
        if (old.model, old.saes) != (new.model, new.saes):
            self.refresh()

    def render(self) -> RenderResult:
        """Both halves; the left is cut first when there is no room."""
        width = self.size.width
        right = self._screens(full=width >= 72)
        room = width - cell_len(right.plain) - 1
        left = Content.assemble((APP_NAME, "bold"), (" ▏ ", "$muted"), *self._model(room - len(APP_NAME) - 3))
        return Content.assemble(left.truncate(max(0, room), ellipsis=True, pad=True), " ", right)

    def _model(self, room: int) -> list[tuple[str, str]]:
        session = host(self).store.session
        model = session.model
        if model is None:
            return [("no model", "$muted")]
        facts = [many(model.n_layers, "layer"), f"d {model.d_model}", size(model.nbytes)]
        transcoders = sum(sae.is_transcoder for sae in session.saes)
        counts = {"SAE": len(session.saes) - transcoders, "transcoder": transcoders}
        facts += [many(number, noun) for noun, number in counts.items() if number]
        name = model_name(model.name, room)
        while facts and cell_len(" · ".join([name, *facts])) > room:
            facts.pop()
        return [(name, ""), ("".join(f" · {fact}" for fact in facts), "$muted")]

    def _screens(self, full: bool) -> Content:
        parts: list[tuple[str, str]] = []
        for number, (mode, title) in enumerate(SCREENS, 1):
            if mode == self.mode:
                parts.append((f"▐{number} {title}▌", "bold $accent"))
            else:
                parts.append((f" {number} {title} " if full else f" {number} ", "$muted"))
        return Content.assemble(*parts)

    def on_click(self, event: object) -> None:
        """A click on a screen's name goes there."""
        offset = getattr(event, "x", 0) - 1
        right = self._screens(full=self.size.width >= 72)
        at = offset - (self.size.width - cell_len(right.plain))
        edge = 0
        for number, (mode, title) in enumerate(SCREENS, 1):
            text = f" {number} {title} " if self.size.width >= 72 or mode == self.mode else f" {number} "
            if edge <= at < edge + len(text):
                host(self).action_show(mode)
            edge += len(text)


class Status(Widget):
    """What is happening, how far it is and how to stop it; or, when idle, what happened last."""

    DEFAULT_CSS = "Status { height: 1; padding: 0 1; }"

    REST = 0.2  # seconds between repaints for figures alone: faster cannot be read, and costs a band of the screen

    def on_mount(self) -> None:
        """Follow the work."""
        self._due: Timer | None = None
        self.watch(self.app, "activity", self.follow, init=False)

    def follow(self, old: Activity, new: Activity) -> None:
        """Paint at once when the state, the stage or the note changes, and now and then while only figures do."""
        if (old.state, old.job, old.stage, old.note) != (new.state, new.job, new.stage, new.note):
            self.refresh_now()
        elif self._due is None:
            self._due = self.set_timer(self.REST, self.refresh_now)

    def refresh_now(self) -> None:
        """Paint what is so now."""
        if self._due is not None:
            self._due.stop()
            self._due = None
        self.refresh()

    def render(self) -> RenderResult:
        """One row, exactly as wide as the screen."""
        app = host(self)
        activity, width = app.activity, self.size.width
        if activity.state == BUSY:
            return _busy(activity, width, app.key_text("app.stop"))
        if activity.state == FAILED:
            return Content.assemble(("✗ ", "$error bold"), (fit(activity.note, width - 2), "$error"))
        return Content.assemble(("○ ", "$muted"), (fit(activity.note or "idle", width - 2), "$muted"))


def _busy(activity: Activity, width: int, stop: str) -> Content:
    right = f"  {stop} stop"
    facts = activity.facts()
    room = width - len(right) - cell_len(facts) - 2
    label = _called(activity, max(12, room - 16))  # the bar keeps ten cells
    meter_width = max(0, min(40, room - cell_len(label) - 6))
    parts: list[str | tuple[str, str]] = [("● ", "$accent"), label, "  "]
    if activity.fraction is not None and meter_width >= 8:
        parts += [
            ("▕", "$muted"),
            (bar(activity.fraction, meter_width).ljust(meter_width), "$accent"),
            ("▏ ", "$muted"),
        ]
    parts.append((facts, "$muted"))
    left = Content.assemble(*parts).truncate(max(0, width - len(right)), ellipsis=True, pad=True)
    return Content.assemble(left, (right, ""))


def _called(activity: Activity, room: int) -> str:
    """The job and its stage; where there is no room for both, the stage."""
    stage = activity.stage if activity.stage != activity.title else ""
    title = f"stopping: {activity.title}" if activity.stopping else activity.title
    label = f"{title} · {stage}" if stage else title
    if cell_len(label) > room and stage and not activity.stopping:
        label = stage
    return fit(label, min(room, cell_len(label)))


class Footer(Widget):
    """The mode and the keys that work here, as many as fit; the last two are always help and commands."""

    DEFAULT_CSS = "Footer { height: 1; padding: 0 1; }"

    def on_mount(self) -> None:
        """Follow focus and key changes."""
        self.screen.bindings_updated_signal.subscribe(self, lambda _screen: self.refresh())

    def render(self) -> RenderResult:
        """The keys that fit in one row."""
        width = self.size.width
        inserting = takes_text(self.screen.focused)
        mode = ("INSERT", "bold reverse") if inserting else ("NORMAL", "bold $muted")
        pairs, tail = footer_keys(self.screen, inserting)
        tail_text = "  ".join(f"{keys} {word}" for keys, word in tail)
        parts: list[str | tuple[str, str]] = [mode, "  "]
        room = width - len(mode[0]) - 2 - cell_len(tail_text) - 2
        for keys, word in pairs:
            need = cell_len(keys) + cell_len(word) + 3
            if need > room:
                break
            parts += [(keys, "bold"), (f" {word}  ", "$muted")]
            room -= need
        parts.append(" " * max(0, room + 2))
        for place, (keys, word) in enumerate(tail):
            parts += ["  " if place else "", (keys, "bold"), (f" {word}", "$muted")]
        return Content.assemble(*parts)


def footer_keys(screen: Screen[Any], inserting: bool) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The live keys with a word for the footer, as ``(keys, word)``: those of the place, and the two that stay."""
    if inserting:
        return getattr(screen.focused, "typing_keys", TYPING_KEYS), []
    live: dict[str, list[str]] = {}
    for active in screen.active_bindings.values():
        key = by_id().get(active.binding.id or "")
        if key is not None and key.footer and active.enabled:
            live.setdefault(key.id, []).append(screen.app.get_key_display(active.binding))
    words: dict[str, list[str]] = {}
    for key_id in sorted(live, key=list(by_id()).index):
        words.setdefault(by_id()[key_id].footer, []).append(live[key_id][0])
    tail_words = [by_id()[name].footer for name in ("app.help", "app.commands")]
    tail = [(" ".join(words.pop(word)), word) for word in tail_words if word in words]
    run = words.pop("run", None)
    pairs = [("run", run)] if run else []
    return [(" ".join(keys), word) for word, keys in [*pairs, *words.items()]], tail


TYPING_KEYS = [("⏎", "done"), ("esc", "leave")]
"""What the footer says while something is typed, unless what is typed in has ``typing_keys`` of its own."""

NAME = 4
"""Cells of a title that are left before a note gives way too, where the title gives way first."""


class PaneTitle(Widget):
    """The title on the left, a note on the right. Both are plain text, never markup.

    Where there is no room for both the note goes; with ``keeps_note`` the title is cut for it, and of the note what
    comes after a ``·``, the last first; what ``spare`` finds in it goes before the title is cut. ``edges`` stand before
    and behind both, whatever room there is.
    """

    keeps_note = False
    spare: re.Pattern[str] | None = None

    DEFAULT_CSS = "PaneTitle { height: 1; }"

    note: reactive[str] = reactive("")
    text: reactive[str] = reactive("")
    edges: reactive[tuple[str, str]] = reactive(("", ""))

    def render(self) -> RenderResult:
        """Title and note in one row, or as much of them as there is room for, between the edges."""
        left, right = self.edges
        before, behind = (f"{left}  " if left else ""), (f"  {right}" if right else "")
        inner = self._inner(self.size.width - cell_len(before) - cell_len(behind), bool(right))
        return Content.assemble((before, "$muted not bold"), inner, (behind, "$muted not bold"))

    def _inner(self, width: int, filled: bool) -> Content:
        content = self._title_and_note(width)
        return content.pad_right(max(0, width - content.cell_length)) if filled else content

    def _title_and_note(self, width: int) -> Content:
        title, said = Content(self.text), self.note
        if self.keeps_note and said:
            if self.spare is not None and width - cell_len(said) - 1 < title.cell_length:
                said = self.spare.sub("", said)
            while " · " in said and width - cell_len(said) - 1 < min(NAME, title.cell_length):
                said = said.rpartition(" · ")[0]
            title = title.truncate(max(0, width - cell_len(said) - 1), ellipsis=True)
        note = Content.styled(said, "$muted not bold") if said else Content("")
        gap = width - title.cell_length - note.cell_length
        if gap < 1:
            return (note if self.keeps_note and said else title).truncate(width, ellipsis=True)
        return Content.assemble(title, " " * gap, note)


class SessionPart(Vertical):
    """A part of a screen that asks for work of its own and knows the session."""

    @property
    def lens(self) -> LensHost:
        """The app, typed."""
        return host(self)

    @property
    def session(self) -> Session:
        """The session as it is now."""
        return host(self).store.session


class Pane(SessionPart):
    """A titled part of a screen.

    ``title`` and ``note`` may be set at any time. A subclass keeps what it shows, asks for
    work through ``lens`` and posts messages about what concerns other panes. ``keeps_note``: where there is no room
    for title and note, the title gives way, but not before what ``spare`` finds in the note.
    """

    ALLOW_MAXIMIZE = True
    keeps_note: ClassVar[bool] = False
    spare: ClassVar[re.Pattern[str] | None] = None
    DEFAULT_CSS = """
    Pane {
        border-left: blank; padding: 0 1 0 0;
        &:focus-within { border-left: wide $accent; }
        &:focus-within > PaneTitle { text-style: bold; color: $foreground; }
        & > PaneTitle { color: $muted; }
    }
    """

    @property
    def explains(self) -> tuple[str, ...]:
        """The glossary's ids of the numbers in this pane, those under its cursor first: ``?`` begins with them."""
        return ()

    def __init__(self, title: str, *children: Widget, note: str = "", id: str | None = None) -> None:  # noqa: A002
        self._heading = PaneTitle()
        self._heading.set_reactive(PaneTitle.text, title)
        self._heading.set_reactive(PaneTitle.note, note)
        self._heading.keeps_note, self._heading.spare = self.keeps_note, self.spare
        super().__init__(self._heading, *children, id=id)

    @property
    def title(self) -> str:
        """The title shown."""
        return self._heading.text

    @title.setter
    def title(self, value: str) -> None:
        self._heading.text = value

    @property
    def edges(self) -> tuple[str, str]:
        """What stands at the two ends of the title row."""
        return self._heading.edges

    @edges.setter
    def edges(self, value: tuple[str, str]) -> None:
        self._heading.edges = value

    @property
    def note(self) -> str:
        """What is at the right end of the title row."""
        return self._heading.note

    @note.setter
    def note(self, value: str) -> None:
        self._heading.note = value


class Scroll(VerticalScroll, inherit_bindings=False):
    """A page longer than its pane: the keys that move in every list move it."""

    BINDINGS: ClassVar = [
        key
        for key in bindings("move")
        if isinstance(key, Binding) and key.action not in ("cursor_left", "cursor_right")
    ]
    # With or without the bar a page has one width: it would be laid out anew for the other, and might then need none.
    DEFAULT_CSS = "Scroll { scrollbar-gutter: stable; }"

    def action_cursor_down(self) -> None:
        """A line on."""
        self.scroll_down(animate=False)

    def action_cursor_up(self) -> None:
        """A line back."""
        self.scroll_up(animate=False)

    def action_page_down(self) -> None:
        """Half a page on."""
        self.scroll_relative(y=max(1, self.size.height // 2), animate=False)

    def action_page_up(self) -> None:
        """Half a page back."""
        self.scroll_relative(y=-max(1, self.size.height // 2), animate=False)

    def action_first(self) -> None:
        """The first line."""
        self.scroll_home(animate=False)

    def action_last(self) -> None:
        """The last line."""
        self.scroll_end(animate=False)


MIN_WIDTH, MIN_HEIGHT = 60, 16


def is_too_small(size: Size) -> bool:
    """Whether a terminal of this size has room for no screen."""
    return size.width < MIN_WIDTH or size.height < MIN_HEIGHT


class LensScreen(Screen[None], inherit_bindings=False):
    """The base of every screen that has a mode.

    CSS classes follow the size of the terminal: ``-narrow`` below 100 columns,
    ``-wide`` from there; ``-flat`` below 22 rows, ``-short`` below 30, ``-tall`` from there. Below
    60 x 16 one line says what is needed and nothing else shows.
    """

    mode: ClassVar[str] = ""
    COMMANDS: ClassVar[set[Any]] = {lambda: import_module("lens_tui.tui.screens.palette").ScreenCommands}
    AUTO_FOCUS: ClassVar[str | None] = None
    HORIZONTAL_BREAKPOINTS = [
        (0, "-tiny-w"),
        (MIN_WIDTH, "-narrow"),
        (100, "-wide"),
    ]
    VERTICAL_BREAKPOINTS = [(0, "-tiny-h"), (MIN_HEIGHT, "-flat"), (22, "-short"), (30, "-tall")]
    ALLOW_IN_MAXIMIZED_VIEW = "Header, Status, Footer, Hairline, TooSmall, TourLine"
    DEFAULT_CSS = """
    LensScreen {
        background: $background; color: $foreground; layers: base;
        & > #body { height: 1fr; }
        /* Textual puts a maximised pane before all that stays: without this it would stand over the header. */
        &.-maximized-view > Header { dock: top; }
        &.-maximized-view > #head-rule { dock: top; margin: 1 0 0 0; }
        & > TooSmall { display: none; }
        &.-tiny-w > *, &.-tiny-h > * { display: none; }
        &.-tiny-w > TooSmall, &.-tiny-h > TooSmall { display: block; }
    }
    """

    def __init__(self) -> None:
        super().__init__()
        self._compositor = DirtyCompositor()
        # Styles are applied as the screen is mounted. A count left behind has Textual parse every sheet of the app
        # again when the screen first shows: about a quarter of the time that takes.
        self._css_update_count = self.app._css_update_count
        self._focus_before: Widget | None = None
        self._set_size_classes(self.app.size, update=False)

    @property
    def lens(self) -> LensHost:
        """The app, typed."""
        return host(self)

    @property
    def session(self) -> Session:
        """The session as it is now."""
        return self.lens.store.session

    def _set_size_classes(self, size: Size, update: bool = True) -> None:
        """The size's classes. Textual sets them after the first layout, in which a screen would flash in that of
        another size, and not at all under a dialogue."""
        ranges = (self.HORIZONTAL_BREAKPOINTS, self.VERTICAL_BREAKPOINTS)
        for length, breakpoints in zip(size, ranges, strict=True):
            now = self._get_breakpoint_classes(length, breakpoints or [])
            self.remove_class(*({name for _, name in breakpoints or []} - now), update=update)
            self.add_class(*now, update=update)

    def _screen_resized(self, size: Size) -> None:
        """Textual takes the focus from what has no room; a screen under a dialogue is told here too."""
        # Of a terminal that is too small alone: at other times what has no focus yet may be about to get it.
        small = is_too_small(size)
        if small and self.focused is not None:
            self._focus_before = self.focused
        self._set_size_classes(size)
        super()._screen_resized(size)
        if not small and self._focus_before is not None:
            self.call_after_refresh(self._focus_again)

    def _focus_again(self) -> None:
        kept, self._focus_before = self._focus_before, None
        if self.focused is None and kept is not None and kept.is_attached and kept.screen is self:
            self.set_focus(kept, scroll_visible=False)

    def compose(self) -> ComposeResult:
        """Frame and body."""
        yield Header(self.mode)
        yield Hairline(id="head-rule")
        with Container(id="body"):
            yield from self.body()
        yield Hairline()
        yield TourLine()
        yield Status()
        yield Footer()
        yield TooSmall()

    def body(self) -> ComposeResult:
        """The panes of the screen."""
        yield from ()

    def offers(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """What the screen can do by a name that is not a key's, for the palette: names and what they do."""
        yield from ()

    def on_mount(self) -> None:
        """Follow the session and focus the first pane."""
        self.lens.store.subscribe(self._session_changed)
        self.session_changed(Session(), self.session)
        if self.focused is None:
            self.focus_first()

    def focus_first(self) -> None:
        """Focus what the screen begins with: the first widget that can take it."""
        if self.focus_chain:
            self.set_focus(self.focus_chain[0])

    def _session_changed(self, old: Session, new: Session) -> None:
        if self.is_mounted:
            self.session_changed(old, new)

    def session_changed(self, old: Session, new: Session) -> None:
        """The session changed, whichever screen shows. Compare the fields you care about."""

    def on_key(self, event: events.Key) -> None:
        """Escape leaves text, then gives the focus back to the first pane."""
        if event.key != "escape":
            return
        event.stop()
        if self.maximized is not None:
            self.minimize()
        elif takes_text(self.focused):
            self.leave_text()
        else:
            self.focus_first()

    def on_paste(self, event: events.Paste) -> None:
        """What is pasted while no text is being written: no field has taken it."""
        event.stop()
        self.paste(event.text)

    def paste(self, text: str) -> None:
        """Take what was pasted, or say that nothing here takes text now."""
        self.lens.say("Nothing here is being written, so that what was pasted is let go.")

    def leave_text(self) -> None:
        """Escape was pressed in a text field."""
        self.focus_first()


class TooSmall(Static):
    """One polite line for a terminal that is too small: alone on a screen, or over all of a dialogue."""

    DEFAULT_CSS = """
    TooSmall {
        width: 100%; height: 100%;  /* not auto: that of the line before it is known would cut it */
        &.-cover { layer: cover; background: $background; }
    }
    """

    def on_resize(self, event: events.Resize) -> None:
        """Say the size that is needed and the one that is."""
        size = self.app.size
        self.update(Content(f"mlx-lens-tui needs {MIN_WIDTH}×{MIN_HEIGHT}; this is {size.width}×{size.height}."))
