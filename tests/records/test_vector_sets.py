"""Vectors of several layers steer as one: read from a file or a folder, each at its own length times one number."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import LensModel, load_vector_set, save_vectors, set_interventions
from lens_tui.cli.sources import Vectors
from lens_tui.records import Add, Arm, LensError, ProjectOut, SteeringVector
from lens_tui.records.arm_syntax import parse_arm
from tests.lens import numpy_models, tiny

RAW = {layer: np.random.default_rng(layer).normal(size=64) * (layer + 1) for layer in (1, 2, 3)}
VECTORS = tuple(SteeringVector.of("v", values, layer) for layer, values in RAW.items())


def written(folder: Path, *, apart: bool) -> Path:
    if not apart:
        save_vectors(VECTORS, folder / "set.gguf")
        return folder / "set.gguf"
    for vector in VECTORS:
        save_vectors([vector], folder / f"vec_layer_{vector.layer}.safetensors")
    return folder


@pytest.mark.parametrize("apart", [False, True])
def test_an_arm_of_a_set_is_numpys_sum_at_every_layer(tmp_path: Path, apart: bool) -> None:
    model = tiny.llama()
    lens = LensModel.from_model(model)
    arm = Vectors(lens, "", "other").arm(parse_arm(f"{written(tmp_path, apart=apart)}@all*0.5"))
    assert [record.layer for record in arm.interventions] == [1, 2, 3]

    def edit(layer: int, site: str, x: numpy_models.Array) -> numpy_models.Array:
        return x + 0.5 * RAW[layer] if site == "resid_post" and layer in RAW else x

    expected = numpy_models.llama(model, tiny.IDS, edit)
    with lens.intervene(*arm.interventions):
        found = np.array(lens.forward(mx.array([tiny.IDS])))[0]
    np.testing.assert_allclose(found, expected, atol=5e-4)
    run = lens.compare(list(tiny.IDS), [Arm("baseline"), arm], max_tokens=2, raw=True)
    list(run)
    asked = {dose.layer: dose.asked for dose in run.doses(1)}
    assert asked == pytest.approx(
        {layer: 0.5 * float(np.linalg.norm(values)) for layer, values in RAW.items()}, rel=1e-4
    )


def test_other_modes_take_the_scale_as_it_is() -> None:
    add, match = (set_interventions("s", VECTORS, 0.5, mode=mode) for mode in ("add", "norm_match"))
    assert [record.scale for record in add if isinstance(record, Add)] == [0.5 * vector.norm for vector in VECTORS]
    assert [getattr(record, "scale", None) for record in match] == [0.5] * 3
    assert all(isinstance(record, ProjectOut) for record in set_interventions("s", VECTORS, 0.0, mode="project_out"))


def test_what_is_no_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LensError, match="no vectors"):
        load_vector_set(tmp_path)
    for name in "ab":
        save_vectors([VECTORS[0]], tmp_path / f"{name}.safetensors")
    with pytest.raises(LensError, match="several vectors for layer 1"):
        load_vector_set(tmp_path)
    with pytest.raises(LensError, match="width"):
        load_vector_set(tmp_path / "a.safetensors", d_model=8)
