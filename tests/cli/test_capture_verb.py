"""``capture`` and ``loss --texts`` on the bundled model: the numbers are the library's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from typer.testing import CliRunner

from lens_tui import LensModel
from lens_tui.cli.command import app
from lens_tui.lens.vectors import random_unit
from lens_tui.records import Add

TEXTS = ["The old man opened the door.", "Stir the soup, then add a little salt and wait.", "Rain fell."]


def data(*arguments: str, code: int = 0) -> Any:
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def test_shards_hold_what_the_steered_model_reads_of_each_text(file: Path, tmp_path: Path) -> None:
    arguments = ["capture", str(file), "-o", str(tmp_path / "out"), "-l", "2,-1", "--site", "resid_post"]
    result = data(*arguments, "--site", "mlp_out", "-a", "random:3@1*6")
    lens = LensModel("demo")
    assert result["tensors"][4:] == [f"layer.{at}.{site}" for at in (2, 7) for site in ("resid_post", "mlp_out")]
    (shard,) = result["shards"]
    held: Any = mx.load(shard)
    assert result["n_tokens"] == len(held["token_ids"]) == sum(len(row) for row in lens.rows(TEXTS))
    starts = [*np.flatnonzero(np.array(held["offsets"]) < 0).tolist(), result["n_tokens"]]
    with lens.intervene(Add(id="r", layer=1, vector=random_unit(lens, "r", 1, seed=3), scale=6.0)):
        for number, row in enumerate(lens.rows(TEXTS)):
            mine = slice(starts[number], starts[number + 1])
            assert tuple(held["token_ids"][mine].tolist()) == row
            for layer, site in ((2, "resid_post"), (7, "mlp_out")):
                alone = lens.residuals(row, layer, site=site, steered=True)
                found = held[f"layer.{layer}.{site}"][mine]
                np.testing.assert_allclose(
                    np.array(found.astype(mx.float32)), np.array(alone.astype(mx.float32)), atol=2e-2
                )
    again = data(*arguments, "--site", "mlp_out", "-a", "random:3@1*6")
    assert again == result
    refused = data(*arguments, code=2)
    assert "differ in places" in refused["error"]["message"]


def test_losses_of_a_file_are_those_of_each_text_and_of_all_predicted_tokens(file: Path) -> None:
    result = data("loss", "--texts", str(file), "-a", "random:3@1*6")
    lens = LensModel("demo")
    counts = [len(row) - 1 for row in lens.rows(TEXTS)]
    plain = [lens.loss(text) for text in TEXTS]
    with lens.intervene(Add(id="r", layer=1, vector=random_unit(lens, "r", 1, seed=3), scale=6.0)):
        steered = [lens.loss(text) for text in TEXTS]
    assert [item["index"] for item in result["texts"]] == [0, 1, 2]
    assert [item["n_tokens"] for item in result["texts"]] == counts
    np.testing.assert_allclose([item["loss"] for item in result["texts"]], plain, atol=1e-3)
    np.testing.assert_allclose([item["steered_loss"] for item in result["texts"]], steered, atol=1e-3)
    assert result["n_tokens"] == sum(counts)
    assert result["loss"] == pytest.approx(np.average(plain, weights=counts), abs=1e-3)
    assert result["delta"] == pytest.approx(np.average(np.subtract(steered, plain), weights=counts), abs=1e-3)
    shown = CliRunner().invoke(app, ["loss", "--texts", str(file)])
    assert all(text in shown.stdout for text in TEXTS)
    assert "Give one of the two" in data("loss", "a text", "--texts", str(file), code=2)["error"]["hint"]
    assert "Give one of the two" in data("loss", code=2)["error"]["hint"]
