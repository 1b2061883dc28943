"""What stays in memory: of one run nothing, of models loaded one after the other the last."""

from __future__ import annotations

import gc
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lens_tui.lens.architecture.weights import evaluate
from lens_tui.lens.hooks.registry import Registry
from lens_tui.records import Add, Arm, Sampling, SteeringVector
from lens_tui.records.prompt_set import PromptItem
from lens_tui.worker import events as ev
from lens_tui.worker import jobs
from lens_tui.worker.handlers import compare_jobs, load_jobs
from lens_tui.worker.thread import Worker
from tests.folders import llama_folder
from tests.worker.drive import PATIENCE, Driver, of, only, tokens_of

PROMPT = "a b c d e f g h i j k l m n o p q r s t u v w x y z a b c d e f g h i j k l"
SAMPLING = Sampling(max_tokens=4, temp=0.0)


def _held() -> tuple[int, Counter[str]]:
    """MLX's bytes and Python's objects by class, without what nobody holds."""
    gc.collect()
    mx.clear_cache()
    return mx.get_active_memory(), Counter(type(found).__qualname__ for found in gc.get_objects())


def _useless(folder: Path) -> Path:
    """A model that can be laid out, and gives NaN."""
    made = llama_folder(folder / "nan")
    weights = load_file(made / "model.safetensors")
    weights["model.norm.weight"][:] = np.nan
    save_file(weights, made / "model.safetensors")
    return made


def test_runs_one_after_the_other_leave_nothing_behind(tiny: Path, tmp_path: Path) -> None:
    driver = Driver(Worker(history=tmp_path / "runs.db"))
    (info,) = [event.info for event in of(driver.done(jobs.LoadModel(str(tiny))), ev.ModelLoaded)]
    vector = SteeringVector.of("v", [1.0] * info.d_model, 1)

    def run(number: int) -> None:
        # Each run is of its own: another prompt, another dial, so that nothing is found again.
        steered = Arm("steered", (Add(id=f"v{number}", layer=1, vector=vector, scale=1.0 + number / 64),))
        end = driver.done(jobs.Compare(f"{number} {PROMPT}", (steered,), SAMPLING))
        assert len(tokens_of(end)) == 8

    for number in range(40):  # until what is bounded is full: 32 kept prefixes, 8 programs
        run(number)
    _held()  # looking makes some objects, the first time
    bytes_before, objects_before = _held()
    for number in range(40, 80):
        run(number)
    bytes_after, objects_after = _held()
    assert bytes_after <= bytes_before * 1.02
    grown = {name: count for name, count in (objects_after - objects_before).items() if count >= 20}
    assert not grown  # one object a run would be 40
    assert driver.worker.close(60)


def test_loading_models_one_after_the_other_never_holds_two(driver: Driver, tmp_path: Path) -> None:
    models = ["demo", *(str(llama_folder(tmp_path / f"{seed}", seed=seed)) for seed in range(3))]
    driver.done(jobs.LoadModel("demo"))  # what a process keeps from its first model on is there
    driver.done(jobs.UnloadModel())
    before, _ = _held()
    mx.reset_peak_memory()
    driver.done(jobs.LoadModel("demo"))
    largest = mx.get_peak_memory() - before
    for number in range(1, 20):
        driver.done(jobs.LoadModel(models[number % 4]))
    assert mx.get_peak_memory() - before <= 1.1 * largest


