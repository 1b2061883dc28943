"""A row's mode and positions where a run is shown, copied and kept."""

from __future__ import annotations

import pytest

from lens_tui.cli.arms import parse_arm
from lens_tui.records import Origin, Positions
from lens_tui.records.modes import MODES, POSITIONS
from lens_tui.tui.run_export import as_command
from lens_tui.tui.run_text import RunText
from lens_tui.tui.session import SessionStore
from lens_tui.tui.widgets.lane import strength
from tests.fakes import DEMO_MODEL, unit_vector


def run_of(mode: str, kind: str, origin: Origin) -> RunText:
    store = SessionStore()
    store.update(model=DEMO_MODEL, prompt="Once")
    positions = None if kind == "all" else Positions(kind)  # type: ignore[arg-type]
    store.add_steer(unit_vector("v", origin=origin), scale=0.5, mode=mode, positions=positions)
    return RunText.begin(1, store.session)


@pytest.mark.parametrize("mode", [mode.id for mode in MODES])
@pytest.mark.parametrize("kind", POSITIONS)
def test_the_copied_command_says_mode_and_positions(mode: str, kind: str) -> None:
    command = as_command(run_of(mode, kind, Origin("feature", {"sae": "s", "feature": 7})))
    arm = command.split("--arm ")[1].split(" --max-tokens")[0].strip("'")
    (term,) = parse_arm(arm).terms
    assert (term.source, term.layer, term.mode, term.positions) == ("7", 4, mode, kind)
    assert term.scale == (0.0 if mode == "project_out" else 0.5)
    assert "# without" not in command


def test_what_a_command_cannot_say_is_named() -> None:
    command = as_command(run_of("norm_match", "all", Origin("arithmetic", {})))
    assert command.endswith("# without v")


def test_a_lane_says_what_is_done_in_it() -> None:
    said = [strength(run_of(mode.id, "all", Origin()).arms[1].interventions) for mode in MODES]
    assert said == ["+0.5", "+0.50 ‖h‖", "projected out", "= +0.5", "≤ +0.5", "≥ +0.5"]
