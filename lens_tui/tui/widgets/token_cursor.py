"""The cursor of a token view: by key, by line, by page, by mouse. What :class:`TokenView` mixes in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual import events

if TYPE_CHECKING:
    from textual.reactive import reactive
    from textual.scroll_view import ScrollView

    from .token_layout import TokenLayout

    _Base = ScrollView
else:
    _Base = object


class TokenCursor(_Base):
    """``follow`` is whether the view keeps to the end of a text that is being written."""

    if TYPE_CHECKING:
        cursor: reactive[int | None]
        follow: bool
        _tokens: list[str]
        _layout_of: TokenLayout

        @property
        def _rows_per_line(self) -> int: ...
        @property
        def _rows(self) -> int: ...

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
