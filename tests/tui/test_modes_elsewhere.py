"""A row's mode and positions where a run is shown, copied and kept."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lens_tui import demo
from lens_tui.records import Add, Origin, Positions, SteeringVector
from lens_tui.records.arm_syntax import parse_arm
from lens_tui.records.interventions import MODES, POSITIONS
from lens_tui.records.vector_formats import load_one
from lens_tui.records.vector_formats.own import write_one
from lens_tui.tasks.run_command import as_command
from lens_tui.tui.lane_text import strength
from lens_tui.tui.run_text import RunText
from lens_tui.tui.session import SessionStore
from tests.fakes import DEMO_MODEL, unit_vector


def run_of(mode: str, kind: str, origin: Origin, layer: int = 4, vector: SteeringVector | None = None) -> RunText:
    store = SessionStore()
    store.update(model=DEMO_MODEL, prompt="Once")
    positions = None if kind == "all" else Positions(kind)  # type: ignore[arg-type]
    vector = vector or unit_vector("v", layer, origin=origin)
    store.add_steer(vector, scale=0.5, mode=mode, positions=positions)
    return RunText.begin(1, store.session)


@pytest.mark.parametrize("mode", [mode.id for mode in MODES])
@pytest.mark.parametrize("kind", POSITIONS)
def test_the_copied_command_says_mode_and_positions(mode: str, kind: str) -> None:
    run = run_of(mode, kind, Origin("feature", {"sae": "s", "feature": 7}))
    assert as_command(run.record()).endswith("# without v; the SAE s is not available")
    run.made_with = replace(run.made_with, saes={"s": "/saes/s"})
    command = as_command(run.record())
    assert "--sae /saes/s" in command
    arm = command.split("--arm ")[1].split(" --sae")[0].strip("'")
    (term,) = parse_arm(arm).terms
    assert (term.source, term.layer, term.mode, term.positions) == ("7", 4, mode, kind)
    assert term.scale == (0.0 if mode == "project_out" else 0.5)
    assert "#" not in command


def test_what_a_command_cannot_say_is_named() -> None:
    command = as_command(run_of("norm_match", "all", Origin("arithmetic", {})).record())
    assert command.endswith("# without v")


def test_a_vector_of_a_file_is_named_by_it(tmp_path: Path) -> None:
    rows = np.eye(10, 384, dtype=np.float32)[:9]
    np.save(tmp_path / "hidden.npy", rows)
    np.savez(tmp_path / "named.npz", evil=rows[0], kind=rows[1])
    own = write_one(unit_vector("own", 4, origin=Origin("arithmetic", {})), tmp_path / "own.safetensors")
    for source, layer in ((str(own), 4), (f"{tmp_path}/hidden.npy", 4), (f"{tmp_path}/named.npz:kind", 2)):
        vector = load_one(source, layer=layer, n_layers=8)
        command = as_command(run_of("add", "all", Origin(), vector=vector).record())
        assert "# without" not in command
        (term,) = parse_arm(shlex.split(command)[5].split("=")[-1]).terms
        assert (term.source, term.layer, term.scale) == (source, layer, 0.5)
        again = load_one(term.source, layer=term.layer, n_layers=8)
        assert np.array_equal(again.direction, vector.direction)
    other = unit_vector("other", 4, origin=Origin("file", {"path": str(own)}))
    assert as_command(run_of("add", "all", Origin(), vector=other).record()).endswith("# without other")
    own.unlink()
    assert as_command(run_of("add", "all", Origin("arithmetic", {"path": str(own)})).record()).endswith("# without v")


def test_a_bundled_vector_is_named() -> None:
    ready = demo.vectors()[0]
    vector = load_one(ready.path)
    command = as_command(run_of("add", "all", Origin("prompts", vector.origin.facts), vector.layer).record())
    assert f"{ready.name}@{vector.layer}*0.5" in command


def test_a_lane_says_what_is_done_in_it() -> None:
    said = [strength(run_of(mode.id, "all", Origin()).arms[1].interventions) for mode in MODES]
    assert said == ["+0.5", "+0.50 ‖h‖", "projected out", "= +0.5", "≤ +0.5", "≥ +0.5"]


def test_a_lane_says_where_it_is_done_if_not_everywhere() -> None:
    def done(*positions: Positions) -> str:
        vector = SteeringVector.of("v", np.ones(4), 1, max_activation=4.0)
        return strength(
            [Add(id=str(n), layer=1, vector=vector, scale=2.0, positions=at) for n, at in enumerate(positions)]
        )

    user = Positions("role", role="user")
    assert done(Positions("all")) == "+2.0 · 0.5×max"
    assert done(Positions("generated")) == "+2.0 · generated only · 0.5×max"
    assert done(user, user) == "+2.0, +2.0 · the user's turns"
    assert done(user, Positions("all")) == "+2.0, +2.0 · positions differ"
