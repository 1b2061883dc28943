"""What the workers of a Ray cluster make of a text is what one process makes, also where one of them is killed.

A cluster of two workers on this machine, begun once for all of them (70 to 85 seconds on two shared cores, most of
it Ray's and the workers' start); left out where Ray is not installed. By hand: ``pytest tests/tasks/test_cluster.py``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lens_tui import LensModel
from lens_tui.records import LensError, paths
from lens_tui.records.errors import LensWarning
from lens_tui.records.training import TrainConfig
from lens_tui.sae.index.index_reader import FeatureIndex
from lens_tui.sae.load_sae import SAE, load_sae
from lens_tui.tasks import cluster_capture, cluster_index
from lens_tui.tasks.capture import capture_texts
from lens_tui.tasks.captured import train_on_capture
from lens_tui.tasks.cluster import Cluster
from lens_tui.tasks.cluster_capture import capture_on_cluster
from lens_tui.tasks.cluster_index import index_on_cluster
from lens_tui.tasks.index import index_text
from tests.folders import lens_home, llama_folder, sae_folder

ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")
fsspec = pytest.importorskip("fsspec")

pytestmark = [
    pytest.mark.xdist_group("ray"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
]

TWO = Cluster(workers=2)
WINDOWS: dict[str, Any] = {"context": 12, "rows": 2}


@dataclass(frozen=True)
class Made:
    """A text, and a model and an SAE with files."""

    text: Path
    lens: LensModel
    sae: SAE


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("cluster")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(paths.HOME_VARIABLE, str(lens_home(folder / "home")))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
        text = folder / "texts.jsonl"
        lines = [f"The keeper counted {number} boats, and the lamp was burning by the door." for number in range(16)]
        text.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
        lens = LensModel(str(llama_folder(folder / "model")))
        sae = load_sae(sae_folder(folder / "sae"), layer=1, site="resid_post")
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=128 << 20
        )
        yield Made(text, lens, sae)
        ray.shutdown()


class Halting:
    """A worker's work that halts once at the second block of shard 1, until it is killed or asked to stop."""

    def __init__(self, work: Any, signs: Path) -> None:
        self.work, self.signs = work, signs

    def shard(self, number: int, said: Callable[[int, int], bool]) -> bool:
        def halting(blocks: int, tokens: int) -> bool:
            if number == 1 and blocks >= 2 and not (self.signs / "seen").exists():
                (self.signs / "process").write_text(str(os.getpid()))
                while not said(blocks, tokens):
                    time.sleep(0.05)
                return True
            return said(blocks, tokens)

        return bool(self.work.shard(number, halting))


@dataclass(frozen=True)
class HaltingJob:
    """A job whose work halts."""

    job: Any
    signs: Path

    @property
    def of(self) -> int:
        """As many shards."""
        return int(self.job.of)

    def open(self, shared: Any) -> Halting:
        return Halting(self.job.open(shared), self.signs)


def halts(room: Any, name: str, signs: Path, patch: pytest.MonkeyPatch) -> None:
    """Have the jobs of a module halt."""
    signs.mkdir()
    kind = getattr(room, name)
    patch.setattr(room, name, lambda *given: HaltingJob(kind(*given), signs))


def kill(signs: Path, _: Any) -> None:
    """Kill the worker that halts, once."""
    if (signs / "process").exists() and not (signs / "seen").exists():
        (signs / "seen").write_text("")
        os.kill(int((signs / "process").read_text()), signal.SIGKILL)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def same_index(one: Path, other: Path) -> None:
    """All files to the byte, but for the hour at which they were made."""
    ours, theirs = bytes_of(one), bytes_of(other)
    facts = [json.loads(files.pop("manifest.json")) for files in (ours, theirs)]
    for fact in facts:
        del fact["created"]
    assert facts[0] == facts[1]
    assert len(ours) > 10
    assert ours == theirs


