"""The Features screen and the parts of a feature page."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from textual.content import Content
from textual.widget import Widget

from lens_tui.records import LensError
from lens_tui.records.features import ContrastedFeature, FeatureActivity, FeatureExample
from lens_tui.tui.app import LensApp
from lens_tui.tui.reading_text import features_at, next_active, rough_activations, shades, sources, strongest_token
from lens_tui.tui.screens.features_screen import FeaturesScreen
from lens_tui.tui.screens.form import ErrorScreen
from lens_tui.tui.widgets.feature_card import (
    CONTRAST_HEAD,
    FeatureMarks,
    _around,
    contrast_row,
    example_lines,
    feature_row,
    page_lines,
    page_name,
    short_name,
)
from lens_tui.tui.widgets.frame import Scroll
from lens_tui.worker import jobs
from lens_tui.worker.events import Encoded, FeaturePage, TokenWeight
from lens_tui.worker.jobs import ReadNeighbours
from tests.fakes import DEMO_SAE, TEXTS, WIDTH, FakeWorker, bare_facts, label_of, unit_vector

from .opened import PROMPT, WHILE, app_on, fill, jobs_of, opened, screen_of, screen_text, settle


def encoded() -> Encoded:
    ids = np.array([[7, -1], [3, 7], [3, -1]], np.int32)
    values = np.array([[90.0, 0.0], [5.0, 2.0], [8.0, 0.0]], np.float32)
    return Encoded(1, "s", (0, 1, 2), ("<s>", "a", "b"), (True, False, False), ids, values)


def page(label: str = "", **activity: Any) -> FeaturePage:
    facts = replace(
        bare_facts(4821),
        labels=(label_of(4821, label),) if label else (),
        promoted=(TokenWeight(1, " dog", 3.0), TokenWeight(2, "\n", 2.0)),
        suppressed=(TokenWeight(3, " cat", -2.5),),
        index=FeatureActivity(**{"corpus": "", **activity}) if activity else None,
    )
    return FeaturePage(1, "s", 4821, facts, unit_vector("x"))


def example(tokens: Sequence[str], values: Sequence[float], peak: int) -> FeatureExample:
    return FeatureExample(0, peak, values[peak], peak, tuple(tokens), tuple(values))


def test_what_is_asked_of_an_encoded_text() -> None:
    text = encoded()
    assert features_at(text, 1) == [(3, 5.0), (7, 2.0)]
    assert features_at(text, 2) == [(3, 8.0)]
    assert features_at(text, 9) == []
    assert rough_activations(text, 7).tolist() == [90.0, 2.0, 0.0]
    assert strongest_token(text) == 2
    assert shades(rough_activations(text, 3)) == [0, 5, 7]
    values = np.array([0, 1, 0, 2], np.float32)
    assert [next_active(values, 1, 1), next_active(values, 3, 1), next_active(values, 1, -1)] == [3, 1, 3]
    assert next_active(np.zeros(3, np.float32), 0, 1) is None


def test_a_page_without_an_index_still_says_what_it_promotes() -> None:
    lines = [line.plain for line in page_lines(page(), 34, 2.0, "tint")]
    assert lines[0] == "no label"
    assert lines[2] == "here 2"
    assert lines[4].startswith("promotes")
    assert "·dog" in lines[5]
    assert "+3.00" in lines[5]
    assert "·cat" in lines[5]
    assert "⏎" in lines[6]
    assert short_name(page()) == "dog, ␣"
    assert page_name(page()).plain == "→ dog, ␣"  # not to be taken for a label
    assert page_name(page("dogs")).plain == "dogs"


def test_a_page_with_an_index_shows_all_it_knows() -> None:
    known = page(
        "dogs " * 20,
        density=0.0031,
        max=58.1,
        edges=(0.0, 1.0, 2.0, 3.0, 4.0),
        histogram=(8, 4, 2, 1),
        examples=(example([" the", " lease", ","], [0.0, 50.0, 5.0], 1),),
    )
    lines = page_lines(known, 40, 2.5, "bars")
    text = "\n".join(line.plain for line in lines)
    assert all(line.cell_length <= 40 for line in lines)
    assert "density 0.31 %  max 58.1  here 2.5" in text
    upper = next(line.plain for line in lines if "█" in line.plain)
    assert upper.startswith("█" * 10)
    assert "▲" in text
    assert " the lease," in text
    assert " ▁▁▁ █████▂" in text
    peak = next(line for line in lines if "lease" in line.plain)
    assert any("underline" in str(span.style) for span in peak.spans)


def test_a_feature_that_is_never_active_in_an_index_says_so_and_has_no_histogram() -> None:
    known = page("doors", corpus="corpus.txt", counted_tokens=1800, count=0, density=0.0, max=0.0,
                 edges=(1.0, 2.0, 4.0), histogram=(0, 0))  # fmt: skip
    lines = [line.plain for line in page_lines(known, 40, 18.2, "tint")]
    assert lines[2] == "here 18.2"
    assert " ".join(lines[3:5]).startswith("never active in 1.8 k tokens · corpus.txt")
    assert not any("▲" in line for line in lines)
    assert lines[-1] == "Never active in this index."
    for section in ("top", "sample"):
        assert "Never active in this index." in [line.plain for line in page_lines(known, 40, 0, "tint", section)]


def test_what_an_index_was_made_of_is_said_whole() -> None:
    known = page("dogs", corpus="written by the model that it explains", counted_tokens=235_900)
    lines = page_lines(known, 34, 2.5, "tint")
    assert all(line.cell_length <= 34 for line in lines)
    assert "in 235.9 k tokens · written by the model that it explains" in " ".join(line.plain for line in lines)


@pytest.mark.parametrize(
    ("effect", "shown"),
    [(27.74, "+27.7"), (-0.25, "-0.2"), (109.76, "+110"), (-4321.0, "-4321"), (123456.0, "+1e5"), (np.inf, "+∞")],
)
def test_a_contrasts_difference_is_a_number_however_large(effect: float, shown: str) -> None:
    row = ContrastedFeature(5377, 1.0, 1.0, 0.1, 9.0, 0.0, 1.0, 0.0, auc=1.0, effect=effect, p=0.476)
    line = contrast_row(row, Content("name"), 60).plain
    assert line[: len(CONTRAST_HEAD)].split() == ["5377", "1.00", shown, ".476"]
    assert line.index(".476") + 4 == len(CONTRAST_HEAD) - 2  # behind the caret


@pytest.mark.parametrize(
    ("marks", "shown"),
    [(FeatureMarks(marked=True), ".476 ✓ name"), (FeatureMarks(pinned=True), ".476 ◆ name"),
     (FeatureMarks(), ".476   name"), (FeatureMarks(True, True), ".476✓◆ name")],
)  # fmt: skip
def test_a_mark_keeps_off_the_figures_and_the_name(marks: FeatureMarks, shown: str) -> None:
    row = ContrastedFeature(5377, 1.0, 1.0, 0.1, 9.0, 0.0, 1.0, 0.0, auc=1.0, effect=2.0, p=0.476)
    assert contrast_row(row, Content("name"), 60, marks).plain.rstrip().endswith(shown)


def test_examples_are_cut_so_that_their_peaks_stand_under_each_other() -> None:
    tokens = [f" w{n:02}" for n in range(50)]
    middle, early, late = (example(tokens, [0.0] * 50, peak) for peak in (25, 1, 49))
    first, last, indent = _around(
        middle.tokens, middle.peak, 40
    )  # 22 cells before the peak, 18 with it and behind it, tokens of 4
    assert (first, last, indent) == (20, 29, 2)
    shown = [example_lines(one, 40, 1.0, "tint")[0].plain for one in (middle, early, late)]
    assert [text.index(f"w{peak:02}") for text, peak in zip(shown, (25, 1, 49), strict=True)] == [23, 23, 23]
    assert all(len(text) <= 40 for text in shown)


def test_a_histogram_begins_and_ends_where_it_holds_something() -> None:
    edges = tuple(2.0**n for n in range(9))
    counts = (0, 0, 0, 16, 8, 4, 0, 0)  # from 8 to 64

    def axis(here: float) -> str:
        lines = [line.plain for line in page_lines(page(edges=edges, histogram=counts), 30, here, "tint")]
        bars = next(place for place, line in enumerate(lines) if "█" in line)
        assert lines[bars : bars + 2] == ["█" * 10 + " " * 20, "█" * 20 + "▄" * 10]
        return lines[bars + 2]

    assert axis(0.0) == "8" + " " * 27 + "64"
    assert axis(17.0) == "8" + " " * 14 + "▲" + " " * 12 + "64"
    assert axis(9.0) == "8    ▲" + " " * 22 + "64"
    assert axis(63.0) == "8" + " " * 24 + "▲" + " " * 2 + "64"
    assert axis(500.0) == "8" + " " * 25 + "64 ▲"  # beyond all the corpus has


def test_a_page_lists_what_its_section_says() -> None:
    one = example([" a", " b"], [4.0, 0.0], 0)
    known: dict[str, Any] = {
        "counted_tokens": 9300, "corpus": "mix.txt", "examples": (one,), "samples": ((4.0, (one,)), (2.0, (one, one))),
    }  # fmt: skip

    def listed(section: str, **data: Any) -> list[str]:
        lines = [line.plain for line in page_lines(page(**data), 40, 1.0, "tint", section)]
        start = next(place for place, line in enumerate(lines) if f"▐{section}▌" in line)
        return [line.strip() for line in lines[start + 1 :]]

    assert "in 9.3 k tokens · mix.txt" in [line.plain for line in page_lines(page(**known), 40, 1.0, "tint")]
    assert listed("top", **known) == ["strongest token of each document", "a b"]
    assert listed("sample", **known) == ["at random from every octave", "from 4", "a b", "from 2", "a b", "a b"]
    assert listed("near", **known) == ["by cosine of decoder directions"]
    assert listed("together") == ["by Jaccard index of their tokens"]
    assert listed("sample") == listed("top")
    assert " ".join(listed("top")) == "No index of this SAE: I makes one."
    without = {**known, "samples": ()}
    assert " ".join(listed("sample", **without)) == "The index of this SAE keeps no sample of weaker activations."


def test_foreign_text_on_a_page_is_harmless() -> None:
    nasty = "\x1b]52;c;QQ==\x07[@click=app.quit]x[/] \u202e"
    known = page(nasty, corpus=nasty, counted_tokens=1, examples=(example([nasty, "b"], [1.0, 0.0], 0),))
    made = replace(known, facts=replace(known.facts, promoted=(TokenWeight(1, nasty, 1.0),), problem=nasty))
    for line in [*page_lines(made, 60, 1.0, "bars"), feature_row(1, 1.0, 1.0, page_name(made), 60)]:
        assert not any(ord(char) < 32 or char == "\u202e" for char in line.plain)
        assert not any("@click" in str(span.style) for span in line.spans)


async def test_the_prompt_is_read_when_the_screen_opens() -> None:
    async with opened("features") as (app, pilot):
        (job,) = jobs_of(app, jobs.Encode)
        assert isinstance(job, jobs.Encode)
        assert (job.sae, job.text) == (DEMO_SAE.id, PROMPT)
        screen = screen_of(app, FeaturesScreen)
        assert "".join(screen.text.view.tokens) == "<|endoftext|>" + PROMPT
        assert screen.text.encoded is not None
        assert screen.text.view.cursor == strongest_token(screen.text.encoded)
        shown = screen_text(app)
        assert "8 tokens · L0 41.3 · FVU 0.165" in shown
        assert screen.list.list.rows == features_at(screen.text.encoded, screen.text.view.cursor or 0)
        assert screen.page.card.page is not None
        assert screen.page.card.page.feature == screen.list.list.rows[0][0]
        assert "promotes" in shown
        assert f"things about number {screen.list.list.rows[0][0]}" in shown
        await pilot.press("1", "4")
        await settle(app, pilot)
        assert len(jobs_of(app, jobs.Encode)) == 1


async def test_an_app_has_not_settled_while_what_began_late_is_to_come() -> None:
    async with opened("features") as (app, pilot):
        loop, came = asyncio.get_running_loop(), asyncio.Event()
        loop.call_later(WHILE / 2, lambda: loop.call_later(WHILE * 0.9, came.set))
        await settle(app, pilot)
        assert came.is_set()


async def test_before_the_first_reading_the_list_says_nothing_of_features_or_a_contrast() -> None:
    app = app_on("generate", hold=True)
    async with app.run_test(size=(120, 36)) as pilot:
        fill(app)
        await settle(app, pilot)
        await pilot.press("4")
        await settle(app, pilot)
        shown = screen_text(app)
        assert "reading …" in shown
        assert "AUC" not in shown
        assert "no feature is active" not in shown


async def test_tokens_and_features_are_walked_with_hjkl() -> None:
    async with opened("features") as (app, pilot):
        screen = screen_of(app, FeaturesScreen)
        start = screen.text.view.cursor
        assert start is not None
        await pilot.press("h", "j", "j")
        await settle(app, pilot)
        assert screen.text.view.cursor == start - 1
        assert screen.text.encoded is not None
        third = features_at(screen.text.encoded, start - 1)[2][0]
        assert screen.list.chosen == third
        assert screen.page.card.page is not None
        assert screen.page.card.page.feature == third
        expected = shades(rough_activations(screen.text.encoded, third))
        assert screen.text.view._levels == expected
        assert max(expected) == 7


@pytest.mark.parametrize(("screen", "page"), [("features", "#card-scroll"), ("steer", "#direction Scroll")])
async def test_a_page_that_is_longer_than_its_pane_moves_by_the_keys_of_every_list(screen: str, page: str) -> None:
    async with opened(screen, (80, 24)) as (app, pilot):
        many = tuple(TokenWeight(place, f" word{place}", 2.0 - place / 10) for place in range(12))
        app.store.replace_steers(replace(row, promoted=many) for row in app.store.session.steers)
        if screen == "features":
            card = screen_of(app, FeaturesScreen).page.card
            assert card.page is not None
            card.page = replace(card.page, facts=replace(card.page.facts, promoted=many))
        scroll = app.screen.query_one(page, Scroll)
        scroll.focus()
        await settle(app, pilot)
        end, half = scroll.max_scroll_y, scroll.size.height // 2
        assert end > 2
        half = min(half, end)
        walk = {"j": 1, "k": 0, "ctrl+d": half, "ctrl+u": 0, "G": end, "g": 0, "down": 1, "up": 0, "end": end}
        for key, row in walk.items():
            await pilot.press(key)
            await pilot.pause()
            assert scroll.scroll_y == row, key


async def test_tokens_are_walked_from_the_page_too() -> None:
    async with opened("features", (80, 24)) as (app, pilot):
        screen = screen_of(app, FeaturesScreen)
        start = screen.text.view.cursor or 0
        screen.query_one("#card-scroll").focus()
        await pilot.press("h")
        assert screen.text.view.cursor == start - 1


async def test_a_pinned_feature_stays_while_the_cursor_moves() -> None:
    async with opened("features") as (app, pilot):
        screen = screen_of(app, FeaturesScreen)
        feature = screen.list.chosen
        await pilot.press("enter", "h", "j")
        await settle(app, pilot)
        assert screen.list.chosen == feature
        assert "◆ pinned" in screen_text(app)
        await pilot.press("n")
        assert screen.text.values[screen.text.view.cursor or 0] > 0
        await pilot.press("h", "escape")
        assert screen.list.pinned is None
        assert screen.list.chosen == screen.list.list.rows[0][0] != feature


async def test_a_feature_is_found_by_its_number() -> None:
    async with opened("features") as (app, pilot):
        screen = screen_of(app, FeaturesScreen)
        await pilot.press("/", *"f4821", "enter")
        await settle(app, pilot)
        assert screen.list.chosen == 4821
        assert "Feature 4821" in screen_text(app)
        await pilot.press("/", *"99999", "enter")
        await pilot.pause()
        assert screen.list.chosen == 4821
        await pilot.press("escape", "escape")
        assert screen.list.chosen == screen.list.list.rows[0][0]


async def test_a_feature_goes_to_the_bench_with_a_sensible_scale() -> None:
    async with opened("features", steers=1) as (app, pilot):
        screen = screen_of(app, FeaturesScreen)
        feature, here = screen.list.chosen, screen.page.card.here
        await pilot.press("s")
        await settle(app, pilot)
        row = app.store.session.steers[-1]
        assert row.arm == 2
        assert row.vector.origin.facts["feature"] == feature
        assert row.scale == float(f"{2 * here:.3g}")
        assert row.promoted
        assert row.vector.name.startswith(f"f{feature} things about")
        await pilot.press("u")
        assert len(app.store.session.steers) == 1


async def test_what_an_arm_wrote_can_be_read() -> None:
    async with opened("generate") as (app, pilot):
        await pilot.press("r")
        await settle(app, pilot)
        await pilot.press("4")
        await settle(app, pilot)
        assert [source.name for source in sources(app.store.session)] == ["prompt", "baseline", "dogs", "sadness"]
        await pilot.press("right_square_bracket", "right_square_bracket")
        await settle(app, pilot)
        last = jobs_of(app, jobs.Encode)[-1]
        assert isinstance(last, jobs.Encode)
        assert last.token_ids == app.store.session.written[1].token_ids
        assert "".join(screen_of(app, FeaturesScreen).text.view.tokens).endswith("".join(TEXTS[1]).rsplit("\n", 1)[1])
        assert "read with steering off   SAE" in screen_text(app)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": None}, "No model: 1 goes to Load."),
        ({"sae": None}, "No SAE in use: > loads one"),
        ({"sae": None, "saes": ()}, "No SAE for this model"),
        ({"prompt": ""}, "No text: write a prompt"),
    ],
)
async def test_an_empty_screen_names_the_next_key(changes: dict[str, object], says: str) -> None:
    async with opened("features", (160, 36)) as (app, pilot):
        app.store.update(**changes)
        if "model" in changes:
            app.store.update(sae=None, saes=())
        await settle(app, pilot)
        assert says in screen_text(app)
        await pilot.press("j", "l", "s", "enter", "n", "y", "Y", "left_square_bracket")
        await settle(app, pilot)


def in_region(app: LensApp, widget: Widget) -> str:
    """The words that show where a widget is, its lines put together."""
    at = widget.region
    rows = screen_text(app).splitlines()[at.y : at.bottom]
    return " ".join(" ".join(row[at.x : at.right] for row in rows).split())


@pytest.mark.parametrize("size", [(120, 36), (80, 24), (60, 16)])
async def test_the_key_that_an_empty_pane_names_is_not_cut_off(size: tuple[int, int]) -> None:
    async with opened("features", size) as (app, pilot):
        app.store.update(sae=None, saes=())
        await settle(app, pilot)
        screen = screen_of(app, FeaturesScreen)
        assert "No SAE for this model: 1 goes to Load, where one can be added." in in_region(app, screen.text.view)
        assert in_region(app, screen.list.list) == "no SAE is in use"
        app.store.update(sae=DEMO_SAE.id, saes=(DEMO_SAE,), prompt="")
        await settle(app, pilot)
        assert "no feature is active here: / finds them by words" in in_region(app, screen.list.list)


async def test_how_many_dense_features_are_left_out_is_said_whole_beside_how_many_are_marked() -> None:
    async with opened("features", (80, 24), dense={4821: 0.7}) as (app, pilot):
        screen = screen_of(app, FeaturesScreen)
        screen.list.hide_dense = True
        screen.list.dense = dict.fromkeys(range(WIDTH), 0.7)
        for marked, said in (
            ([], "≋ 8 dense left out: z shows"),
            ([1, 2], "≋ 8 dense: z · ✓ 2 marked: w keeps a list"),
        ):
            screen.list.forget_marks()
            screen.list.marked.update(dict.fromkeys(marked))
            screen.list._say_what_is_left_out(8)
            await pilot.pause()
            assert in_region(app, screen.list.foot) == said


async def test_another_sae_is_loaded_by_its_key() -> None:
    async with opened("features") as (app, pilot):
        app.store.update(sae=None)
        await settle(app, pilot)
        await pilot.press(">")
        await settle(app, pilot)
        assert [job.path for job in jobs_of(app, jobs.LoadSAE) if isinstance(job, jobs.LoadSAE)] == [DEMO_SAE.path]
        assert screen_of(app, FeaturesScreen).text.encoded is not None


async def test_the_same_sae_after_its_model_was_loaded_again_has_the_page_read_again() -> None:
    async with opened("features") as (app, pilot):
        screen = screen_of(app, FeaturesScreen)
        feature = screen.page.feature
        assert feature is not None
        await pilot.press("1")
        app.store.update(sae=None, saes=())
        await settle(app, pilot)
        app.store.update(saes=(DEMO_SAE,), sae=DEMO_SAE.id)
        await settle(app, pilot)
        await pilot.press("4")
        await settle(app, pilot)
        assert screen.page.feature == feature
        assert screen.page.card.page is not None


async def test_an_index_of_another_sae_does_not_ask_for_the_feature_that_was_shown() -> None:
    async with opened("features") as (app, pilot):
        assert screen_of(app, FeaturesScreen).page.feature is not None
        await pilot.press("1")
        other = replace(DEMO_SAE, id="small", name="small", width=1)
        app.store.update(sae=other.id, saes=(DEMO_SAE, other))
        await settle(app, pilot)
        before = len(jobs_of(app, jobs.ReadFeature))
        app.store.update(work_done=app.store.session.work_done + 1)
        await settle(app, pilot)
        await pilot.pause(0.3)
        assert len(jobs_of(app, jobs.ReadFeature)) == before


@pytest.mark.parametrize("size", [(120, 36), (80, 24), (60, 16)])
async def test_every_part_has_room_at_any_size(size: tuple[int, int]) -> None:
    async with opened("features", size) as (app, pilot):
        screen = screen_of(app, FeaturesScreen)
        for widget in (screen.text.view, screen.list.list, screen.query_one("#card-scroll")):
            assert widget.region.height >= 2
            assert widget.region.width >= 20
        await pilot.press("tab", "tab", "t")
        await settle(app, pilot)
        assert screen.text.view.mode == "bars"


async def test_features_like_one_are_listed_and_gone_to() -> None:
    async with opened("features") as (app, pilot):
        screen = screen_of(app, FeaturesScreen)
        start = screen.list.chosen
        assert start is not None
        assert not jobs_of(app, ReadNeighbours)
        await pilot.press("v", "v")
        await settle(app, pilot)
        assert [job.feature for job in jobs_of(app, ReadNeighbours)] == [start]
        near = screen.page.near_features
        assert near[:2] == ((start + 37) % WIDTH, (start + 74) % WIDTH)
        assert f"things about number {near[1]}"[:16] in screen_text(app)  # read for its name alone
        assert (DEMO_SAE.id, near[-1]) in screen.page.pages
        await pilot.press("tab", "j", "enter")
        await settle(app, pilot)
        assert screen.list.chosen == near[1]
        assert screen.page.card.page is not None
        assert screen.page.card.page.feature == near[1]
        assert screen.page.near_features[0] == (near[1] + 37) % WIDTH
        await pilot.press("escape")
        await settle(app, pilot)
        assert screen.list.chosen == start
        assert screen.page.near_features == near  # kept, not asked for again
        assert len(jobs_of(app, ReadNeighbours)) == 2
        await pilot.press("v")
        assert len(screen.page.near_features) == (0 if start % 2 else 3)
        assert not start % 2 or "I makes an index that knows" in screen_text(app)
        await pilot.press("v")
        assert screen.page.near.has_class("-closed")


async def test_the_features_before_and_after_by_number() -> None:
    async with opened("features") as (app, pilot):
        screen = screen_of(app, FeaturesScreen)
        await pilot.press("slash", *"8191", "enter", "right_curly_bracket")
        await settle(app, pilot)
        assert screen.list.chosen == 0
        await pilot.press("left_curly_bracket", "left_curly_bracket")
        await settle(app, pilot)
        assert screen.list.chosen == WIDTH - 2
        assert screen.page.card.page is not None
        assert screen.page.card.page.feature == WIDTH - 2


async def test_keys_that_come_at_once_mean_the_feature_chosen_by_then() -> None:
    async with opened("features") as (app, pilot):
        screen = screen_of(app, FeaturesScreen)
        second = screen.list.list.rows[1][0]
        for key in ("j", "s"):
            app.simulate_key(key)
        await settle(app, pilot)
        assert app.store.session.steers[-1].vector.origin.facts["feature"] == second


async def test_text_and_page_of_before_are_marked_until_the_new_ones_are_there() -> None:
    async with opened("features") as (app, pilot):
        screen, worker = app.screen, app.worker
        assert isinstance(screen, FeaturesScreen)
        assert isinstance(worker, FakeWorker)
        card = screen.page.card
        assert card.page is not None
        shown, here = card.page.feature, card.here
        worker.hold()
        await pilot.press("right_curly_bracket")  # its page was not read with the names
        await pilot.pause(0.2)
        assert screen.list.chosen != shown
        assert (card.page.feature, card.here) == (shown, here), "figures of two features on one page"
        assert f"Feature {shown} · {screen.list.chosen} is being read" in screen_text(app)
        assert card.has_class("-before")
        app.store.update(prompt="A ship came over the sea")
        await pilot.pause(0.2)
        assert "Text · as of before: waits" in screen_text(app)  # for the page
        while "waits" in screen_text(app):
            worker.release(1)
            await settle(app, pilot)
        assert "Text · as of before: reading" in screen_text(app)
        worker.release()
        await settle(app, pilot)
        assert "as of before" not in screen_text(app)
        assert "is being read" not in screen_text(app)
        assert not card.has_class("-before")


async def test_a_first_reading_that_waits_says_so_until_it_begins() -> None:
    app = app_on("generate")
    async with app.run_test(size=(120, 36)) as pilot:
        worker = cast("FakeWorker", app.worker)
        fill(app)
        await settle(app, pilot)
        worker.hold()
        app.submit(jobs.RandomVector("other", 4, 0), "other", lambda _: None)
        await pilot.press("4")
        await settle(app, pilot)
        screen = screen_of(app, FeaturesScreen)
        panes = screen.text.view, screen.list.list
        assert [in_region(app, pane) for pane in panes] == ["waits for what runs …"] * 2
        while "waits" in screen_text(app):
            worker.release(1)
            await settle(app, pilot)
        assert [in_region(app, pane) for pane in panes] == ["reading …"] * 2


async def test_a_reading_that_fails_on_another_screen_opens_no_dialogue_there() -> None:
    app = app_on("generate", failures={jobs.Encode: LensError("It is gone.", "Look for it.")})
    async with app.run_test(size=(120, 36)) as pilot:
        worker = cast("FakeWorker", app.worker)
        fill(app)
        await settle(app, pilot)
        worker.hold()
        await pilot.press("4", "3")
        await settle(app, pilot)
        worker.release()
        await settle(app, pilot)
        assert app.screen is app.get_screen_stack("generate")[0]
        await pilot.press("4")
        await settle(app, pilot)
        assert len(jobs_of(app, jobs.Encode)) == 2
        assert "It is gone." in screen_text(app)
        assert isinstance(app.screen, ErrorScreen)


async def test_a_first_reading_says_so_in_list_and_text_and_one_that_was_stopped_is_asked_again() -> None:
    app = app_on("generate")
    async with app.run_test(size=(120, 36)) as pilot:
        worker = cast("FakeWorker", app.worker)
        fill(app)
        await settle(app, pilot)
        worker.hold()
        await pilot.press("4")
        await settle(app, pilot)
        screen = screen_of(app, FeaturesScreen)
        for pane in (screen.text.view, screen.list.list):
            assert in_region(app, pane) == "reading …"
        await pilot.press("x")
        worker.release()
        await settle(app, pilot)
        for pane in (screen.text.view, screen.list.list):
            assert in_region(app, pane) == "stopped"
        await pilot.press("3", "4")
        await settle(app, pilot)
        assert screen.text.encoded is not None
        assert screen.list.features
