"""The shipped files are the ones that were measured: figures on five held-out texts in the public domain."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from lens_tui import LensModel, demo

Array = NDArray[np.float64]

_LINES = Path(__file__).with_name("held_out_sample.jsonl").read_text(encoding="utf-8").splitlines()
SAMPLE = [json.loads(line) for line in _LINES]
FIGURES = {
    "layer_2_width_4k_l0_medium": (0.07314, 40.64, 0.0397),
    "layer_4_width_8k_l0_medium": (0.09793, 43.62, 0.0411),
    "layer_6_width_4k_l0_medium": (0.15402, 42.98, 0.1333),
}
"""FVU, L0 and loss that the spliced SAE adds (nats a token) on the sample, when each was installed."""


@pytest.fixture(scope="module")
def lens() -> LensModel:
    return LensModel("demo")


@pytest.fixture(scope="module")
def texts(lens: LensModel) -> list[list[int]]:
    return [[0, *lens.tokenizer.encode(row["text"], add_special_tokens=False)] for row in SAMPLE]


def nll(lens: LensModel, ids: list[int]) -> Array:
    """Negative log-likelihood of each token after the first, in nats."""
    logits = np.array(lens.forward(mx.array([ids]))[0, :-1].astype(mx.float32)).astype(np.float64)
    top = logits.max(axis=-1)
    total = top + np.log(np.exp(logits - top[:, None]).sum(axis=-1))
    result: Array = total - logits[np.arange(len(ids) - 1), ids[1:]]
    return result


def weights(name: str) -> dict[str, Array]:
    loaded: Any = mx.load(str(demo.sae_paths()[name] / "params.safetensors"))
    w = {key: np.array(value.astype(mx.float32)).astype(np.float64) for key, value in loaded.items()}
    return w | {"w_enc": w["w_enc"] * w["w_enc_scale"], "w_dec": w["w_dec"] * w["w_dec_scale"][:, None]}


def reconstruct(w: dict[str, Array], x: Array) -> tuple[Array, Array]:
    pre = x @ w["w_enc"] + w["b_enc"]
    z = np.where(pre > w["threshold"], np.maximum(pre, 0), 0)
    return z @ w["w_dec"] + w["b_dec"], z


def test_the_model_predicts_held_out_text_as_well_as_when_it_was_made(lens: LensModel, texts: list[list[int]]) -> None:
    for row, ids in zip(SAMPLE, texts, strict=True):
        bits = nll(lens, ids).sum() / np.log(2) / len(row["text"])
        assert bits == pytest.approx(row["bits_per_character"], rel=2e-3), row["domain"]


@pytest.fixture(scope="module")
def clean(lens: LensModel, texts: list[list[int]]) -> tuple[float, dict[int, list[Array]]]:
    """Summed loss of all texts, and ``resid_post`` after the first token, a text at a time, by layer."""
    total, rows = 0.0, defaultdict(list)
    for ids in texts:
        with lens.capture([2, 4, 6]) as captured:
            total += float(nll(lens, ids).sum())
        for layer in (2, 4, 6):
            rows[layer].append(np.array(captured[layer][0, 1:].astype(mx.float32)).astype(np.float64))
    return total, rows


@pytest.mark.parametrize("name", list(FIGURES))
def test_an_sae_explains_what_it_did_when_it_was_made(
    lens: LensModel, texts: list[list[int]], clean: tuple[float, dict[int, list[Array]]], name: str
) -> None:
    w, layer = weights(name), int(name.split("_")[1])
    x = clean[1][layer]
    made = [reconstruct(w, rows) for rows in x]
    spliced = 0.0
    for ids, (new, _) in zip(texts, made, strict=True):

        def put(_: Any, h: mx.array, new: Array = new) -> mx.array:
            return mx.concatenate([h[:, :1], mx.array(new.astype(np.float32))[None].astype(h.dtype)], axis=1)

        with lens.hook(layer, put):
            spliced += float(nll(lens, ids).sum())
    rows, guess = np.concatenate(x), np.concatenate([new for new, _ in made])
    fvu = ((rows - guess) ** 2).sum() / ((rows - rows.mean(axis=0)) ** 2).sum()
    l0 = np.mean([count for _, z in made for count in (z > 0).sum(axis=1)])
    found = (fvu, l0, (spliced - clean[0]) / len(rows))
    assert found == pytest.approx(FIGURES[name], rel=0.01)


def test_everything_that_ships_fits_in_64_mb() -> None:
    files = [path for path in demo.model_path().parent.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) < 64_000_000