def test_an_index_is_that_of_one_pass_though_a_worker_is_killed(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (plain,) = index_text(made.lens, [made.sae], made.text, tmp_path / "one", **WINDOWS).indexes
    halts(cluster_index, "IndexJob", tmp_path / "signs", monkeypatch)
    with pytest.warns(LensWarning, match="1 worker of the cluster died"):
        result = index_on_cluster(
            made.lens, [made.sae], made.text, tmp_path / "two", cluster=TWO,
            progress=partial(kill, tmp_path / "signs"), **WINDOWS,
        )  # fmt: skip
    assert (tmp_path / "signs" / "seen").exists()
    assert (result.stopped, result.parts) == (False, ())
    same_index(plain, result.indexes[0])
    assert [place.name for place in (tmp_path / "two").iterdir()] == [plain.name]


def test_stopped_it_goes_on_at_an_address_that_all_see(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (plain,) = index_text(made.lens, [made.sae], made.text, tmp_path / "one", **WINDOWS).indexes
    signs, out = tmp_path / "signs", f"local://{tmp_path}/there"
    with monkeypatch.context() as patch:
        halts(cluster_index, "IndexJob", signs, patch)
        result = index_on_cluster(
            made.lens, [made.sae], made.text, out, cluster=TWO, should_stop=(signs / "process").exists, **WINDOWS
        )
    assert result.stopped
    assert result.parts
    states = [json.loads(file.read_text())["state"] for file in (tmp_path / "there").glob("*/state.json")]
    assert any(state["first"] < state["next"] < state["stop"] for state in states)
    seen: list[Any] = []
    done = index_on_cluster(
        made.lens, [made.sae], made.text, out, cluster=Cluster(workers=1), progress=seen.append, **WINDOWS
    )
    same_index(plain, done.indexes[0])
    same_index(plain, tmp_path / "there" / plain.name)
    assert [place.name for place in (tmp_path / "there").iterdir()] == [plain.name]
    read = max(item.n_tokens for item in seen if item.stage == "read")
    assert sum(state["n_tokens"] for state in states) + read == FeatureIndex(plain).n_tokens
    assert any(item.block == item.n_blocks for item in seen if item.stage == "read")


def test_a_capture_is_that_of_one_process_though_a_worker_is_killed(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {**WINDOWS, "shard_bytes": 10_000, "places": [(1, "resid_post"), (-1, "mlp_out")]}
    one = capture_texts(made.lens, made.text, tmp_path / "one", **options)
    assert len(one.shards) > 3
    signs = tmp_path / "signs"
    with monkeypatch.context() as patch:
        halts(cluster_capture, "CaptureJob", signs, patch)
        with pytest.warns(LensWarning, match="1 worker of the cluster died"):
            two = capture_on_cluster(
                made.lens, made.text, tmp_path / "two", cluster=TWO, progress=partial(kill, signs), **options
            )
    assert (two.n_tokens, two.stopped, len(two.shards)) == (one.n_tokens, False, len(one.shards))
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    config = TrainConfig(
        width=32, k=4, tokens=256, batch=32, pool_tokens=64, calibration_tokens=32, evaluation_tokens=20, warmup=1
    )
    for name in ("one", "two"):
        train_on_capture(made.lens, tmp_path / name, tmp_path / f"sae-{name}", config, layer=1, held_out=4)
    saes = [bytes_of(tmp_path / f"sae-{name}") for name in ("one", "two")]
    assert saes[0]["params.safetensors"] == saes[1]["params.safetensors"]


def test_what_a_worker_refuses_is_said_here(made: Made, tmp_path: Path) -> None:
    gone = load_sae(sae_folder(tmp_path / "sae", seed=6), layer=1, site="resid_post")
    (tmp_path / "sae" / "params.safetensors").unlink()
    with pytest.raises(LensError, match="sae"):
        index_on_cluster(made.lens, [gone], made.text, tmp_path / "out", cluster=TWO, **WINDOWS)
    with pytest.raises(LensError, match="The cluster has room for 2 workers of 1 core, not 3"):
        index_on_cluster(made.lens, [made.sae], made.text, tmp_path / "out", cluster=Cluster(3), **WINDOWS)


def test_what_ray_says_of_a_dead_worker_is_not_on_standard_output() -> None:
    script = (
        "from lens_tui.tasks.cluster import _imported\n"
        "_imported()\n"
        "from ray._private.worker import print_to_stdstream\n"
        "said = {'lines': ['A worker died.'], 'pid': 'raylet', 'is_err': False}\n"
        "print_to_stdstream(said, ignore_prefix=False)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == ""
