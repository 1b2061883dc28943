"""Files of Jacobian lenses: ours there and back, published ones as ``torch.save`` writes them, and damaged ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from lens_tui.records import LensError
from lens_tui.records.jacobian_lens import JacobianLens, read_jacobian_lens, write_jacobian_lens
from tests.sae.reading.makers import write_torch

RNG = np.random.default_rng(3)
MATRICES = {0: RNG.normal(size=(6, 6)).astype(np.float32), 3: RNG.normal(size=(6, 6)).astype(np.float32)}


def lens() -> JacobianLens:
    return JacobianLens("tiny", MATRICES, 12, 340, {0: 0.25, 3: 0.125}, {"skip": 16, "convergence": [[2, 0.5]]})


def test_ours_comes_back_to_the_last_bit_in_float32_and_to_half_precision_in_float16(tmp_path: Path) -> None:
    for dtype in ("float32", "float16"):
        found = read_jacobian_lens(write_jacobian_lens(lens(), tmp_path / f"{dtype}.safetensors", dtype))
        for layer, matrix in MATRICES.items():
            np.testing.assert_array_equal(found.matrix(layer), matrix.astype(dtype).astype(np.float32))
        assert (found.model, found.n_texts, found.n_positions, found.layers) == ("tiny", 12, 340, (0, 3))
        assert (found.errors, found.facts) == (lens().errors, lens().facts)


@pytest.mark.parametrize("storage", ["HalfStorage", "FloatStorage", "BFloat16Storage"])
def test_published_files_are_read_without_torch(tmp_path: Path, storage: str) -> None:
    held: dict[str, Any] = {"J": MATRICES, "n_prompts": 1000, "source_layers": [0, 3], "d_model": 6}
    found = read_jacobian_lens(write_torch(tmp_path / "m_jacobian_lens.pt", held, storage), model="gemma")
    exact = storage == "FloatStorage"
    for layer, matrix in MATRICES.items():
        np.testing.assert_allclose(found.matrix(layer), matrix, rtol=0 if exact else 1e-2)
    assert (found.model, found.n_texts, found.d_model, found.layers) == ("gemma", 1000, 6, (0, 3))
    # vLLM-Lens' does not say how many.
    del held["n_prompts"]
    assert read_jacobian_lens(write_torch(tmp_path / "lens.pt", held, storage)).n_texts == 0


@pytest.mark.parametrize(
    ("held", "says"),
    [
        ({"J": {}}, "no Jacobian lens"),
        ({"K": MATRICES}, "no Jacobian lens"),
        ([1, 2], "no Jacobian lens"),
        ({"J": {"0": MATRICES[0]}}, "no matrices"),
        ({"J": {0: 4}}, "no matrices"),
        ({"J": {0: MATRICES[0][:4]}}, "no square matrices"),
        ({"J": {0: MATRICES[0], 1: MATRICES[0][:4, :4].copy()}}, "no square matrices"),
        ({"J": {-1: MATRICES[0]}}, "no square matrices"),
        ({"J": {0: np.full((6, 6), np.nan, np.float32)}}, "not finite"),
    ],
)
def test_other_torch_files_are_refused_in_a_sentence(tmp_path: Path, held: Any, says: str) -> None:
    with pytest.raises(LensError, match=says):
        read_jacobian_lens(write_torch(tmp_path / "x.pt", held))


def test_other_safetensors_and_what_is_no_file_are_refused(tmp_path: Path) -> None:
    save_file({"J.0": MATRICES[0]}, tmp_path / "a.safetensors")
    with pytest.raises(LensError, match="is no Jacobian lens"):
        read_jacobian_lens(tmp_path / "a.safetensors")
    save_file({"J.0": MATRICES[0]}, tmp_path / "b.safetensors", {"format": "mlx-lens-tui.jacobian-lens", "record": "{"})
    with pytest.raises(LensError, match="its record"):
        read_jacobian_lens(tmp_path / "b.safetensors")
    record = {"model": "m", "n_texts": 1, "n_positions": 1, "errors": {"x": 1}, "facts": {}}
    meta = {"format": "mlx-lens-tui.jacobian-lens", "record": json.dumps(record)}
    save_file({"J.0": MATRICES[0]}, tmp_path / "c.safetensors", meta)
    with pytest.raises(LensError, match="cannot be read"):
        read_jacobian_lens(tmp_path / "c.safetensors")
    with pytest.raises(LensError, match="no file"):
        read_jacobian_lens(tmp_path / "d.safetensors")


def test_a_lens_of_another_model_is_refused() -> None:
    lens().check_fits(6, 4, "tiny")
    with pytest.raises(LensError, match="6 wide"):
        lens().check_fits(8, 4)
    with pytest.raises(LensError, match="layer 3"):
        lens().check_fits(6, 3)
    with pytest.raises(LensError, match="fitted to tiny"):
        lens().check_fits(6, 4, "other")
    with pytest.raises(LensError, match="no layer 1"):
        lens().matrix(1)
    with pytest.raises(LensError, match="float16"):
        write_jacobian_lens(JacobianLens("m", {0: np.full((2, 2), 1e6, np.float32)}), Path("never.safetensors"))
