"""Downloads against a stand-in hub: bytes counted, stopped at once, taken up again, every refusal one sentence."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from lens_tui.records import LensError
from lens_tui.worker.control import Stopped
from lens_tui.worker.hub import download

from tests.hub import FakeHub

WEIGHTS = bytes(range(256)) * 120_000  # 30 MB: three of the client's chunks
MODEL = {
    "config.json": json.dumps({"model_type": "llama"}).encode(),
    "tokenizer.json": b"{}",
    "model.safetensors": WEIGHTS,
    "modeling_evil.py": b"raise SystemExit",
    "pytorch_model.bin": b"\x80",
    "README.md": b"# hi",
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    with FakeHub({"org/model": MODEL}).serve() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served


class Watch:
    def __init__(self, stop_after: int | None = None) -> None:
        self.seen: list[tuple[int, int]] = []
        self.stop_after = stop_after

    def on_bytes(self, done: int, total: int) -> None:
        self.seen.append((done, total))

    def check(self) -> None:
        if self.stop_after is not None and self.seen and self.seen[-1][0] >= self.stop_after:
            raise Stopped


def test_only_what_mlx_lm_reads_is_fetched_and_bytes_are_counted(hub: FakeHub) -> None:
    watch = Watch()
    folder = download("org/model", watch.on_bytes, watch.check)
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    total = sum(len(MODEL[name]) for name in ("config.json", "model.safetensors", "tokenizer.json"))
    assert {seen[1] for seen in watch.seen} <= {total}
    done = [seen[0] for seen in watch.seen]
    assert done == sorted(done)
    assert hub.fetched("modeling_evil.py") == hub.fetched("pytorch_model.bin") == 0


def test_a_stopped_download_ends_at_once_and_is_taken_up_again(hub: FakeHub) -> None:
    hub.gate.clear()
    watch = Watch(stop_after=10_000_000)
    with pytest.raises(Stopped):
        download("org/model", watch.on_bytes, watch.check)
    assert not hub.gate.is_set()  # the server holds the rest back: nobody waited for it
    assert list(Path(os.environ["HF_HOME"]).rglob("*.incomplete")) == []
    hub.gate.set()
    again = Watch()
    folder = download("org/model", again.on_bytes, again.check)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.fetched("config.json") == 1  # what was whole is kept
    assert hub.fetched("model.safetensors") == 2


@pytest.mark.parametrize(
    ("repo", "status", "message"),
    [
        ("org/nothing", None, "no org/nothing on the hub, or it is private"),
        ("org/model", (403, "GatedRepo"), "is gated"),
        ("org/model", (404, "RevisionNotFound"), "no such revision"),
        ("org/model", (500, "Broken"), "The hub answered 500"),
        ("org/text", None, "no weights"),
        ("not an id", None, "is not a hub id"),
    ],
)
def test_each_refusal_is_one_sentence(hub: FakeHub, repo: str, status: tuple[int, str] | None, message: str) -> None:
    hub.repos["org/text"] = {"README.md": b"words", "config.json": b"{}"}
    if status:
        hub.status[repo] = status
    watch = Watch()
    with pytest.raises(LensError, match=message):
        download(repo, watch.on_bytes, watch.check)


def test_no_hub_and_a_hub_switched_off(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(LensError, match="could not be reached"):
        download("org/model", watch.on_bytes, watch.check)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(LensError, match="switched off"):
        download("org/model", watch.on_bytes, watch.check)
