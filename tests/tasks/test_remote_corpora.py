"""Index, training and capture from and to an address give what plain paths give, and are taken up there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lens_tui import LensModel
from lens_tui.records import paths
from lens_tui.records.training import TrainConfig
from lens_tui.sae.load_sae import SAE, load_sae
from lens_tui.tasks.capture import capture_texts
from lens_tui.tasks.index import index_text, merge_index
from lens_tui.tasks.train import train_sae
from tests.folders import sae_folder
from tests.lens import tiny

fsspec = pytest.importorskip("fsspec")

CONFIG = TrainConfig(
    width=32, k=4, tokens=256, batch=32, pool_tokens=64, calibration_tokens=32, evaluation_tokens=32, warmup=1
)
WINDOWS: dict[str, Any] = {"context": 12, "rows": 2}


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path / "home"))
    file = tmp_path / "texts.jsonl"
    lines = [f"The keeper counted {number} boats, and the lamp was burning when they came home." for number in range(9)]
    file.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    fsspec.filesystem("memory").pipe_file("/corpus/texts.jsonl", file.read_bytes())
    yield file
    fsspec.filesystem("memory").store.clear()


def model() -> LensModel:
    return LensModel.from_model(tiny.llama(vocab=8192), tiny.tokenizer())


def there(folder: str) -> dict[str, bytes]:
    """The files of a folder in memory, by their names below it."""
    memory = fsspec.filesystem("memory")
    return {name.removeprefix(f"/{folder}/"): memory.cat_file(name) for name in memory.find(f"/{folder}")}


def here(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def after(calls: int) -> Callable[[], bool]:
    """Asks to stop at a call of this number."""
    left = iter(range(calls))
    return lambda: next(left, None) is None


def sae_of(lens: LensModel, folder: Path) -> SAE:
    return load_sae(sae_folder(folder, d_model=lens.d_model), layer=1, site="resid_post")


def test_a_capture_goes_there_shard_by_shard_and_on(text: Path, tmp_path: Path) -> None:
    lens, options = model(), {**WINDOWS, "shard_bytes": 10_000}
    plain = capture_texts(lens, text, tmp_path / "out", [(1, "resid_post")], **options)
    first = capture_texts(
        lens, "memory://corpus/texts.jsonl", "memory://out/c", [(1, "resid_post")], should_stop=after(7), **options
    )
    assert first.stopped
    assert len(first.shards) < len(plain.shards)
    assert not list((tmp_path / "home").rglob("*.safetensors"))
    done = capture_texts(lens, "memory://corpus/texts.jsonl", "memory://out/c", [(1, "resid_post")], **options)
    assert (done.n_tokens, done.folder) == (plain.n_tokens, "memory://out/c")
    assert done.shards[0] == "memory://out/c/shard-00000.safetensors"
    whole = capture_texts(lens, "memory://corpus", "memory://out/d", [(1, "resid_post")], **options)
    assert not whole.stopped
    assert there("out/d") == here(tmp_path / "out")


def test_an_index_there_is_that_of_plain_paths(text: Path, tmp_path: Path) -> None:
    lens = model()
    sae = sae_of(lens, tmp_path / "sae")
    (plain,) = index_text(lens, [sae], text, tmp_path / "indexes", **WINDOWS).indexes
    first = index_text(lens, [sae], "memory://corpus", "memory://indexes", should_stop=after(4), **WINDOWS)
    assert first.stopped
    assert any(name.endswith("part-0-of-1/state.json") for name in there("indexes"))
    (made,) = index_text(lens, [sae], "memory://corpus", "memory://indexes", **WINDOWS).indexes
    same_arrays(here(plain), there(f"indexes/{made.name}"))
    assert {name.split("/")[0] for name in there("indexes")} == {plain.name}
    parts = [
        index_text(lens, [sae], "memory://corpus", "memory://parts", shard=(number, 2), **WINDOWS).parts[0]
        for number in range(2)
    ]
    merged = merge_index(lens, sae, [f"memory://parts/{part.name}" for part in parts], "memory://merged")
    same_arrays(here(plain), there(f"merged/{merged.name}"))
    assert there("parts") == {}


def same_arrays(ours: dict[str, bytes], theirs: dict[str, bytes]) -> None:
    assert set(ours) == set(theirs)
    assert sum(name.endswith(".npy") for name in ours) > 5
    assert [name for name in ours if name.endswith(".npy") and ours[name] != theirs[name]] == []


def test_training_goes_on_there_with_the_same_numbers(text: Path, tmp_path: Path) -> None:
    lens = model()
    options: dict[str, Any] = {"layer": 1, "held_out": 3, **WINDOWS}
    plain = train_sae(lens, text, tmp_path / "sae", CONFIG, **options)
    first = train_sae(lens, "memory://corpus", "memory://sae", CONFIG, should_stop=after(30), **options)
    assert first.stopped
    assert "training/checkpoint.safetensors" in there("sae")
    done = train_sae(lens, "memory://corpus", "memory://sae", CONFIG, **options)
    assert (done.folder, done.final) == ("memory://sae", plain.final)
    found = there("sae")
    assert set(found) == set(here(tmp_path / "sae"))
    assert found["params.safetensors"] == here(tmp_path / "sae")["params.safetensors"]
    assert np.isfinite(plain.final.fvu if plain.final else np.nan)
