"""Downloads against a stand-in hub: bytes counted, stopped at once, taken up again, every refusal one sentence."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lens_tui.records import LensError, Sampling
from lens_tui.tasks.download import download
from lens_tui.worker import events as ev
from lens_tui.worker import jobs
from lens_tui.worker.thread import Stopped
from tests.hub import FakeHub
from tests.worker.drive import Driver, of, only

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


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_model_is_loaded_from_the_hub_once(
    hub: FakeHub, tiny: Path, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(Path(os.environ["HF_HOME"]) / "hub"))
    hub.repos["org/tiny"] = files_of(tiny)
    events = driver.done(jobs.LoadModel("org/tiny"))
    info = only(events, ev.ModelLoaded).info
    assert info.name == "org/tiny"
    assert "download" in " ".join(event.stage for event in of(events, ev.Progress))
    asked = len(hub.asked)
    driver.done(jobs.LoadModel("org/tiny"))
    assert len(hub.asked) == asked  # the cache is enough, and no question is asked


def test_a_download_is_stopped_by_its_job_and_the_model_before_stays(
    hub: FakeHub, tiny: Path, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(Path(os.environ["HF_HOME"]) / "hub"))
    driver.done(jobs.LoadModel(str(tiny)))
    hub.gate.clear()
    job = driver.worker.submit(jobs.LoadModel("org/model"))

    def look(event: ev.Event) -> None:
        if isinstance(event, ev.Progress) and event.stage.startswith("download") and event.done > 5_000_000:
            driver.worker.stop(job)

    assert driver.follow(job, look)[-1] == ev.JobDone(job, stopped=True)
    assert "no nothing/here on the hub" in driver.failed(jobs.LoadModel("nothing/here")).message
    assert driver.done(jobs.Compare("x", (), Sampling(max_tokens=2)))
