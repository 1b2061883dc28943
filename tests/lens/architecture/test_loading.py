"""A model that cannot be had is one sentence."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from lens_tui import LensError, LensModel
from tests.hub import FakeHub, use_hub


def test_a_word_that_is_neither_folder_nor_hub_id() -> None:
    with pytest.raises(LensError, match=r"^There is no model 'nowhere'.*'owner/name'"):
        LensModel("nowhere")


def test_a_folder_that_is_not_there_and_one_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(LensError, match="There is no folder"):
        LensModel(str(tmp_path / "gone"))
    with pytest.raises(LensError, match=r"no config\.json"):
        LensModel(str(tmp_path))


def test_a_hub_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(monkeypatch, "http://127.0.0.1:9", tmp_path)
    with pytest.raises(LensError, match="The hub could not be reached for owner/name") as refused:
        LensModel("owner/name")
    assert "\n" not in str(refused.value)


def test_a_model_that_the_hub_does_not_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeHub().serve() as hub:
        use_hub(monkeypatch, hub.url, tmp_path)
        with pytest.raises(LensError, match=r"^There is no owner/name on the hub, or it is private\. Check the"):
            LensModel("owner/name")


def test_a_block_without_a_scale_says_so() -> None:
    lens = LensModel("demo")
    with lens.hook(0, lambda ctx, h: None) as handle:
        with pytest.raises(LensError, match="has a scale"):
            _ = handle.scale
        with pytest.raises(LensError, match="has a scale"):
            handle.update(scale=2.0)
        lens.forward(mx.array([[1, 2, 3]]))
