"""The bundled Jacobian lens is of the bundled model, and a swap through it does what its page says."""

from __future__ import annotations

import pytest

from lens_tui import LensModel, demo, logit_lens, read_jacobian_lens, swap
from lens_tui.tasks.jacobian_lenses import lens_of


def test_it_is_found_and_swaps_a_dog_for_a_cat() -> None:
    with LensModel(demo.NAME) as lens:
        found = lens_of(lens.info)
        assert found.layers == tuple(range(7))
        assert (found.n_texts, found.n_positions) == (70, 3181)
        prompt, cat = "The girl had a dog. She loved her", " cat"
        record = swap(lens, found, " dog", cat, 5)
        plain, swapped = (
            float(logit_lens(lens, prompt, layers=[-1], target=cat, interventions=records).target_probabilities[0, -1])
            for records in ((), (record,))
        )
        readout = logit_lens(lens, prompt, through=found)
    assert plain == pytest.approx(0.004, abs=1e-3)
    assert swapped == pytest.approx(0.553, abs=5e-3)
    assert readout.layers == tuple(range(8))
    assert readout.agreement[-1] == 1.0


def test_its_errors_fall_from_layer_to_layer() -> None:
    errors = read_jacobian_lens(demo.jacobian_lens_path()).errors
    assert [round(errors[layer], 3) for layer in (0, 6)] == [0.069, 0.022]
    assert all(errors[layer] > errors[layer + 1] for layer in range(6))
