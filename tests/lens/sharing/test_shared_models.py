"""Two processes that share a model give what one gives: steering, captures, comparison, features and measures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lens_tui.lens.architecture.placement import place, stages_of
from lens_tui.lens.architecture.ranks import Shared
from lens_tui.records import LensError
from tests.lens import tiny

from . import ask
from .ring import results

SLICED = ("llama", "qwen3", "llama4bit", "qwen3_moe")
STAGED = ("llama", "gemma3", "qwen3", "llama4bit")
REFUSED = ("site", "patterns")


@pytest.fixture(scope="module")
def by_tensor(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return results(tmp_path_factory.mktemp("tensor"), 2, ["-m", "tests.lens.sharing.ask", "tensor", *SLICED, "gemma3"])


@pytest.fixture(scope="module")
def by_layers(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    asked = ["-m", "tests.lens.sharing.ask", "pipeline", *STAGED, "rwkv7"]
    return results(tmp_path_factory.mktemp("layers"), 2, asked)


@pytest.mark.parametrize("architecture", SLICED)
def test_a_slice_of_every_layer_in_each_process_gives_what_one_process_gives(
    by_tensor: list[Any], architecture: str
) -> None:
    alone = ask.all_of(architecture)
    for rank, found in enumerate(by_tensor):
        _alike(found[architecture], alone, f"rank {rank}", 3e-4)
        assert found[architecture]["site"] == ""  # it is gathered
        assert "Patterns of attention" in found[architecture]["patterns"]


@pytest.mark.parametrize("architecture", STAGED)
def test_some_layers_in_each_process_give_what_one_process_gives(by_layers: list[Any], architecture: str) -> None:
    alone = ask.all_of(architecture)
    for rank, found in enumerate(by_layers):
        _alike(found[architecture], alone, f"rank {rank}", 1e-5)
        assert "attn_z, inside a block," in found[architecture]["site"]
        assert "Patterns of attention" in found[architecture]["patterns"]


def test_processes_agree_on_a_seed_that_nobody_gave(by_tensor: list[Any], by_layers: list[Any]) -> None:
    for found in (by_tensor, by_layers):
        assert found[0]["llama"]["seedless"] == found[1]["llama"]["seedless"]


def test_a_model_that_cannot_be_shared_is_refused_in_every_process(by_tensor: list[Any], by_layers: list[Any]) -> None:
    for found in by_tensor:
        assert found["gemma3"]["refused"].startswith("mlx-lm has no tensor parallelism for gemma3_text models.")
    for found in by_layers:
        assert "so they cannot be shared by layers" in found["rwkv7"]["refused"]


def test_one_process_alone_and_other_words_are_refused() -> None:
    if "MLX_RANK" not in os.environ:
        with pytest.raises(LensError, match="this is the only one"):
            ask.model_of("llama", "tensor")
    with pytest.raises(LensError, match="shard cannot be 'both'"):
        ask.model_of("llama", "both")


@pytest.mark.parametrize(("layers", "size"), [(4, 2), (7, 3), (80, 8), (3, 3)])
def test_stages_are_even_and_in_order(layers: int, size: int) -> None:
    stages = stages_of(layers, size)
    assert [layer for stage in stages for layer in stage] == list(range(layers))
    assert {len(stage) for stage in stages} <= {layers // size, -(-layers // size)}


def test_fewer_layers_than_processes_are_refused() -> None:
    with pytest.raises(LensError, match="cannot be divided among 5"):
        stages_of(4, 5)


def test_what_fails_in_one_process_fails_in_all(tmp_path: Path) -> None:
    code = (
        "import json, os; from tests.lens import tiny; from lens_tui import LensModel, LensError\n"
        "model = tiny.llama()\n"
        "if os.environ['MLX_RANK'] == '1': model.model.layers[2].self_attn.n_heads = 5\n"
        "try: LensModel.from_model(model, shard='tensor')\n"
        "except LensError as error: print(json.dumps(str(error)))\n"
    )
    first, second = results(tmp_path, 2, ["-c", code])
    assert second.startswith("The decoder blocks of this llama model cannot be proved")
    assert first.startswith(f"Process 1 of 2 failed: {second[:60]}")


def test_heads_that_cannot_be_divided_are_refused_in_a_sentence() -> None:
    lens = ask.model_of("llama")
    with pytest.raises(LensError, match="4 heads of attention cannot be divided among 3 processes"):
        place(lens.model, lens.registry.decoder, Shared("tensor", 0, 3, None))


def _alike(found: dict[str, Any], alone: dict[str, Any], where: str, tolerance: float) -> None:
    for name in alone.keys() - {"seedless"}:
        if name == "sites" or name not in found:
            assert found.get(name, alone[name]) == alone[name], (where, name)
            continue
        one, other = (_flat(values[name]) for values in (found, alone))
        assert one.shape == other.shape, (where, name)
        assert np.abs(one - other).max() <= tolerance * max(1.0, np.abs(other).max()), (where, name)


def _flat(values: Any) -> np.ndarray[Any, Any]:
    found: list[float] = []
    left = [values]
    while left:
        item = left.pop()
        left.extend(item) if isinstance(item, list) else found.append(float(item))
    return np.array(found)


def test_the_answers_are_of_a_model_that_is_steered() -> None:
    lens = ask.model_of("llama")
    found = ask.answers(lens)
    assert abs(found["delta loss"][0] - found["delta loss"][1]) > 1e-3
    assert any(token[3] > 1e-3 for token in found["compared"])
    assert len(found["logits"][0][0]) == tiny.VOCAB