@pytest.mark.parametrize("end", ["useless", "stopped"])
def test_a_model_comes_back_where_the_next_one_does_not_load(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    mx.reset_peak_memory()
    first = llama_folder(tmp_path / "first")
    driver.done(jobs.LoadModel(str(first)))
    peak = mx.get_peak_memory()
    text = [token.token_id for token in tokens_of(driver.done(jobs.Compare(PROMPT, (), SAMPLING)))]
    mx.reset_peak_memory()
    if end == "useless":
        other = _useless(tmp_path)
        assert "gives NaN" in driver.failed(jobs.LoadModel(str(other))).message
    else:
        other = llama_folder(tmp_path / "other", seed=1)
        stopped = threading.Event()

        def evaluate_until_stopped(model: Any) -> Iterator[tuple[int, int]]:
            for done in evaluate(model):
                yield done
                assert stopped.wait(PATIENCE)  # the weights are there sooner than a busy machine hears of them

        def stop(event: ev.Event) -> None:
            if isinstance(event, ev.Progress) and event.stage == "weights":
                driver.worker.stop(number)
                stopped.set()

        monkeypatch.setattr(load_jobs, "evaluate", evaluate_until_stopped)
        number = driver.worker.submit(jobs.LoadModel(str(other)))
        events = driver.follow(number, stop)
        assert only(events, ev.JobDone).stopped
        assert not of(events, ev.ModelUnloaded)
        assert not of(events, ev.ModelLoaded)
    assert mx.get_peak_memory() <= 1.1 * peak
    assert [token.token_id for token in tokens_of(driver.done(jobs.Compare(PROMPT, (), SAMPLING)))] == text


def test_a_model_whose_files_are_gone_does_not_come_back(driver: Driver, tmp_path: Path) -> None:
    first, other = llama_folder(tmp_path / "first"), _useless(tmp_path)
    driver.done(jobs.LoadModel(str(first)))
    (first / "config.json").unlink()
    events = driver.run(jobs.LoadModel(str(other)))
    assert isinstance(events[-1], ev.JobFailed)
    assert "gives NaN" in events[-1].message
    only(events, ev.ModelUnloaded)
    assert "No model is loaded" in driver.failed(jobs.Compare(PROMPT, ())).message


def test_a_prompt_of_2000_tokens_goes_through_once_for_the_bench(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = llama_folder(tmp_path / "long", max_position_embeddings=4096)
    (info,) = [event.info for event in of(driver.done(jobs.LoadModel(str(long))), ev.ModelLoaded)]
    vectors = [SteeringVector.of("v", np.eye(info.d_model)[at], 1) for at in range(8)]
    arms = tuple(Arm(f"{at}", (Add(id=f"v{at}", layer=1, vector=vectors[at], scale=4.0),)) for at in range(1, 8))
    driver.done(jobs.Compare(PROMPT, arms, SAMPLING))
    seen: list[tuple[int, ...]] = []
    forward = Registry.forward

    def watched(self: Registry, run: Any, ids: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        seen.append(ids.shape)
        return forward(self, run, ids, *args, **kwargs)

    monkeypatch.setattr(Registry, "forward", watched)
    events = driver.done(jobs.Compare("so it was " * 700, arms, SAMPLING))
    n_prompt = len(only(events, ev.RunStarted).prompt_ids)
    assert n_prompt > 2000
    assert all(token.kl is not None for token in tokens_of(events))
    assert sum(length for rows, length in seen if rows == 1) == n_prompt - 1
    assert {shape for shape in seen if shape[0] != 1} == {(15, 1)}  # eight arms, seven companions


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("many", [False, True])
def test_a_run_or_set_gives_what_it_freed_back_whether_it_was_stopped_or_not(
    many: bool, stopped: bool, tiny: Path, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[str] = []
    monkeypatch.setattr(compare_jobs, "give_back_memory", lambda: given.append(threading.current_thread().name))
    driver.done(jobs.LoadModel(str(tiny)))
    arms, sampling = (Arm("a"),), Sampling(max_tokens=400 if stopped else 4)
    prompts = (PromptItem("1", PROMPT),)
    job = driver.worker.submit(
        jobs.ComparePrompts(arms, prompts, sampling=sampling) if many else jobs.Compare(PROMPT, arms, sampling)
    )

    def look(event: ev.Event) -> None:
        if stopped and isinstance(event, ev.TokenEvent | ev.SetTokenCame):
            driver.worker.stop(job)

    assert driver.follow(job, look)[-1] == ev.JobDone(job, stopped=stopped)
    assert given == ["mlx"]
