"""Labels and words on the Features screen, and whether the SAE fits."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest

from lens_tui.records.training import FitReport, SiteFit
from lens_tui.tui.screens.features_screen import FeaturesScreen
from lens_tui.tui.widgets.feature_card import page_lines
from lens_tui.worker import jobs
from lens_tui.worker.events import FeaturePage
from tests.fakes import DEMO_SAE, FakeWorker, bare_facts, label_of, unit_vector

from .opened import jobs_of, opened, screen_of, screen_text, settle

ROWS = (SiteFit((4, "resid_post"), 140, 44.0, 0.9), SiteFit((5, "resid_post"), 140, 40.0, 0.2))
BETTER = FitReport(
    "fits better elsewhere", "It says 4 but fits 5.", ROWS, (4, "resid_post"), 41.0, 0.16, (5, "resid_post")
)
FITS = FitReport("fits", "It fits resid_post of layer 4.", ROWS[:1], (4, "resid_post"), 41.0, 0.16)
POOR = FitReport("does not fit", "It fits nothing.", ROWS[:1], (4, "resid_post"), 41.0, 0.16)


async def test_a_label_is_written_shown_and_taken_away() -> None:
    async with opened("features") as (app, pilot):
        feature = screen_of(app, FeaturesScreen).list.chosen
        assert feature is not None
        for text, shown in (("nautical words", "nautical words"), ("", f"things about number {feature}")):
            await pilot.press("L")
            await pilot.pause()
            await pilot.press("ctrl+u", *text, "enter")
            await settle(app, pilot)
            sent = jobs_of(app, jobs.SetLabel)
            assert sent[-1] == jobs.SetLabel(DEMO_SAE.id, feature, text)
            assert shown in screen_text(app)
        await pilot.press("L", "escape")
        await settle(app, pilot)
        assert len(jobs_of(app, jobs.SetLabel)) == 2


async def test_words_find_features_and_escape_goes_back() -> None:
    async with opened("features") as (app, pilot):
        screen = screen_of(app, FeaturesScreen)
        before = list(screen.list.list.rows)
        await pilot.press("/", *"sea", "enter")
        await settle(app, pilot)
        assert [row[0] for row in screen.list.list.rows] == [17, 4]
        assert screen.list.chosen == 17
        assert "“sea”" in screen_text(app)
        await pilot.press("j")
        await settle(app, pilot)
        assert screen.list.chosen == 4
        await pilot.press("l", "h")
        await settle(app, pilot)
        assert [row[0] for row in screen.list.list.rows] == [17, 4]
        await pilot.press("escape")
        await settle(app, pilot)
        assert list(screen.list.list.rows) == before
        await pilot.press("/", *"nothing", "enter")
        await settle(app, pilot)
        assert list(screen.list.list.rows) == before


@pytest.mark.parametrize(
    ("report", "says"), [(FITS, "✓ fits"), (BETTER, "fits resid_post 5 better"), (POOR, "! does not fit")]
)
async def test_the_verdict_on_the_sae_stands_beside_its_name(report: FitReport, says: str) -> None:
    async with opened("features", (160, 36)) as (app, pilot):
        cast("FakeWorker", app.worker).fits = {DEMO_SAE.id: report}
        app.opening.load_sae(DEMO_SAE.path)
        await settle(app, pilot)
        assert app.store.session.fit(DEMO_SAE.id) == report
        assert says in screen_text(app)


def test_a_label_of_another_tool_says_whose_it_is() -> None:
    for source, shown in (("neuronpedia", True), ("mine", False)):
        facts = replace(bare_facts(4), labels=(label_of(4, "boats", source),))
        page = FeaturePage(1, "s", 4, facts, unit_vector("x"))
        lines = [line.plain for line in page_lines(page, 40, 0.0, "off")]
        assert lines[0] == "boats"
        assert (f"says {source}" in lines) is shown
    facts = replace(bare_facts(4), labels=(label_of(4, "boats", "bundled", 0.9, "detection"),))
    scored = page_lines(FeaturePage(1, "s", 4, facts, unit_vector("x")), 40, 0.0, "off")
    assert scored[1].plain == "bundled · detection 0.90"
