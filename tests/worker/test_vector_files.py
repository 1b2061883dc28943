"""A vector from a file onto the bench, on a small real model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lens_tui.records import SteeringVector
from lens_tui.records.vector_formats import save_vectors
from lens_tui.worker import events as ev
from lens_tui.worker import jobs
from tests.folders import D_MODEL, N_LAYERS
from tests.worker.drive import Driver, only


def vector(layer: int, width: int = D_MODEL) -> SteeringVector:
    return SteeringVector.of(f"v{layer}", np.cos(np.arange(width) * (layer + 1)), layer)


@pytest.mark.parametrize("suffix", [".safetensors", ".gguf", ".npy", ".npz", ".json"])
def test_each_format_gives_the_same_direction_and_what_it_does(loaded: Driver, tmp_path: Path, suffix: str) -> None:
    wanted = vector(1)
    file = save_vectors(wanted, tmp_path / f"v{suffix}")
    made = only(loaded.done(jobs.VectorFromFile(str(file), 1)), ev.VectorMade)
    assert made.vector.layer == 1
    np.testing.assert_allclose(made.vector.direction, wanted.direction, rtol=0, atol=1e-6)
    assert made.residual_norm is not None
    assert made.residual_norm > 0
    assert len(made.promoted) == 10


def test_of_several_layers_all_are_a_set_or_one_is_taken(loaded: Driver, tmp_path: Path) -> None:
    file = save_vectors([vector(layer) for layer in range(1, N_LAYERS)], tmp_path / "all.gguf")
    for number in range(1, N_LAYERS):
        (tmp_path / "folder").mkdir(exist_ok=True)
        save_vectors(vector(number), tmp_path / "folder" / f"v{number}.safetensors")
    for place in (file, tmp_path / "folder"):
        every = only(loaded.done(jobs.VectorFromFile(str(place))), ev.VectorMade)
        assert every.vector.name == place.name
        assert [every.vector.layer, *(one.layer for one in every.rest)] == list(range(1, N_LAYERS))
        for one in every.rest:
            np.testing.assert_allclose(one.direction, vector(one.layer).direction, rtol=0, atol=1e-6)
    twice = save_vectors({"a": vector(1), "b": vector(1)}.values(), tmp_path / "twice.safetensors")  # type: ignore[arg-type]
    failed = loaded.failed(jobs.VectorFromFile(str(twice)))
    assert "one at a time" in failed.message
    made = only(loaded.done(jobs.VectorFromFile(str(file), 1)), ev.VectorMade)
    np.testing.assert_allclose(made.vector.direction, vector(1).direction, rtol=0, atol=1e-6)


def test_what_does_not_fit_says_why(loaded: Driver, tmp_path: Path) -> None:
    wide = save_vectors(vector(0, D_MODEL + 1), tmp_path / "wide.npy")
    assert f"has width {D_MODEL + 1}" in loaded.failed(jobs.VectorFromFile(str(wide), 0)).message
    deep = save_vectors(vector(N_LAYERS), tmp_path / "deep.safetensors")
    assert f"layers are 0 to {N_LAYERS - 1}" in loaded.failed(jobs.VectorFromFile(str(deep))).message
    assert "There is no file" in loaded.failed(jobs.VectorFromFile(str(tmp_path / "none.npy"))).message
