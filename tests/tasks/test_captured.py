"""Training from a capture: its rows are what was captured, and the same capture gives the same SAE."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import LensModel
from lens_tui.records import LensError
from lens_tui.records.interventions import Ablate
from lens_tui.records.training import TrainConfig
from lens_tui.tasks import captured
from lens_tui.tasks.capture import MANIFEST, capture_texts
from lens_tui.tasks.captured import CapturedActivations, is_capture, train_on_capture
from tests.lens import tiny

PLACES = [(1, "resid_post"), (1, "mlp_in"), (1, "mlp_out")]
CONFIG = TrainConfig(
    width=32, k=4, tokens=512, batch=32, pool_tokens=64, calibration_tokens=32, evaluation_tokens=40, warmup=1
)
LINES = [f"The keeper counted {number} boats, and the lamp was burning when they came home." for number in range(12)]


def model() -> LensModel:
    return LensModel.from_model(tiny.llama(vocab=8192), tiny.tokenizer())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    text = tmp_path / "texts.jsonl"
    text.write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES))
    capture_texts(model(), text, tmp_path / "capture", PLACES, context=12, rows=2, shard_bytes=20_000)
    return tmp_path / "capture"


def after(calls: int) -> Callable[[], bool]:
    """Asks to stop at a call of this number."""
    left = iter(range(calls))
    return lambda: next(left, None) is None


def test_blocks_are_the_shards_in_another_order_each_pass(folder: Path) -> None:
    source = CapturedActivations(folder, held_out=4, seed=3)
    shards: list[Any] = [mx.load(str(file)) for file in sorted(folder.glob("*.safetensors"))]
    assert source.n_blocks == len(shards) > 2
    found = list(source.blocks(0, 2 * len(shards)))
    ids = [shard["token_ids"].tolist() for shard in shards]
    passes = [[ids.index(block.token_ids.tolist()) for block in found[i : i + len(ids)]] for i in (0, len(ids))]
    assert [sorted(order) for order in passes] == [list(range(len(ids)))] * 2
    assert passes[0] != passes[1]
    counted = 0
    for block, number in zip(found, passes[0], strict=False):
        shard = shards[number]
        held = np.array(shard["documents"]) % 4 == 3
        assert (block.special == (np.array(shard["special"]) | held)).all()
        counted += int((~block.special).sum())
        for layer, site in PLACES:
            ours = np.array(block.values[layer, site])
            assert (ours == np.array(shard[f"layer.{layer}.{site}"])).all()
    assert source.facts.n_tokens == counted
    assert source.facts.n_documents == 9
    again = [block.token_ids.tolist() for block in source.blocks(1, 3)]
    assert again == [block.token_ids.tolist() for block in found[1:3]]


def test_what_is_measured_on_are_the_documents_held_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = CapturedActivations(folder, held_out=4)
    lens = model()
    found = {number: ids.tolist() for number, ids in source.documents(10_000)}
    assert found == {number: list(lens.tokens.encode(LINES[number]))[1:] for number in (3, 7, 11)}
    assert CapturedActivations(folder).documents(1)[0][0] == 0
    assert [number for number, _ in CapturedActivations(folder, held_out=100).documents(10_000)] == [7]
    monkeypatch.setattr(captured, "_REMAINDER", 50)  # no document is
    assert len(CapturedActivations(folder, held_out=100).documents(10_000)) == 12


@pytest.mark.parametrize("kind", ["sae", "transcoder"])
def test_the_same_capture_gives_the_same_sae_also_after_a_stop(kind: str, folder: Path, tmp_path: Path) -> None:
    config = TrainConfig(**{**json.loads(CONFIG.to_json()), "kind": kind, "matryoshka": ()})
    options: dict[str, Any] = {"layer": 1, "held_out": 4, "rows": 2}
    whole = train_on_capture(model(), folder, tmp_path / "one", config, **options)
    first = train_on_capture(model(), folder, tmp_path / "two", config, should_stop=after(12), **options)
    assert first.stopped
    again = train_on_capture(model(), folder, tmp_path / "two", config, **options)
    assert again.final == whole.final
    assert whole.final is not None
    assert whole.final.n_tokens >= 40
    params = [(tmp_path / name / "params.safetensors").read_bytes() for name in ("one", "two")]
    assert params[0] == params[1]
    other = TrainConfig(**{**json.loads(config.to_json()), "seed": 1, "matryoshka": ()})
    train_on_capture(model(), folder, tmp_path / "three", other, **options)
    assert (tmp_path / "three" / "params.safetensors").read_bytes() != params[0]


def test_what_cannot_be_trained_on_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    assert is_capture(folder)
    assert not is_capture(tmp_path)
    assert not is_capture(tmp_path / "texts.jsonl")

    def refused(says: str, lens: LensModel | None = None, at: Path = folder, **options: Any) -> None:
        given = {"layer": 1, "held_out": 4, **options}
        with pytest.raises(LensError, match=says):
            train_on_capture(lens or model(), at, tmp_path / "out", CONFIG, **given)

    refused("resid_post of layer 0 is not in the capture", layer=0)
    refused("mlp_gone of layer 1 is not in the capture", site="mlp_gone")
    refused("The capture is of llama, and the model is other",
            LensModel.from_model(tiny.llama(vocab=8192), tiny.tokenizer(), name="other"))  # fmt: skip
    refused("There is no capture in", at=tmp_path / "nowhere")
    steered = Ablate(id="off", layer=0)
    capture_texts(model(), tmp_path / "texts.jsonl", tmp_path / "steered", PLACES, interventions=[steered], context=12)
    refused("captured under a steering", at=tmp_path / "steered")
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "shards": manifest["shards"][:-1]}))
    refused("is not finished")
    (folder / MANIFEST).write_text("{}")
    refused("is damaged")
