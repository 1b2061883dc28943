"""Downloads against a stand-in hub: bytes counted, stopped at once, taken up again, every refusal one sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lens_tui.records import LensError, Sampling
from lens_tui.records.hub_fetch import NotInRepository, fetch, first_file, model_from_hub
from lens_tui.worker import events as ev
from lens_tui.worker import jobs
from lens_tui.worker.thread import Stopped
from tests.hub import FakeHub, use_hub
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
    with FakeHub({"org/model": MODEL}).serve() as served:
        use_hub(monkeypatch, served.url, tmp_path / "hub")
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
    folder = fetch("org/model", progress=watch.on_bytes, check=watch.check)
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    total = sum(len(MODEL[name]) for name in ("config.json", "model.safetensors", "tokenizer.json"))
    assert {seen[1] for seen in watch.seen} <= {total}
    done = [seen[0] for seen in watch.seen]
    assert done == sorted(done)
    assert hub.fetched("modeling_evil.py") == hub.fetched("pytorch_model.bin") == 0


def test_a_stopped_download_ends_at_once_and_goes_on_where_it_was(hub: FakeHub, tmp_path: Path) -> None:
    hub.gate.clear()
    watch = Watch(stop_after=10_000_000)
    with pytest.raises(Stopped):
        fetch("org/model", progress=watch.on_bytes, check=watch.check)
    assert not hub.gate.is_set()  # the server holds the rest back: nobody waited for it
    (part,) = tmp_path.rglob("*.incomplete")
    came = part.stat().st_size
    assert 10_000_000 <= came < len(WEIGHTS)
    assert WEIGHTS.startswith(part.read_bytes())
    hub.gate.set()
    again = Watch()
    folder = fetch("org/model", progress=again.on_bytes, check=again.check)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.fetched("config.json") == 1  # what was whole is kept
    ranges = [asked for method, path, asked in hub.asked if method == "GET" and path.endswith("model.safetensors")]
    assert ranges == ["", f"bytes={came}-"]
    assert again.seen[0][0] >= came
    assert again.seen[-1][0] == again.seen[-1][1]
    assert list(tmp_path.rglob("*.incomplete")) == []


def test_a_part_that_is_not_of_the_file_is_found_out_and_the_next_try_begins_anew(hub: FakeHub, tmp_path: Path) -> None:
    hub.gate.clear()
    watch = Watch(stop_after=10_000_000)
    with pytest.raises(Stopped):
        fetch("org/model", progress=watch.on_bytes, check=watch.check)
    hub.gate.set()
    (part,) = tmp_path.rglob("*.incomplete")
    part.write_bytes(b"x" * 1000)
    with pytest.raises(LensError, match=r"model\.safetensors of org/model arrived damaged"):
        fetch("org/model", progress=Watch().on_bytes)
    assert (fetch("org/model", progress=Watch().on_bytes) / "model.safetensors").read_bytes() == WEIGHTS


def test_a_model_in_the_cache_is_taken_without_asking_unless_a_branch_is_named(
    hub: FakeHub, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos["org/tiny"] = files_of(tiny)
    folder = model_from_hub("org/tiny", progress=Watch().on_bytes)
    asked = len(hub.asked)
    assert model_from_hub("org/tiny") == model_from_hub("org/tiny", revision="c" * 40) == folder
    assert len(hub.asked) == asked
    assert model_from_hub("org/tiny", revision="main", progress=Watch().on_bytes) == folder
    assert len(hub.asked) > asked
    use_hub(monkeypatch, "http://127.0.0.1:9")
    assert model_from_hub("org/tiny", revision="main") == folder
    (folder / "model.safetensors").unlink()
    with pytest.raises(LensError, match="could not be reached"):
        model_from_hub("org/tiny")


def test_the_first_of_some_files_comes_with_what_is_beside_it_and_is_known_from_then_on(hub: FakeHub) -> None:
    hub.repos["org/saes"] = {"a[1]/ae.pt": b"weights", "a[1]/cfg.json": b"{}", "b/ae.pt": b"other"}
    names = ["a[1]/params.npz", "a[1]/ae.pt", "b/ae.pt"]
    found = first_file("org/saes", names, ["a[1]/cfg.json", "config.json"], progress=Watch().on_bytes)
    assert sorted(file.name for file in found.parent.iterdir()) == ["ae.pt", "cfg.json"]
    assert hub.fetched("ae.pt") == 1
    asked = len(hub.asked)
    assert first_file("org/saes", names, ["a[1]/cfg.json", "config.json"]) == found
    assert len(hub.asked) == asked
    with pytest.raises(NotInRepository) as missing:
        first_file("org/saes", ["c/ae.pt"])
    assert sorted(missing.value.files) == ["a[1]/ae.pt", "a[1]/cfg.json", "b/ae.pt"]


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
        fetch(repo, progress=watch.on_bytes, check=watch.check)


def test_no_hub_and_a_hub_switched_off(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch()
    use_hub(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(LensError, match="could not be reached"):
        fetch("org/model", progress=watch.on_bytes, check=watch.check)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(LensError, match="switched off"):
        fetch("org/model", progress=watch.on_bytes, check=watch.check)


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_model_is_loaded_from_the_hub_once(hub: FakeHub, tiny: Path, driver: Driver) -> None:
    hub.repos["org/tiny"] = files_of(tiny)
    events = driver.done(jobs.LoadModel("org/tiny"))
    info = only(events, ev.ModelLoaded).info
    assert info.name == "org/tiny"
    assert "download" in " ".join(event.stage for event in of(events, ev.Progress))
    asked = len(hub.asked)
    driver.done(jobs.LoadModel("org/tiny"))
    assert len(hub.asked) == asked  # the cache is enough, and no question is asked


def test_a_download_is_stopped_by_its_job_and_the_model_before_stays(hub: FakeHub, tiny: Path, driver: Driver) -> None:
    driver.done(jobs.LoadModel(str(tiny)))
    hub.gate.clear()
    job = driver.worker.submit(jobs.LoadModel("org/model"))

    def look(event: ev.Event) -> None:
        if isinstance(event, ev.Progress) and event.stage.startswith("download") and event.done > 5_000_000:
            driver.worker.stop(job)

    assert driver.follow(job, look)[-1] == ev.JobDone(job, stopped=True)
    assert "no nothing/here on the hub" in driver.failed(jobs.LoadModel("nothing/here")).message
    assert driver.done(jobs.Compare("x", (), Sampling(max_tokens=2)))
