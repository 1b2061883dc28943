"""A set of prompts as a job: the library's cells, into the history, giving way, and stopped with what came kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from lens_tui import FeatureProbe, LensModel, compare_prompts, load_sae
from lens_tui.records import Arm, Sampling
from lens_tui.records.prompt_set import PromptItem
from lens_tui.records.run_store import RunStore
from lens_tui.worker import events as ev
from lens_tui.worker import jobs
from lens_tui.worker.thread import Worker
from tests.worker.drive import Driver, of, only
from tests.worker.test_dose import ADD

PROMPTS = (PromptItem("1", "Once upon a time"), PromptItem("sea", "The captain looked at the sea"))
ARMS = (Arm("baseline"), Arm("push", (ADD,)))


def test_the_cells_are_the_librarys_and_each_token_comes_before_its_cell(
    loaded: Driver, tiny: Path, sae: Path, tmp_path: Path
) -> None:
    info = only(loaded.done(jobs.LoadSAE(str(sae))), ev.SAELoaded).info
    file = tmp_path / "p.jsonl"
    file.write_text(
        '{"prompt": "Once upon a time"}\n{"prompt": "The captain looked at the sea", "id": "sea"}\n{"prompt": "x"}\n'
    )
    job = jobs.ComparePrompts(ARMS, path=str(file), first=2, sampling=Sampling(max_tokens=5), sae=info.id, feature=3)
    events = loaded.done(job)
    begun = only(events, ev.SetStarted)
    assert (begun.name, begun.prompts, [arm.name for arm in begun.arms]) == ("p.jsonl", PROMPTS, ["baseline", "push"])
    lens = LensModel(str(tiny))
    probe = FeatureProbe(load_sae(sae), 3, info.layer)
    made = compare_prompts(lens, PROMPTS, ARMS, Sampling(max_tokens=5), probe=probe)
    for _ in made:
        pass
    cells = [event.cell for event in of(events, ev.SetCellDone)]
    assert len(cells) == len(made.cells) == 4
    for cell in cells:
        same = made.cells[cell.prompt, cell.arm, cell.seed]
        assert (cell.text, cell.reason, cell.distinct_2) == (same.text, same.reason, same.distinct_2)
        assert (cell.mean_kl, cell.read_back) == pytest.approx((same.mean_kl, same.read_back), rel=1e-4, abs=1e-6)
        came = [e.token for e in of(events, ev.SetTokenCame) if (e.prompt, e.token.arm) == (cell.prompt, cell.arm)]
        assert [token.token_id for token in came] == [token.token_id for token in cell.tokens]


def test_each_prompt_is_a_run_of_the_history(tiny: Path, tmp_path: Path) -> None:
    worker = Worker(history=tmp_path / "h.sqlite")
    try:
        driver = Driver(worker)
        driver.done(jobs.LoadModel(str(tiny)))
        events = driver.done(
            jobs.ComparePrompts(ARMS, PROMPTS, sampling=Sampling(max_tokens=3, temp=0.8), seeds=(1, 2), raw=True)
        )
        kept = of(events, ev.SetKept)
        assert [(event.prompt, event.seed) for event in kept] == [(0, 0), (0, 1), (1, 0), (1, 1)]
        cells = {(e.cell.prompt, e.cell.seed, e.cell.arm): e.cell for e in of(events, ev.SetCellDone)}
        for event in kept:
            run = RunStore(tmp_path / "h.sqlite").get(event.run)
            assert run is not None
            assert run.raw is True
            assert (run.prompt, run.sampling.seed, run.state) == (PROMPTS[event.prompt].text, event.seed + 1, "done")
            for place, arm in enumerate(run.arms):
                cell = cells[event.prompt, event.seed, place]
                assert [token.kl for token in arm.tokens] == [token.kl for token in cell.tokens]
                assert arm.text == cell.text
    finally:
        worker.close(5.0)


def test_a_stop_keeps_what_was_written_and_a_run_goes_first(loaded: Driver) -> None:
    many = tuple(PromptItem(str(n), f"Once upon a time {n}") for n in range(40))
    job = loaded.worker.submit(jobs.ComparePrompts(ARMS, many, sampling=Sampling(max_tokens=60)))
    seen: list[ev.Event] = []
    other: list[int] = []

    def look(event: ev.Event) -> None:
        seen.append(event)
        tokens = len(of(seen, ev.SetTokenCame))
        if tokens >= 8 and not other:
            other.append(loaded.worker.submit(jobs.Compare("The king", ARMS, Sampling(max_tokens=2))))
        if tokens >= 40:
            loaded.worker.stop(job)

    events = loaded.follow(job, look)
    assert isinstance(events[-1], ev.JobDone)
    assert events[-1].stopped
    cells = [event.cell for event in of(events, ev.SetCellDone)]
    assert 0 < len(cells) < 80
    assert any(cell.reason == "stopped" and cell.tokens and cell.mean_kl is None for cell in cells)
    assert other


def test_a_file_that_is_not_there_is_one_sentence(loaded: Driver) -> None:
    assert "nowhere.txt" in loaded.failed(jobs.ComparePrompts(ARMS, path="/nowhere.txt")).message
