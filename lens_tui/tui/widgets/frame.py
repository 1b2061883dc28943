"""What a screen is built of: header, status and footer, the hairlines between them, and panes."""

from __future__ import annotations

from typing import Any

from rich.cells import cell_len
from textual.app import RenderResult
from textual.containers import Vertical
from textual.content import Content
from textual.reactive import reactive
from textual.screen import Screen
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Input

from lens_tui.tui.format import fit, size
from lens_tui.tui.host import LensHost, host
from lens_tui.tui.job_book import BUSY, FAILED, Activity
from lens_tui.tui.keys import SCREENS, by_id
from lens_tui.tui.session import Session

from .ramps import bar


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
        facts = [f"{model.n_layers} layers", f"d {model.d_model}", size(model.nbytes)]
        if session.saes:
            facts.append(f"{len(session.saes)} SAE{'s' if len(session.saes) > 1 else ''}")
        while facts and cell_len(" · ".join([model.name, *facts])) > room:
            facts.pop()
        return [(model.name, ""), ("".join(f" · {fact}" for fact in facts), "$muted")]

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
    stage = f" · {activity.stage}" if activity.stage and activity.stage != activity.title else ""
    title = f"stopping: {activity.title}" if activity.stopping else activity.title
    right = f"  {stop} stop"
    facts = activity.facts()
    room = width - len(right) - cell_len(facts) - 2
    label = fit(f"{title}{stage}", min(max(12, room - 26), cell_len(f"{title}{stage}")))
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
        return [("⏎", "commit"), ("esc", "leave")], []
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


class PaneTitle(Widget):
    """The title on the left, a note on the right. Both are plain text, never markup."""

    DEFAULT_CSS = "PaneTitle { height: 1; }"

    note: reactive[str] = reactive("")
    text: reactive[str] = reactive("")

    def render(self) -> RenderResult:
        """Title and note in one row; the note goes first when there is no room."""
        width = self.size.width
        title = Content(self.text)
        note = Content.styled(self.note, "$muted not bold") if self.note else Content("")
        gap = width - title.cell_length - note.cell_length
        if gap < 1:
            return title.truncate(width, ellipsis=True)
        return Content.assemble(title, " " * gap, note)


class Pane(Vertical):
    """A titled part of a screen.

    ``title`` and ``note`` may be set at any time. A subclass keeps what it shows, asks for
    work through ``lens`` and posts messages about what concerns other panes.
    """

    ALLOW_MAXIMIZE = True
    DEFAULT_CSS = """
    Pane {
        border-left: blank; padding: 0 1 0 0;
        &:focus-within { border-left: wide $accent; }
        &:focus-within > PaneTitle { text-style: bold; color: $foreground; }
        & > PaneTitle { color: $muted; }
    }
    """

    def __init__(self, title: str, *children: Widget, note: str = "", id: str | None = None) -> None:  # noqa: A002
        self._heading = PaneTitle()
        self._heading.set_reactive(PaneTitle.text, title)
        self._heading.set_reactive(PaneTitle.note, note)
        super().__init__(self._heading, *children, id=id)

    @property
    def lens(self) -> LensHost:
        """The app, typed."""
        return host(self)

    @property
    def session(self) -> Session:
        """The session as it is now."""
        return host(self).store.session

    @property
    def title(self) -> str:
        """The title shown."""
        return self._heading.text

    @title.setter
    def title(self, value: str) -> None:
        self._heading.text = value

    @property
    def note(self) -> str:
        """What is at the right end of the title row."""
        return self._heading.note

    @note.setter
    def note(self, value: str) -> None:
        self._heading.note = value
