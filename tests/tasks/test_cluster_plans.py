"""What stands around Ray: what is asked for, what is refused, how shards are planned, watched and taken up again."""

from __future__ import annotations

import json
import pickle
import queue
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lens_tui import LensModel
from lens_tui.cli.sae_verbs import cluster_of
from lens_tui.lens.read.activations import TextActivations, Windowing, text_activations
from lens_tui.records import Add, LensError, SteeringVector
from lens_tui.records.errors import warnings_to
from lens_tui.records.remote import OutFolder
from lens_tui.tasks import cluster as clusters
from lens_tui.tasks.capture import capture_texts, facts_of, shard_file, shard_spans
from lens_tui.tasks.cluster import Cluster, ClusterProgress, WorkerModel, run_shards
from lens_tui.tasks.cluster_capture import AHEAD, CaptureJob, _Ahead, capture_on_cluster
from tests.folders import D_MODEL, llama_folder
from tests.lens import tiny

PLACES = [(1, "resid_post"), (-1, "mlp_out")]


def model() -> LensModel:
    return LensModel.from_model(tiny.llama(vocab=8192), tiny.tokenizer())


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "texts.jsonl"
    lines = ["Stir the soup. " * (1 + number % 4) for number in range(11)]
    file.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return file


def hear(told: list[tuple[int, int]], blocks: int, tokens: int) -> bool:
    """What a worker says, kept; it is not asked to stop."""
    told.append((blocks, tokens))
    return False


def source_of(text: Path) -> TextActivations:
    windowing = Windowing(context=12, rows=2, packed=False, shuffle=False)
    return text_activations(model(), text, PLACES, windowing=windowing)[0]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"workers": 0}, "no cluster of 0 workers with 1 core and"),
        ({"workers": -1, "address": "auto"}, "-1 workers"),
        ({"cpus": 0}, "of 2 workers with 0 cores"),
        ({"address": "ray://host:10001"}, "hands out no shards"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(LensError, match=says):
        Cluster(**given)


def test_a_cluster_is_used_only_where_one_is_asked_for() -> None:
    assert cluster_of(0, "", 1, 0.0) is None
    assert cluster_of(3, "", 2, 0.5) == Cluster(3, "", 2, 0.5)
    with pytest.raises(LensError, match="how many workers"):
        cluster_of(0, "auto", 1, 0.0)


def test_without_ray_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LensError, match="Work on a cluster needs Ray") as found:
        run_shards(Cluster(2), SimpleNamespace(open=None), None, [0])
    assert "mlx-lens-tui[ray]" in found.value.hint


