"""The token view: what is on the screen, what is repainted, and the cursor."""

from __future__ import annotations

from typing import get_args

import pytest
from rich.cells import cell_len
from textual.app import App, ComposeResult
from textual.strip import Strip

from lens_tui.tui.widgets.token_layout import ShadeMode, TokenLayout
from lens_tui.tui.widgets.token_view import TokenView

TOKENS = ["Money", " is", " a", " med", "ium", " of", " exchange", ".", "\n", " People", " use", " it"]
HOSTILE = ["\x1b]52;c;QUJD\x07", "[@click=app.quit]x[/]", "[/INST]", "\u202eevil", "👨‍👩‍👧", "x" * 10_000, "\x9b31m"]


class Host(App[None]):
    def __init__(self, tokens: list[str], levels: list[int] | None = None) -> None:
        super().__init__()
        self.tokens, self.levels = tokens, levels
        self.moves: list[int | None] = []

    def compose(self) -> ComposeResult:
        yield TokenView(empty="nothing yet: press r")

    def on_mount(self) -> None:
        self.view.set_tokens(self.tokens, self.levels)
        self.view.focus()

    @property
    def view(self) -> TokenView:
        return self.query_one(TokenView)

    def on_token_view_cursor_moved(self, event: TokenView.CursorMoved) -> None:
        self.moves.append(event.index)

    def rows(self) -> list[str]:
        height = self.view.size.height
        return ["".join(s.text for s in self.view.render_line(y)).rstrip() for y in range(height)]


def count_painting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    painted: list[int] = []
    paint = TokenView._paint

    def counted(self: TokenView, row: int) -> Strip:
        painted.append(row)
        return paint(self, row)

    monkeypatch.setattr(TokenView, "_paint", counted)
    return painted


async def test_it_shows_the_text_wrapped_and_an_empty_state() -> None:
    app = Host(TOKENS)
    async with app.run_test(size=(20, 6)) as pilot:
        assert app.rows()[:4] == [" Money is a medium", " of exchange.⏎", "  People use it", ""]
        app.view.set_tokens([])
        await pilot.pause()
        assert app.rows()[0] == " nothing yet: press"


@pytest.mark.parametrize(("mode", "under"), [("bars", " ▁▁▁▁▁ ▃▃ █ ▅▅▅▂▂▂ ▁▁"), ("digits", " ·     2  7 4  1   ·")])
async def test_the_glyph_twin_shows_the_same_levels_as_the_tint(mode: ShadeMode, under: str) -> None:
    app = Host(TOKENS, [0, 2, 7, 4, 1, 0, 3])
    async with app.run_test(size=(30, 8)) as pilot:
        styles = {s.text: s.style for s in app.view.render_line(0)}
        ramp = app.view.styles_of_tokens.heat
        assert [styles[text] for text in ("Money", "is", "a", "med", "ium")] == [ramp[i] for i in (0, 2, 7, 4, 1)]
        assert len({style.bgcolor for style in ramp}) == 8
        app.view.mode = mode
        await pilot.pause()
        assert app.rows()[:2] == [" Money is a medium of", under]
        assert app.view.virtual_size.height == 6


async def test_the_cursor_moves_by_token_and_line_and_tells() -> None:
    app = Host(TOKENS)
    async with app.run_test(size=(20, 6)) as pilot:
        await pilot.press("l", "l")
        assert app.rows()[0] == " Money▐is▌a medium"
        await pilot.press("j")
        assert app.view.cursor == 6
        assert app.rows()[1] == " of▐exchange.⏎"
        await pilot.press("j", "j", "G")
        assert app.view.cursor == len(TOKENS) - 1
        await pilot.press("l", "g", "h", "k")
        assert app.view.cursor == 0
        assert app.moves == [0, 1, 6, 9, 11, 0]
        await pilot.click(TokenView, offset=(12, 1))
        assert app.view.cursor == 7


async def test_hostile_tokens_keep_their_cells_and_send_nothing() -> None:
    app = Host(HOSTILE)
    async with app.run_test(size=(30, 20)) as pilot:
        for mode in get_args(ShadeMode):
            app.view.mode = mode
            await pilot.pause()
            for y in range(20):
                strip: Strip = app.view.render_line(y)
                assert cell_len(strip.text) == strip.cell_length == 30 - 1
                assert not any(ord(char) < 32 or 0x7F <= ord(char) < 0xA0 or char == "\u202e" for char in strip.text)
                assert not any(segment.style is not None and segment.style.meta for segment in strip)
        await pilot.press("l", "l")
        assert "[@click=app.qui" in "".join(app.rows())


async def test_appending_paints_only_the_last_lines_and_jumps_by_half_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    painted = count_painting(monkeypatch)
    app = Host([])
    async with app.run_test(size=(20, 10)) as pilot:
        view = app.view
        view.streaming = True
        scrolls: list[float] = []
        per_append: list[int] = []
        for number in range(200):
            painted.clear()
            view.append([f" w{number:03}"], [number % 8])
            await pilot.pause()
            per_append.append(len(set(painted)))
            if not scrolls or scrolls[-1] != view.scroll_y:
                scrolls.append(view.scroll_y)
            assert any(f"w{number:03}" in row for row in app.rows())
        lines = len(view._layout_of.lines)
        assert len(scrolls) <= lines / 4 + 2
        assert sorted(per_append)[len(per_append) // 2] <= 2


async def test_it_holds_still_while_the_reader_looks_back() -> None:
    app = Host([f" w{n}" for n in range(200)])
    async with app.run_test(size=(20, 10)) as pilot:
        app.view.streaming = True
        await pilot.press("G", "g")
        assert app.view.scroll_y == 0
        for number in range(100):
            app.view.append([f" new{number}"])
        await pilot.pause()
        assert app.view.scroll_y == 0
        await pilot.press("G")
        app.view.append([" last"])
        await pilot.pause()
        assert any("last" in row for row in app.rows())


async def test_a_resize_wraps_again_and_equals_a_fresh_layout() -> None:
    app = Host(TOKENS * 30)
    async with app.run_test(size=(40, 10)) as pilot:
        await pilot.press("G")
        await pilot.resize_terminal(25, 12)
        await pilot.pause()
        fresh = TokenLayout(25 - 3)
        fresh.extend(TOKENS * 30)
        assert app.view._layout_of.lines == fresh.lines
        assert app.view.cursor == len(TOKENS) * 30 - 1


async def test_a_place_kept_from_a_narrower_wrapping_leaves_no_blank_below_the_text() -> None:
    app = Host([" word"] * 20)
    async with app.run_test(size=(30, 10)) as pilot:
        await pilot.pause()
        app.view.set_reactive(TokenView.scroll_y, 3.0)
        app.view.on_resize()
        await pilot.pause()
        assert app.view.scroll_offset.y == 0
        assert "".join(app.rows()).split() == ["word"] * 20


async def test_the_mark_is_underlined_without_colour() -> None:
    app = Host(TOKENS)
    async with app.run_test(size=(40, 10)) as pilot:
        app.view.mark = 2
        await pilot.pause()
        underlined = [s.text for s in app.view.render_line(0) if s.style is not None and s.style.underline]
        assert underlined == ["a"]


async def test_sixteen_thousand_tokens_paint_only_what_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    painted = count_painting(monkeypatch)
    app = Host([f" tok{n % 97}" for n in range(16_384)])
    async with app.run_test(size=(80, 24)) as pilot:
        painted.clear()
        await pilot.press("G")
        await pilot.press("k")
        assert len(set(painted)) <= 3 * 24
