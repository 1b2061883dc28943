"""A model that cannot be had is one sentence."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from lens_tui import LensError, LensModel


def test_a_word_that_is_neither_folder_nor_hub_id() -> None:
    with pytest.raises(LensError, match=r"^There is no model 'nowhere'.*'owner/name'"):
        LensModel("nowhere")


def test_a_folder_that_is_not_there_and_one_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(LensError, match="There is no folder"):
        LensModel(str(tmp_path / "gone"))
    with pytest.raises(LensError, match=r"no config\.json"):
        LensModel(str(tmp_path))


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise LocalEntryNotFoundError("Got: ConnectError\nwith many words")

    monkeypatch.setattr("huggingface_hub.snapshot_download", load)
    with pytest.raises(LensError, match="not in the cache, and the hub did not give it") as refused:
        LensModel("owner/name")
    assert "\n" not in str(refused.value)


def test_a_model_that_the_hub_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    answer: Any = SimpleNamespace(status_code=404, headers={}, request=None)

    def load(*_: Any, **__: Any) -> None:
        raise RepositoryNotFoundError("404 Client Error.\nRepository Not Found", response=answer)

    monkeypatch.setattr("huggingface_hub.snapshot_download", load)
    with pytest.raises(LensError, match=r"^There is no owner/name on the hub, or it is private\. Check the spelling"):
        LensModel("owner/name")


def test_a_block_without_a_scale_says_so() -> None:
    lens = LensModel("demo")
    with lens.hook(0, lambda ctx, h: None) as handle:
        with pytest.raises(LensError, match="has a scale"):
            _ = handle.scale
        with pytest.raises(LensError, match="has a scale"):
            handle.update(scale=2.0)
        lens.forward(mx.array([[1, 2, 3]]))
