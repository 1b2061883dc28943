"""The stand-in gives a screen what the worker gives it: the same events in the same order, with the same fields.

Both do the same jobs, the worker on the bundled model. What may differ is written here: the stand-in leaves out most
progress, and the worker says its speed by the clock. Everything else must be the same, and every value that the
stand-in gives is of a type that the worker gives at that place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lens_tui import demo
from lens_tui.records import Add, Arm, Sampling
from lens_tui.records.cause_plan import EXAMPLE
from lens_tui.records.gates import Watched, monitor_of
from lens_tui.records.prompt_set import PromptItem
from lens_tui.worker import events as ev
from lens_tui.worker import jobs
from lens_tui.worker.thread import Worker
from tests.fakes import DEMO_SAE, FakeWorker, unit_vector
from tests.worker.drive import Driver, of

PROMPT, SAE, STEPS = "Once upon a time, there was", DEMO_SAE.id, 4
ADD = (Add(id="a", layer=4, vector=unit_vector("dog"), scale=1.0),)
ARMS = (Arm("baseline"), Arm("dog", ADD))
ONE, OTHER = unit_vector("one"), unit_vector("other")
PAIRS = ("I love it", "so good"), ("I hate it", "so bad")
QUESTIONS = str(Path(__file__).parents[2] / "examples" / "cooking_or_play.jsonl")
JOBS: dict[str, jobs.Job] = {
    "an SAE": jobs.LoadSAE(SAE),
    "two arms": jobs.Compare(PROMPT, ARMS, Sampling(max_tokens=STEPS)),
    "two arms and monitors": jobs.Compare(
        PROMPT, ARMS, Sampling(max_tokens=STEPS), monitors=(Watched(monitor_of(unit_vector("dog"))),)
    ),
    "no arm": jobs.Compare(PROMPT, (), Sampling(max_tokens=STEPS)),
    "a set": jobs.ComparePrompts(
        ARMS, path="bundled", first=2, sampling=Sampling(max_tokens=STEPS), sae=SAE, feature=17
    ),
    "a typed set": jobs.ComparePrompts(ARMS[1:], (PromptItem("1", PROMPT),), sampling=Sampling(max_tokens=STEPS)),
    "a text": jobs.Encode(SAE, PROMPT),
    "tokens": jobs.Encode(SAE, token_ids=(0, 17, 18)),
    "a feature": jobs.ReadFeature(SAE, 2666),
    "a lens": jobs.ReadLens(PROMPT),
    "a lens of tokens": jobs.ReadLens(token_ids=(0, 17, 18)),
    "a steered lens": jobs.ReadLens(PROMPT, arm=ARMS[1], target=" the"),
    "parts": jobs.ReadParts(PROMPT, target=17, position=2),
    "parts under an arm": jobs.ReadParts(PROMPT, arm=ARMS[1], target=17),
    "attention": jobs.ReadPattern(PROMPT, layer=3),
    "patches": jobs.Patch(EXAMPLE),
    "patches of heads into the clean run": jobs.Patch(replace(EXAMPLE, by="head", direction="noise")),
    "a trace": jobs.Patch(replace(EXAMPLE, by="trace", samples=1)),
    "a patch's vector": jobs.VectorFromPatch(EXAMPLE, 2, 5, "L2"),
    "a head's vector": jobs.VectorFromPatch(replace(EXAMPLE, by="head"), 7, 4, "L7 H4"),
    "a label": jobs.SetLabel(SAE, 17, "dogs"),
    "words": jobs.FindFeatures(SAE, "dog"),
    "words of nothing": jobs.FindFeatures(SAE, "nothing zzqx"),
    "neighbours": jobs.ReadNeighbours(SAE, 18),
    "a feature's vector": jobs.VectorFromFeature(SAE, 17),
    "texts": jobs.VectorFromPrompts("p", *PAIRS, layer=4),
    "pairs": jobs.VectorFromPrompts("p", *PAIRS, layer=None),
    "one pair": jobs.VectorFromPrompts("p", PAIRS[0][:1], PAIRS[1][:1], layer=None),
    "probes": jobs.TrainProbes("p", *PAIRS, layers=(2, 4)),
    "a token": jobs.VectorFromToken(" dog", 4),
    "an embedding": jobs.VectorFromToken(" dog", 4, "embedding"),
    "a sum": jobs.VectorFromVectors("sum", ((1.0, ONE), (2.0, OTHER))),
    "a difference": jobs.VectorFromVectors("less", ((1.0, ONE), (2.0, OTHER)), less=True),
    "a vector": jobs.VectorGiven(ONE),
    "the vectors of a bench": jobs.BareVectors(
        (jobs.VectorFromFeature(SAE, 2666), jobs.VectorFromFile(str(demo.vectors()[0].path)))
    ),
    "a random vector": jobs.RandomVector("r", 2),
    "a dose": jobs.MeasureDose(PROMPT, ADD, (0.0, 2.0, 4.0), 1, max_tokens=4, n_texts=1),
    "a dose of a feature": jobs.MeasureDose(PROMPT, ADD, (0.0, 4.0), 1, SAE, 17, max_tokens=4, n_texts=1),
    "a dose with questions": jobs.MeasureDose(PROMPT, ADD, (0.0, 4.0), 1, max_tokens=4, n_texts=1, questions=QUESTIONS),
    "a scale for a behaviour": jobs.FindScale(ADD, "behaviour", 0.1, QUESTIONS),
    "a scale": jobs.FindScale(ADD, "relative_norm", 0.1),
}
REFUSED: dict[str, jobs.Job] = {
    "no model": jobs.LoadModel("./missing/model"),
    "no feature": jobs.ReadFeature(SAE, 99_999),
    "no examples": jobs.TrainProbes("p", PAIRS[0], ("one",)),
    "no pairs": jobs.VectorFromPrompts("p", PAIRS[0], PAIRS[1][:1], layer=None),
    "no token": jobs.VectorFromToken("a b c d", 4),
    "no target": jobs.ReadLens(PROMPT, target=" the dog ran"),
    "no pair": jobs.Patch(replace(EXAMPLE, corrupted="Lily")),
    "no subject": jobs.Patch(replace(EXAMPLE, by="trace", subject="xyzzy")),
    "no sum": jobs.VectorFromVectors("sum", ((1.0, ONE), (1.0, unit_vector("elsewhere", 5)))),
    "no file": jobs.VectorFromFile("/nowhere/vector.npz"),
}
UNKNOWN = {
    *("FeaturePage.facts.labels[].score", "FeaturePage.facts.description", "FeaturePage.facts.convention"),
    *("FeaturePage.facts.index.count", "FeaturePage.facts.index.mean", "FeaturePage.facts.index.std"),
}
"""What the stand-in does not know of a feature."""
Forms = dict[str, set[str]]


@pytest.fixture(scope="module")
def real(home: Path) -> Iterator[Driver]:
    made = Driver(Worker())
    made.done(jobs.LoadModel("demo"))
    made.done(jobs.LoadSAE(SAE))
    made.done(jobs.Encode(SAE, PROMPT))
    yield made
    assert made.worker.close(60)


def fakes_events(*asked: jobs.Job) -> list[ev.Event]:
    """What the stand-in says of the last of these jobs."""
    fake = FakeWorker()
    number = [fake.submit(job) for job in asked][-1]
    return [event for event in fake.drain() if event.job == number]


def order(events: list[ev.Event]) -> list[object]:
    """The events but progress and speed, tokens and ends of arms with the places they are for.

    How many pieces a measurement comes in is each worker's own.
    """
    found: list[object] = []
    for event in events:
        if isinstance(event, ev.Progress | ev.Speed):
            continue
        place = (event.token.arm, event.token.index) if isinstance(event, ev.TokenEvent) else ()
        row = (type(event).__name__, *place, *((event.arm,) if isinstance(event, ev.ArmDone) else ()))
        if not found or found[-1] != row:
            found.append(row)
    return found


def stages(events: list[ev.Event]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((event.stage, event.unit) for event in of(events, ev.Progress)))


def form(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} array of {value.ndim} axes"
    return type(value).__name__


def add_forms(found: Forms, path: str, value: object) -> None:
    """Note the type of a value and of everything in it, by the way to it."""
    found.setdefault(path, set()).add(form(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            add_forms(found, f"{path}.{field.name}", getattr(value, field.name))
    elif isinstance(value, Mapping):
        for key, part in value.items():
            add_forms(found, f"{path}[{key if isinstance(key, str) else form(key)}]", part)
    elif isinstance(value, list | tuple):
        for part in value:
            add_forms(found, f"{path}[]", part)


def forms(events: list[ev.Event]) -> Forms:
    found: Forms = {}
    for event in events:
        add_forms(found, type(event).__name__, event)
    return found


def unlike(fake: list[ev.Event], real: list[ev.Event]) -> list[str]:
    """What the stand-in gives and the worker does not; where the worker has nothing this time, nothing is said."""
    ours, theirs = forms(fake), forms(real)
    nothing = tuple(f"{path}[" for path, form in theirs.items() if form == {"NoneType"})
    return [
        f"{path}: {', '.join(sorted(mine))}, of the worker {', '.join(sorted(theirs.get(path, {'not there'})))}"
        for path, mine in ours.items()
        if not (path in UNKNOWN and mine == {"NoneType"})
        and not mine <= theirs.get(path, set())
        and theirs.get(path) != {"NoneType"}
        and not path.startswith(nothing)
    ]


@pytest.mark.parametrize("name", JOBS)
def test_a_job_gives_the_same_events(name: str, real: Driver) -> None:
    theirs, ours = real.done(JOBS[name]), fakes_events(jobs.Encode(SAE, PROMPT), JOBS[name])
    assert order(ours) == order(theirs)
    assert [stage for stage in stages(theirs) if stage in stages(ours)] == stages(ours)
    assert unlike(ours, theirs) == []


@pytest.mark.parametrize("name", REFUSED)
def test_a_job_that_cannot_be_done_fails_in_both(name: str, real: Driver) -> None:
    theirs, ours = real.run(REFUSED[name]), fakes_events(REFUSED[name])
    assert order(ours) == order(theirs) == [("JobStarted",), ("JobFailed",)]
    assert unlike(ours, theirs) == []


def test_a_model_comes_and_goes_in_the_same_steps(driver: Driver) -> None:
    for job in (jobs.LoadModel("demo"), jobs.LoadModel("demo"), jobs.UnloadModel()):
        theirs, ours = driver.done(job), fakes_events(job)
        assert [row for row in order(theirs) if row != ("ModelUnloaded",) or job == jobs.UnloadModel()] == order(ours)
        assert stages(ours) == stages(theirs)
        assert unlike(ours, theirs) == []


def ends(events: list[ev.Event]) -> list[object]:
    """Everything but tokens, progress and speed, with the reason of what ended."""
    rest = [event for event in events if not isinstance(event, ev.Progress | ev.Speed | ev.TokenEvent)]
    return [(type(event).__name__, getattr(event, "reason", getattr(event, "stopped", ""))) for event in rest]


def test_a_stop_is_heard_in_the_same_words(real: Driver) -> None:
    job, waiting = jobs.Compare(PROMPT, ARMS, Sampling(max_tokens=400)), jobs.RandomVector("r", 2)
    number, behind = real.worker.submit(job), real.worker.submit(waiting)

    def look(event: ev.Event) -> None:
        if isinstance(event, ev.TokenEvent) and event.token.index == 1:
            real.worker.stop(behind)
            real.worker.stop(number)

    theirs = [*real.follow(number, look)]
    fake = FakeWorker(hold=True)
    first, second = fake.submit(job), fake.submit(waiting)
    fake.release(6)
    ours = fake.drain()
    fake.stop(second)
    fake.stop(first)
    ours += fake.drain()
    assert ends([event for event in ours if event.job == first]) == ends(theirs)
    assert [event for event in ours if event.job == second] == [ev.JobDone(second, stopped=True)]


def test_a_change_under_way_is_said_before_the_token_that_it_begins_with(real: Driver) -> None:
    job = jobs.Compare(PROMPT, ARMS, Sampling(max_tokens=12))
    number = real.worker.submit(job)

    def look(event: ev.Event) -> None:
        if isinstance(event, ev.TokenEvent) and (event.token.arm, event.token.index) == (0, 1):
            real.worker.dial(number, 1, ())

    theirs = real.follow(number, look)
    fake = FakeWorker(hold=True)
    fake.submit(job)
    fake.release(5)
    ours = fake.drain()
    fake.dial(1, 1, ())
    fake.release()
    ours += fake.drain()
    for events in (ours, theirs):
        (changed,) = of(events, ev.Dialed)
        before, after = events[: events.index(changed)], events[events.index(changed) :]
        for part, steered in ((before, True), (after, False)):
            tokens = [event.token for event in of(part, ev.TokenEvent) if event.token.arm == 1]
            assert tokens
            assert all(bool(token.scales) == steered == (token.index < changed.index) for token in tokens)
