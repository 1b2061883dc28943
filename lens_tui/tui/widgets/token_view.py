"""The cursor of a token view: by key, by line, by page, by mouse. What :class:`TokenView` mixes in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.segment import Segment
from textual import events
from textual.content import Content
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from lens_tui.tui.bindings import bindings

from .token_layout import ShadeMode, TokenLayout, TokenStyles, glyph_row, text_row

RESERVED_PAGES = 4


class TokenView(ScrollView, can_focus=True):
    """Tokens wrapped by cells, each shaded by its level (0 to 7, see ``tui.format``).

    ``mode`` says how a level looks: as the colour behind the token, as a bar or
    a digit under it, or not at all. A token cursor moves with ``h j k l`` or a
    click. While ``streaming`` the view follows the end in half-page jumps, so
    that a token costs the repaint of a line or two; it stays where it is once
    the reader has moved up, until they go to the end again.
    """

    DEFAULT_CSS = """
    TokenView {
        height: 1fr; min-height: 1;
        overflow-x: hidden; overflow-y: auto;
        scrollbar-size-vertical: 1; scrollbar-gutter: stable;
    }
    """
    BINDINGS = bindings("move")

    mode: reactive[ShadeMode] = reactive[ShadeMode]("tint", repaint=False, init=False)
    cursor: reactive[int | None] = reactive[int | None](None, repaint=False, init=False)
    mark: reactive[int | None] = reactive[int | None](None, repaint=False, init=False)
    streaming: reactive[bool] = reactive(False, repaint=False, init=False)

    @dataclass
    class CursorMoved(Message):
        """The token cursor of ``view`` is on token ``index`` (``None``: nowhere)."""

        view: TokenView
        index: int | None

        @property
        def control(self) -> TokenView:
            """The view whose cursor moved."""
            return self.view

    def __init__(self, *, empty: str = "") -> None:
        super().__init__()
        self.empty = empty
        self.follow = True
        self._tokens: list[str] = []
        self._levels: list[int] = []
        self._layout_of = TokenLayout(80)
        self._strips: dict[int, Strip] = {}
        self._style: TokenStyles | None = None

    # -- what it shows ----------------------------------------------------------------------------

    @property
    def tokens(self) -> Sequence[str]:
        """The tokens shown."""
        return self._tokens

    def set_tokens(self, tokens: Iterable[str], levels: Sequence[int] | None = None) -> None:
        """Show these tokens instead; the cursor stays if it still can."""
        self._tokens = list(tokens)
        self._levels = _padded(levels or (), len(self._tokens))
        if self.cursor is not None and self.cursor >= len(self._tokens):
            self.cursor = None
        self.mark = None
        self.follow = True
        self._rewrap()
        if not self.streaming:
            self.scroll_to(y=0, animate=False)

    def append(self, tokens: Sequence[str], levels: Sequence[int] | None = None) -> None:
        """Add tokens at the end: only the last lines are painted again."""
        if not tokens:
            return
        lines_before = len(self._layout_of.lines)
        self._tokens.extend(tokens)
        self._levels.extend(_padded(levels or (), len(tokens)))
        dirty = self._layout_of.extend(tokens)
        self._drop_lines(dirty)
        self._follow_pen(grown=len(self._layout_of.lines) != lines_before)
        self._refresh_text_lines(dirty, len(self._layout_of.lines))

    def set_levels(self, levels: Sequence[int]) -> None:
        """Shade the tokens again."""
        self._levels = _padded(levels, len(self._tokens))
        self._repaint()

    # -- geometry ---------------------------------------------------------------------------------

    @property
    def _rows_per_line(self) -> int:
        return 2 if self.mode in ("bars", "digits") else 1

    @property
    def _rows(self) -> int:
        return len(self._layout_of.lines) * self._rows_per_line

    def _text_width(self) -> int:
        width = self.scrollable_content_region.width
        return max(4, width - 2) if width else self._layout_of.width

    def _rewrap(self) -> None:
        self._layout_of = TokenLayout(self._text_width())
        self._layout_of.extend(self._tokens)
        self._resize_virtual()
        self._repaint()
        self._follow_pen(grown=True)

    def _resize_virtual(self, reserve: int = 0) -> None:
        self.virtual_size = Size(self._text_width() + 2, self._rows + reserve)

    def _follow_pen(self, grown: bool) -> None:
        """Keep the last line in view by jumping half a page, with blank rows reserved below it.

        A new virtual size lays the whole screen out again, so some pages are
        reserved at once; ``_trim`` takes back what was not used.
        """
        height = self.scrollable_content_region.height
        jump = self._rows - (self.scroll_offset.y + height) > 0
        jump = jump and grown and self.follow and self.streaming and height > 0
        target = self._rows - height + height // 2
        needed = max(self._rows, target + height if jump else 0)
        if needed > self.virtual_size.height:
            pages = RESERVED_PAGES * max(24, height) if self.streaming and needed > height else 0
            self._resize_virtual(reserve=max(needed + pages, height if self.streaming else 0) - self._rows)
        if jump:
            self.scroll_to(y=target, animate=False, force=True)

    def _trim(self) -> None:
        """Give back the reserved rows at the end of a stream.

        Whoever followed the pen sees as much of the text as fits, its end at the
        bottom; whoever scrolled away keeps the place.
        """
        height = self.scrollable_content_region.height
        if self.follow:
            self._resize_virtual()
            self.scroll_to(y=max(0, self._rows - height), animate=False, force=True)
            return
        bottom = self.scroll_offset.y + height
        self._resize_virtual(reserve=max(0, min(self.virtual_size.height, bottom) - self._rows))

    def on_resize(self) -> None:
        """Wrap again for a new width."""
        if self._text_width() != self._layout_of.width:
            self._rewrap()
        # A lane that was hidden when its text ended keeps a place for the width it had there: no blank below the end.
        height = self.scrollable_content_region.height
        if height and not self.streaming and self.scroll_offset.y > max(0, self._rows - height):
            self._resize_virtual()
            self.scroll_to(y=max(0, self._rows - height), animate=False, force=True)

    def on_show(self) -> None:
        """The width may have changed while it was hidden."""
        self.on_resize()

    # -- painting ---------------------------------------------------------------------------------

    @property
    def styles_of_tokens(self) -> TokenStyles:
        """The styles of the current theme, built once."""
        if self._style is None:
            self._style = TokenStyles.of(self.app.theme_variables, self.rich_style)
        return self._style

    def notify_style_update(self) -> None:
        """The theme or the style sheet changed: paint everything again."""
        super().notify_style_update()
        self._style = None
        self._strips.clear()

    def _repaint(self) -> None:
        self._strips.clear()
        self.refresh()

    def _drop_lines(self, first: int) -> None:
        for row in range(first * self._rows_per_line, self._rows + 1):
            self._strips.pop(row, None)

    def _refresh_text_lines(self, first: int, stop: int) -> None:
        self.refresh_lines(first * self._rows_per_line, (stop - first) * self._rows_per_line)

    def _repaint_token(self, token: int | None) -> None:
        if token is None or token >= len(self._layout_of):
            return
        for line in self._layout_of.lines_of(token):
            for row in range(self._rows_per_line):
                self._strips.pop(line * self._rows_per_line + row, None)
            self._refresh_text_lines(line, line + 1)

    def render_line(self, y: int) -> Strip:
        """One row: a line of text, or the row of glyphs under it."""
        row = y + self.scroll_offset.y
        strip = self._strips.get(row)
        if strip is None:
            strip = self._paint(row)
            self._strips[row] = strip
        return strip

    def _paint(self, row: int) -> Strip:
        style = self.styles_of_tokens
        width = self.scrollable_content_region.width
        line, under = divmod(row, self._rows_per_line)
        if not self._tokens and self.empty:
            return self._empty_line(row, width)
        if line >= len(self._layout_of.lines):
            return Strip.blank(width, style.base)
        pieces = self._layout_of.lines[line]
        if under:
            segments = glyph_row(pieces, self._levels, style, digits=self.mode == "digits")
        else:
            levels = self._levels if self.mode == "tint" else None
            last = line == len(self._layout_of.lines) - 1
            segments = text_row(pieces, levels, style, self.cursor, self.mark, pen=self.streaming and last)
        return Strip(segments).adjust_cell_length(width, style.base)

    def _empty_line(self, row: int, width: int) -> Strip:
        """What stands in place of a text, in as many lines as it takes: the key it names must not be cut off."""
        style = self.styles_of_tokens
        lines = Content(self.empty).wrap(max(1, width - 1))
        text = f" {lines[row].plain.rstrip()}" if row < len(lines) else ""
        return Strip([Segment(text, style.muted)]).adjust_cell_length(width, style.base)

    # -- changes ----------------------------------------------------------------------------------

    def watch_mode(self) -> None:
        """Lines may take one row or two: lay out again."""
        self._resize_virtual()
        self._repaint()
        self._show_cursor()

    def watch_cursor(self, old: int | None, new: int | None) -> None:
        """Paint the two tokens concerned, bring the new one into view, tell the screen."""
        self._repaint_token(old)
        self._repaint_token(new)
        self._show_cursor()
        self.post_message(self.CursorMoved(self, new))

    def watch_mark(self, old: int | None, new: int | None) -> None:
        """Paint the two tokens concerned."""
        self._repaint_token(old)
        self._repaint_token(new)

    def watch_streaming(self) -> None:
        """The pen comes or goes: paint the last line."""
        if not self.streaming:
            self._trim()
        last = len(self._layout_of.lines) - 1
        self._drop_lines(last)
        self._refresh_text_lines(last, last + 1)

    def _show_cursor(self) -> None:
        if self.cursor is None or not self._layout_of.first_line:
            return
        top = self._layout_of.place_of(self.cursor)[0] * self._rows_per_line
        height = self.scrollable_content_region.height
        offset = self.scroll_offset.y
        if top < offset:
            self.scroll_to(y=top, animate=False)
        elif height and top + self._rows_per_line > offset + height:
            self.scroll_to(y=top + self._rows_per_line - height, animate=False)

    def move_to(self, token: int | None) -> None:
        """Put the cursor on a token (clamped), or nowhere."""
        if token is None or not self._tokens:
            self.cursor, self.follow = None, True
            return
        self.cursor = max(0, min(len(self._tokens) - 1, token))
        self.follow = self.cursor == len(self._tokens) - 1

    def action_cursor_left(self) -> None:
        """One token left."""
        self._step(-1)

    def action_cursor_right(self) -> None:
        """One token right."""
        self._step(1)

    def action_cursor_up(self) -> None:
        """The nearest token on the line above."""
        self._row(-1)

    def action_cursor_down(self) -> None:
        """The nearest token on the line below."""
        self._row(1)

    def action_first(self) -> None:
        """The first token."""
        self.move_to(0)

    def action_last(self) -> None:
        """The last token."""
        self.move_to(len(self._tokens) - 1)

    def action_page_down(self) -> None:
        """Half a page down."""
        self._page(1)

    def action_page_up(self) -> None:
        """Half a page up."""
        self._page(-1)

    def _step(self, step: int) -> None:
        start = -1 if step > 0 else len(self._tokens)
        self.move_to((start if self.cursor is None else self.cursor) + step)

    def _row(self, step: int) -> None:
        if self.cursor is None:
            self._step(step)
            return
        line, x = self._layout_of.place_of(self.cursor)
        target = None
        while target in (None, self.cursor) and 0 <= line + step < len(self._layout_of.lines):
            line += step
            target = self._layout_of.token_at(line, x)
        if target is not None:
            self.move_to(target)

    def _page(self, step: int) -> None:
        lines = max(1, self.scrollable_content_region.height // 2 // self._rows_per_line)
        if self.cursor is None:
            self.follow = False
            self.scroll_relative(y=step * lines * self._rows_per_line, animate=False)
            return
        line, x = self._layout_of.place_of(self.cursor)
        line = max(0, min(len(self._layout_of.lines) - 1, line + step * lines))
        target = self._layout_of.token_at(line, x)
        self.move_to(self.cursor if target is None else target)

    def on_mouse_scroll_up(self) -> None:
        """The reader looks back: stop following."""
        self.follow = False

    def on_mouse_scroll_down(self) -> None:
        """Follow again once the end is in view."""
        height = self.scrollable_content_region.height
        self.follow = self.scroll_offset.y + height + 3 >= self._rows

    def on_click(self, event: events.Click) -> None:
        """The token under the mouse becomes the cursor."""
        line = (event.y + self.scroll_offset.y) // self._rows_per_line
        token = self._layout_of.token_at(line, event.x - 1)
        if token is not None:
            self.move_to(token)


def _padded(levels: Sequence[int], count: int) -> list[int]:
    out = [max(0, min(7, level)) for level in levels[:count]]
    return out + [0] * (count - len(out))
