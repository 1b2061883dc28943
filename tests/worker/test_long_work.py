"""Indexing and training as jobs: the verbs' folders and numbers, giving way to a run, stopped and gone on with."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from typer.testing import CliRunner

from lens_tui import FeatureIndex
from lens_tui.cli.command import app
from lens_tui.records import Arm, Sampling, paths
from lens_tui.worker import events as ev
from lens_tui.worker import jobs
from tests.worker.drive import Driver, of, only

WORDS = ["the", "cat", "saw", "a", "dog", "and", "ran", "to", "sea", "where", "ship", "lay", "once", "upon", "time"]
TRAIN = {"width": 48, "k": 4, "tokens": 8192 * 2}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long enough for several forwards of 32 windows of 256 tokens."""
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": " ".join(rng.choices(WORDS, k=240))}) for _ in range(100)))
    return path


def verb(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def arrays(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*.npy")}


def test_an_index_is_the_verbs_stopped_and_gone_on_with(
    loaded: Driver, tiny: Path, sae: Path, text: Path, tmp_path: Path
) -> None:
    info = only(loaded.done(jobs.LoadSAE(str(sae))), ev.SAELoaded).info
    job = jobs.IndexText((info.id,), str(text), full=True)
    number = loaded.worker.submit(job)

    def stop(event: ev.Event) -> None:
        if isinstance(event, ev.Progress) and event.stage == "indexing":
            loaded.worker.stop(number)

    stopped = loaded.follow(number, stop)
    assert stopped[-1] == ev.JobDone(number, stopped=True)
    reached = [e.done for e in of(stopped, ev.Progress) if e.stage == "indexing"]
    assert len(reached) == 1  # it ends with the forward it is in
    events = loaded.done(job)
    (folder,) = only(events, ev.TextIndexed).folders
    assert Path(folder).parent == paths.indexes_folder()
    again = [e for e in of(events, ev.Progress) if e.stage == "indexing"]
    assert again[0].done > reached[0]  # it goes on, it does not begin again
    assert (again[-1].done, again[-1].unit) == (again[-1].total, "tokens")
    made = verb("index", str(text), "-m", str(tiny), "-s", str(sae), "--full", "-o", str(tmp_path))
    path = Path(made["indexes"][0]["path"])
    assert path.name == Path(folder).name
    assert arrays(path) == arrays(Path(folder))
    assert only(events, ev.TextIndexed).n_tokens == FeatureIndex(path).n_counted > 20_000


def test_an_index_gives_way_to_a_run(loaded: Driver, sae: Path, text: Path) -> None:
    info = only(loaded.done(jobs.LoadSAE(str(sae))), ev.SAELoaded).info
    number = loaded.worker.submit(jobs.IndexText((info.id,), str(text), max_tokens=20_000))
    order: list[str] = []
    run = 0

    def look(event: ev.Event) -> None:
        nonlocal run
        if isinstance(event, ev.Progress) and event.stage == "indexing":
            order.append("index")
            if not run:
                run = loaded.worker.submit(jobs.Compare("Once", (Arm("baseline"),), Sampling(max_tokens=3)))
        if isinstance(event, ev.JobStarted) and event.job == number and run:
            order.append("taken up again")

    events = loaded.follow(number, look)
    assert of(events, ev.TextIndexed)
    assert order.index("taken up again") < len(order) - 1 - order[::-1].index("index")


@pytest.mark.parametrize("kind", ["sae", "transcoder"])
def test_a_training_is_the_verbs_stopped_and_gone_on_with(
    loaded: Driver, tiny: Path, text: Path, tmp_path: Path, kind: str
) -> None:
    job = jobs.TrainSAE(str(text), (1,), kind, skip=kind == "transcoder", **TRAIN)  # type: ignore[arg-type]
    number = loaded.worker.submit(job)

    def stop(event: ev.Event) -> None:
        if isinstance(event, ev.TrainingAt) and event.progress.stage == "prepare":
            loaded.worker.stop(number)

    assert loaded.follow(number, stop)[-1] == ev.JobDone(number, stopped=True)
    events = loaded.done(job)
    (folder,) = only(events, ev.SAETrained).folders
    assert Path(folder).parent == paths.saes_folder()
    assert "FVU" in only(events, ev.SAETrained).sentence
    kinds = ["--kind", kind, *(["--skip"] if kind == "transcoder" else [])]
    numbers = ["--width", "48", "-k", "4", "-n", str(TRAIN["tokens"])]
    verb("train-sae", str(text), "-l", "1", "-m", str(tiny), *kinds, *numbers, "-o", str(tmp_path / "verb"))
    ours, theirs = (mx.load(str(place / "params.safetensors")) for place in (Path(folder), tmp_path / "verb"))
    assert isinstance(ours, dict)
    assert isinstance(theirs, dict)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(np.asarray(ours[name]), np.asarray(theirs[name])) for name in ours)


def test_what_cannot_be_is_one_sentence(loaded: Driver, text: Path) -> None:
    assert "Several layers" in loaded.failed(jobs.TrainSAE(str(text), (0, 1), **TRAIN)).message  # type: ignore[arg-type]
    assert "No SAE is named" in loaded.failed(jobs.IndexText((), str(text))).message
    assert "no file or folder" in loaded.failed(jobs.TrainSAE("/none", (0,), **TRAIN)).message  # type: ignore[arg-type]
