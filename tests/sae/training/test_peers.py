"""Two processes that train together give the loss curve of one on the whole batches."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from lens_tui.records import LensError
from lens_tui.records.training import Architecture, TrainConfig
from lens_tui.sae.training.peers import peers_of
from lens_tui.sae.training.trainer import train
from tests.lens.sharing.ring import results

from .synthetic import Synthetic

CONFIG: dict[str, Any] = {
    "width": 48, "k": 3, "tokens": 128 * 40, "batch": 128, "learning_rate": 3e-3, "calibration_tokens": 500,
    "pool_tokens": 1024, "evaluation_tokens": 400, "evaluate_every": 10, "dead_after": 2000, "l0_linear": True,
    "aux_coefficient": 0.0,
}  # fmt: skip


def curve(folder: Path, architecture: Any, *, parallel: bool) -> list[list[float]]:
    """FVU and L0 at each evaluation of a short training."""
    config = TrainConfig(architecture=architecture, **CONFIG)
    report = train(Synthetic(), config, folder / architecture, parallel=parallel)
    return [[each.fvu, each.l0] for each in report.history]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return results(tmp_path_factory.mktemp("peers"), 2, ["-m", "tests.sae.training.test_peers"])


@pytest.mark.parametrize("architecture", ["topk", "jumprelu"])
def test_two_processes_give_the_curve_of_one_on_batches_twice_as_large(
    together: list[Any], architecture: str, tmp_path: Path
) -> None:
    alone = np.array(curve(tmp_path, architecture, parallel=False))
    assert len(alone) == 4
    assert alone[0, 0] - alone[-1, 0] > 0.02  # it learns
    for found in together:
        np.testing.assert_allclose(np.array(found[architecture]), alone, rtol=2e-3, atol=2e-4)


def test_half_of_the_rows_alone_is_another_curve(together: list[Any], tmp_path: Path) -> None:
    config = TrainConfig(architecture="topk", **{**CONFIG, "batch": 64, "tokens": 64 * 40})
    other = [[each.fvu, each.l0] for each in train(Synthetic(), config, tmp_path).history]
    assert np.abs(np.array(other) - np.array(together[0]["topk"])).max() > 5e-3


def test_rank_0_alone_writes(together: list[Any]) -> None:
    assert [found["wrote"] for found in together] == [True, False]


def test_what_cannot_be_shared_is_refused() -> None:
    assert "batchtopk" in get_args(Architecture)
    with pytest.raises(LensError, match="this is the only one"):
        peers_of(128, "topk")


def main() -> None:
    """Train in this process of several."""
    folder = Path(f"rank-{os.environ['MLX_RANK']}")
    found: dict[str, Any] = {name: curve(folder, name, parallel=True) for name in ("topk", "jumprelu")}
    found["wrote"] = (folder / "topk" / "params.safetensors").exists()
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