def test_without_ray_no_folder_of_a_capture_is_left_behind(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(WorkerModel, "of", lambda *_: None)
    with pytest.raises(LensError, match="Work on a cluster needs Ray"):
        capture_on_cluster(model(), text, tmp_path / "out", PLACES, cluster=Cluster(2))
    assert not (tmp_path / "out").exists()


def test_a_model_in_memory_has_no_workers() -> None:
    with pytest.raises(LensError, match="need a model with files"):
        WorkerModel.of(model())


def test_another_process_reads_the_text_alike(text: Path) -> None:
    ours = source_of(text)
    theirs = ours.text.read_by(model(), PLACES)
    assert theirs.facts == ours.facts
    sizes = []
    for one, other in zip(ours.blocks(0, ours.n_blocks), theirs.blocks(0, ours.n_blocks), strict=True):
        assert (one.token_ids == other.token_ids).all()
        assert all((np.array(one.values[place]) == np.array(other.values[place])).all() for place in one.values)
        sizes.append(len(one.token_ids))
    assert ours.sizes().tolist() == sizes
    assert len(set(sizes)) > 1


def test_shards_behind_a_gap_are_not_lost(text: Path, tmp_path: Path) -> None:
    source, folder = source_of(text), OutFolder(tmp_path / "out")
    facts = facts_of(source, model(), (), 2, 10_000)
    spans = shard_spans(source, {**facts, "shards": []}, 10_000)
    folder.local.mkdir()

    def opened() -> tuple[_Ahead, dict[str, Any]]:
        held = {**facts, "shards": []}
        return _Ahead(folder, facts, held, spans), held

    ahead, held = opened()
    with pytest.raises(LensError, match="it is not there from here"):
        ahead.took(2, source.sizes())
    for number in (2, 1):
        (folder.local / shard_file(number)).write_bytes(b"")
        ahead.took(number, source.sizes())
    assert held["shards"] == []
    assert opened()[0].done == {1, 2}
    (folder.local / shard_file(2)).unlink()
    again, held = opened()
    assert again.done == {1}
    (folder.local / shard_file(0)).write_bytes(b"")
    again.took(0, source.sizes())
    assert [shard["file"] for shard in held["shards"]] == [shard_file(0), shard_file(1)]
    tokens = [int(source.sizes()[slice(*spans[number])].sum()) for number in (0, 1)]
    assert [shard["tokens"] for shard in held["shards"]] == tokens
    assert not (folder.local / AHEAD).exists()
    (folder.local / AHEAD).write_text(json.dumps({"of": "another", "done": {"1": spans[1]}}))
    assert opened()[0].done == set()


def test_what_a_worker_is_sent_makes_the_shards_of_one_process(text: Path, tmp_path: Path) -> None:
    lens = LensModel(str(llama_folder(tmp_path / "model")))
    vector = SteeringVector.of("push", [1.0] * D_MODEL, 0)
    steering = (Add(id="push", layer=0, vector=vector, scale=3.0),)
    options: dict[str, Any] = {"context": 12, "rows": 2, "shard_bytes": 10_000}
    one = capture_texts(lens, text, tmp_path / "one", PLACES, interventions=steering, **options)
    windowing = Windowing(context=12, rows=2, packed=False, shuffle=False)
    source = text_activations(lens, text, PLACES, windowing=windowing)[0]
    held = {**facts_of(source, lens, steering, 2, 10_000), "shards": []}
    spans = shard_spans(source, held, 10_000)
    sent = CaptureJob(WorkerModel.of(lens), source.places, steering, str(tmp_path / "two"), spans, 10_000)
    job, shared = pickle.loads(pickle.dumps((sent, source.text)))
    work = job.open(shared)
    told: list[tuple[int, int]] = []
    for number in reversed(spans):  # whatever comes first
        assert work.shard(number, partial(hear, told))
    files = [Path(shard).name for shard in one.shards]
    assert len(files) > 2
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert told[-1] == (spans[0][1], int(source.sizes()[: spans[0][1]].sum()))
    long = next(number for number, (first, end) in spans.items() if end - first > 1)
    (tmp_path / "two" / shard_file(long)).unlink()
    assert not work.shard(long, lambda *_: True)
    assert not (tmp_path / "two" / shard_file(long)).exists()


def test_a_worker_that_holds_the_model_otherwise_says_so(tmp_path: Path) -> None:
    lens = LensModel(str(llama_folder(tmp_path / "model")))
    told = replace(WorkerModel.of(lens), precision="4-bit")
    with pytest.raises(LensError, match="A worker holds the model as float32, not 4-bit"):
        told.open()


class FakeRay:
    """A desk that is called in this process."""

    def __init__(self) -> None:
        self.desk = clusters._Desk()

    def get(self, value: Any) -> Any:
        return value

    @property
    def handle(self) -> Any:
        return SimpleNamespace(look=SimpleNamespace(remote=self.desk.look))


def watched(*rows: Any, **options: Any) -> tuple[bool, list[ClusterProgress], FakeRay]:
    fake, far, waiting = FakeRay(), list[ClusterProgress](), queue.Queue[Any]()
    for row in rows:
        waiting.put(row)
    fake.desk.begin(0)
    fake.desk.tell(0, 3, 40)
    fake.desk.begin(1)
    hooks: dict[str, Any] = {"done": lambda number: None, "should_stop": lambda: False, **options}
    whole = clusters._watch(fake, waiting, fake.handle, 2, progress=far.append, **hooks)
    return whole, far, fake


def row(shard: int, *, done: bool = True, error: str = "") -> dict[str, Any]:
    return {"shard": shard, "done": done, "error": error, "hint": "Mend it." if error else ""}


def test_what_is_watched() -> None:
    taken: list[int] = []
    whole, far, _ = watched(row(1), row(0), None, done=taken.append)
    assert (whole, taken) == (True, [1, 0])
    assert [(each.blocks, each.tokens) for each in far] == [(3, 40)] * 2
    assert not watched(row(0), row(1, done=False), None)[0]


def test_who_is_asked_to_stop_hears_it() -> None:
    whole, _, fake = watched(row(0), row(1, done=False), None, should_stop=lambda: True)
    assert not whole
    assert fake.desk.tell(1, 0, 0)


def test_a_refusal_ends_the_others_first_and_is_then_said() -> None:
    taken: list[int] = []
    with pytest.raises(LensError, match="No such file") as found:
        watched(row(0, done=False, error="No such file."), row(1), None, done=taken.append)
    assert found.value.hint == "Mend it."
    assert taken == [1]


def test_a_shard_that_is_begun_again_is_told_once() -> None:
    fake, waiting, heard = FakeRay(), queue.Queue[Any](), list[str]()
    for _ in range(3):
        fake.desk.begin(0)
    for item in (row(0), row(1), None):
        waiting.put(item)
    with warnings_to(heard.append):
        clusters._watch(fake, waiting, fake.handle, 2, lambda _: None, lambda _: None, lambda: False)
    assert fake.desk.begin(0) == 4
    assert heard == ["2 workers of the cluster died; what it did is done again."]


def test_what_ray_gives_up_is_one_sentence() -> None:
    with pytest.raises(LensError, match=r"The cluster gave up: The actor died\. What was done is kept"):
        watched(row(0), RuntimeError("The actor died.\nmany lines\n"))
