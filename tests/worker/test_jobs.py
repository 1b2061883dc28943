"""What each job gives, on a small real model, against the library called directly and against NumPy."""

from __future__ import annotations

import gc
import json
import threading
import weakref
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from lens_tui import demo
from lens_tui.lens import room
from lens_tui.lens.hooks.registry import Registry
from lens_tui.lens.model import LensModel
from lens_tui.records import Add, Arm, ArmEnd, LensError, Sampling, SteeringVector, Token
from lens_tui.tasks.models import recent_models
from lens_tui.tui.host import Activity, advance
from lens_tui.worker import events as ev
from lens_tui.worker import jobs
from lens_tui.worker.handlers import TABLE, load_jobs
from lens_tui.worker.thread import Worker
from tests.folders import D_MODEL, N_LAYERS, llama_folder, sae_folder, transcoder_folder
from tests.worker.drive import Driver, of, only, tokens_of

PROMPT = "Once upon a time, there was"
SAMPLING = Sampling(max_tokens=12)
VECTOR = SteeringVector.of("v", np.cos(np.arange(D_MODEL)), 1)


def add(scale: float, layer: int = 1) -> Add:
    return Add(id="a", layer=layer, vector=VECTOR, scale=scale)


def arms(*scales: float) -> tuple[Arm, ...]:
    return (Arm("baseline"), *(Arm(f"v x {scale}", (add(scale),)) for scale in scales))


def test_loading_says_how_far_it_is_and_what_it_loaded(tiny: Path, driver: Driver) -> None:
    events = driver.done(jobs.LoadModel(str(tiny)))
    stages = list(dict.fromkeys(event.stage for event in of(events, ev.Progress)))
    assert stages == ["config", "tokenizer", "weights", "warm-up"]
    weights = [event for event in of(events, ev.Progress) if event.stage == "weights"]
    info = only(events, ev.ModelLoaded).info
    assert (info.n_layers, info.d_model, info.architecture) == (N_LAYERS, D_MODEL, "llama")
    assert (weights[0].done, weights[-1].done) == (0, info.nbytes)
    assert {event.unit for event in weights} == {"bytes"}
    assert recent_models()[0] == str(tiny)


def test_collections_go_on_after_a_load_and_leave_what_it_brought_alone_until_that_is_freed(
    tiny: Path, tmp_path: Path, driver: Driver
) -> None:
    gc.unfreeze()
    driver.done(jobs.LoadModel(str(tiny)))
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
    driver.failed(jobs.LoadModel(str(tmp_path)))
    assert gc.isenabled()
    driver.done(jobs.UnloadModel())
    assert gc.get_freeze_count() == 0


def test_a_model_whose_load_failed_does_not_outlive_the_next_load(
    tiny: Path, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[weakref.ref[Any]] = []

    def broken(lens: Any) -> None:
        lens.in_a_circle = lens
        left.append(weakref.ref(lens))
        raise LensError("It gives NaN.")

    with monkeypatch.context() as patch:
        patch.setattr(load_jobs, "_warm_up", broken)
        driver.failed(jobs.LoadModel(str(tiny)))
    driver.done(jobs.LoadModel(str(tiny)))
    assert left[0]() is None


@pytest.mark.parametrize(
    ("how", "says", "nbytes"), [("never", "", 20_919_808), ("always", "float32, dequantised on loading", 78_673_408)]
)
def test_weights_are_held_as_asked_for(how: Any, says: str, nbytes: int, driver: Driver) -> None:
    events = driver.done(jobs.LoadModel("demo", dequantize=how))
    info = only(events, ev.ModelLoaded).info
    assert (info.weights, info.nbytes, info.quantization) == (says, nbytes, "8-bit, group 128")
    read = [event for event in of(events, ev.Progress) if event.stage == "weights"]
    assert (read[-1].done, read[-1].total) == (nbytes, nbytes)


def test_a_comparison_is_the_librarys(loaded: Driver, tiny: Path) -> None:
    events = loaded.done(jobs.Compare(PROMPT, arms(4.0, -4.0), SAMPLING, top=3))
    from lens_tui import LensModel

    direct = list(LensModel(str(tiny)).compare(PROMPT, arms(4.0, -4.0), SAMPLING, top=3))
    tokens = [item for item in direct if isinstance(item, Token)]
    ours = tokens_of(events)
    assert [(t.arm, t.index, t.token_id, t.token) for t in ours] == [
        (t.arm, t.index, t.token_id, t.token) for t in tokens
    ]
    np.testing.assert_allclose([t.logprob for t in ours], [t.logprob for t in tokens], atol=1e-5)
    for name in ("kl", "reverse_kl", "plain_logprob"):
        assert [getattr(t, name) for t in ours] == [pytest.approx(getattr(t, name), abs=1e-5) for t in tokens]
    assert [[c.token_id for c in t.top] for t in ours] == [[c.token_id for c in t.top] for t in tokens]
    ends = [item for item in direct if isinstance(item, ArmEnd)]
    assert [(e.arm, e.reason, e.n_tokens) for e in of(events, ev.ArmDone)] == [
        (e.arm, e.reason, e.n_tokens) for e in ends
    ]
    np.testing.assert_allclose([e.dose or 0 for e in of(events, ev.ArmDone)], [e.dose or 0 for e in ends], rtol=1e-5)
    assert [t.scales for t in ours[:3]] == [(), (("a", 4.0),), (("a", -4.0),)]
    assert of(events, ev.Speed)[-1].steps == max(t.index for t in ours) + 1


def test_an_arm_ends_at_a_stop_text(loaded: Driver) -> None:
    whole = "".join(token.text for token in tokens_of(loaded.done(jobs.Compare(PROMPT, (), SAMPLING))))
    stop = whole[5:8]
    sampling = replace(SAMPLING, stop=("never this", stop))
    events = loaded.done(jobs.Compare(PROMPT, (), sampling))
    assert "".join(token.text for token in tokens_of(events)) == whole[: whole.index(stop)]
    assert only(events, ev.ArmDone).reason == "stop"


def test_a_run_begins_with_its_prompt(loaded: Driver) -> None:
    events = loaded.done(jobs.Compare(PROMPT, arms(1.0), SAMPLING))
    started = only(events, ev.RunStarted)
    assert "".join(started.prompt_tokens[1:]) == PROMPT
    assert started.arms == ("baseline", "v x 1.0")
    prompt = [event for event in of(events, ev.Progress) if event.stage == "prompt"]
    assert prompt[0].total == len(started.prompt_ids)
    assert isinstance(events[-1], ev.JobDone)


def test_a_transcoder_is_held_against_what_it_should_give(loaded: Driver, tiny: Path, tmp_path: Path) -> None:
    file = transcoder_folder(tmp_path / "set") / "layer_1.safetensors"
    info = only(loaded.done(jobs.LoadSAE(str(file))), ev.SAELoaded).info
    assert info.is_transcoder
    read = only(loaded.done(jobs.Encode(info.id, PROMPT, top_k=4)), ev.Encoded)
    lens, ids = LensModel(str(tiny)), list(read.token_ids)
    reads, gives = (np.array(lens.residuals(ids, 1, site=site)) for site in (info.site, info.site_out))
    plain = ~np.array(read.special)
    weights = {name: value.astype(np.float64) for name, value in load_file(file).items()}
    latents = np.maximum(reads[plain].astype(np.float64) @ weights["W_enc"].T + weights["b_enc"], 0)
    lost = gives[plain] - (latents @ weights["W_dec"] + weights["b_dec"])
    spread = gives[plain] - gives[plain].mean(axis=0)
    assert read.l0 == pytest.approx((latents > 0).sum(axis=1).mean())
    assert read.fvu == pytest.approx((lost**2).sum() / (spread.astype(np.float64) ** 2).sum(), rel=1e-4)


def test_reading_a_long_text_stops_between_two_pieces(
    loaded: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = only(loaded.done(jobs.LoadSAE(str(sae_folder(tmp_path / "sae")))), ev.SAELoaded).info
    text = PROMPT * 12
    whole = only(loaded.done(jobs.Encode(info.id, text, top_k=4)), ev.Encoded)
    monkeypatch.setattr(room, "SPEED", dict.fromkeys(room.SPEED, 1.0))
    events = loaded.done(jobs.Encode(info.id, text, top_k=4))
    cut = only(events, ev.Encoded)
    total = len(cut.token_ids)
    read = [(event.done, event.total) for event in of(events, ev.Progress) if event.stage == "read"]
    assert read == [(min(done, total), total) for done in range(16, total + 16, 16)]
    np.testing.assert_allclose(cut.values, whole.values, atol=1e-4)
    pieces_read, submitted = 0, threading.Event()
    forward = Registry.forward

    def stopping(self: Registry, *arguments: Any, **options: Any) -> Any:
        nonlocal pieces_read
        pieces_read += 1
        submitted.wait(60)
        loaded.worker.stop(job)
        return forward(self, *arguments, **options)

    monkeypatch.setattr(Registry, "forward", stopping)
    job = loaded.worker.submit(jobs.Encode(info.id, text, top_k=4))
    submitted.set()
    assert loaded.follow(job, lambda _: None)[-1] == ev.JobDone(job, stopped=True)
    assert pieces_read == 1


@pytest.mark.parametrize("scales", [(), (1.0, 2.0)])
def test_progress_moves_inside_a_long_prompt(
    loaded: Driver, monkeypatch: pytest.MonkeyPatch, scales: tuple[float, ...]
) -> None:
    monkeypatch.setattr(room, "SPEED", dict.fromkeys(room.SPEED, 1.0))  # pieces as short as they come
    events = loaded.done(jobs.Compare(PROMPT * 12, arms(*scales), Sampling(max_tokens=2)))
    n_prompt = len(only(events, ev.RunStarted).prompt_ids)
    prompt = [event for event in of(events, ev.Progress) if event.stage == "prompt"]
    done = [event.done for event in prompt]
    assert done == sorted(done)
    assert len(set(done)) >= n_prompt // room.FEWEST
    assert {(event.total, event.unit) for event in prompt} == {(n_prompt, "tokens")}
    activity, shown = Activity(), []
    for event in prompt:
        activity = advance(activity, event, 0.0)
        shown.append(activity.facts())
    assert shown == [f"{at}/{n_prompt} tok" for at in done]


def test_a_stop_takes_at_most_one_more_step(loaded: Driver) -> None:
    job = loaded.worker.submit(jobs.Compare(PROMPT, arms(0.5), Sampling(max_tokens=400)))
    seen: list[int] = []

    def look(event: ev.Event) -> None:
        if isinstance(event, ev.TokenEvent) and event.token.index == 3 and not seen:
            seen.append(event.token.index)
            loaded.worker.stop(job)

    events = loaded.follow(job, look)
    assert seen
    ends = of(events, ev.ArmDone)
    tokens = tokens_of(events)
    assert events[-1] == ev.JobDone(job, stopped=True)
    assert [end.reason for end in ends] == ["stopped", "stopped"]
    for end in ends:
        assert end.n_tokens == sum(token.arm == end.arm for token in tokens)
    assert ends[1].dose is not None
    # The driver sees a token some steps after it was made; what counts is that far fewer came than were asked for.
    assert len(tokens) < 400


def test_the_dial_acts_from_the_token_it_says(loaded: Driver, tiny: Path) -> None:
    job = loaded.worker.submit(jobs.Compare(PROMPT, arms(0.0), Sampling(max_tokens=60)))
    asked: list[int] = []

    def look(event: ev.Event) -> None:
        if isinstance(event, ev.TokenEvent) and event.token.arm == 1 and not asked:
            asked.append(event.token.index)
            loaded.worker.dial(job, 0, (add(1.0, layer=99),))
            loaded.worker.dial(job, 1, (add(30.0),))

    events = loaded.follow(job, look)
    refused = only(events, ev.DialRefused)
    assert (refused.arm, "99" in refused.message) == (0, True)
    dialled = only(events, ev.Dialed)
    assert dialled.arm == 1
    steered = [token for token in tokens_of(events) if token.arm == 1]
    for token in steered:
        assert token.scales == (("a", 30.0 if token.index >= dialled.index else 0.0),)
    # Before, the arms are the same distribution; from that token on they are not.
    assert all(token.kl == pytest.approx(0.0, abs=1e-6) for token in steered if token.index < dialled.index)
    first = next(token for token in steered if token.index == dialled.index)
    assert first.kl is not None
    assert first.kl > 1e-3


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (jobs.Compare(PROMPT, (Arm("x", (add(1.0, layer=9),)),)), "no layer 9"),
        (jobs.Encode("/nowhere/sae", "text"), "no SAE at"),
        (jobs.RandomVector("r", 50), "no layer 50"),
        (jobs.VectorFromPrompts("p", (), ("x",), 1), "both sides"),
        (jobs.LoadModel("/nowhere/model"), "There is no model at"),
    ],
)
def test_a_job_that_cannot_be_done_says_why_and_all_else_goes_on(loaded: Driver, job: jobs.Job, message: str) -> None:
    assert message in loaded.failed(job).message
    assert only(loaded.done(jobs.RandomVector("r", 1)), ev.VectorMade).vector.d_model == D_MODEL


def test_without_a_model_each_job_says_so(driver: Driver) -> None:
    for job in (jobs.Compare("x", ()), jobs.Encode("s", "x"), jobs.RandomVector("r", 0), jobs.LoadSAE("/nowhere")):
        failed = driver.failed(job)
        assert "No model is loaded" in failed.message or "no SAE" in failed.message


def test_features_are_numpys(loaded: Driver, tiny: Path, sae: Path) -> None:
    text = "The old man opened the door and saw"
    info = only(loaded.done(jobs.LoadSAE(str(sae))), ev.SAELoaded).info
    assert (info.layer, info.width, info.site) == (1, 64, "resid_post")
    encoded = only(loaded.done(jobs.Encode(info.id, text, top_k=8)), ev.Encoded)
    from lens_tui import LensModel

    h = np.array(LensModel(str(tiny)).residuals(list(encoded.token_ids), 1), dtype=np.float64)
    p = {name: value.astype(np.float64) for name, value in load_file(sae / "params.safetensors").items()}
    pre = h @ p["w_enc"] + p["b_enc"]
    acts = np.where(pre > p["threshold"], np.maximum(pre, 0), 0)
    assert encoded.special == (True, *[False] * (len(encoded.tokens) - 1))
    assert (encoded.ids[0] == -1).all()
    for row in range(1, len(encoded.tokens)):
        best = np.argsort(-acts[row], kind="stable")[:8]
        n = int((acts[row][best] > 0).sum())
        assert list(encoded.ids[row][:n]) == list(best[:n])
        np.testing.assert_allclose(encoded.values[row][:n], acts[row][best[:n]], rtol=1e-4)
    assert encoded.l0 == pytest.approx((acts[1:] > 0).sum(axis=1).mean())
    error = h[1:] - (acts[1:] @ p["w_dec"] + p["b_dec"])
    assert encoded.fvu == pytest.approx((error**2).sum() / ((h[1:] - h[1:].mean(0)) ** 2).sum(), rel=1e-4)
    feature = int(encoded.ids[3, 0])
    events = loaded.done(jobs.ReadFeature(info.id, feature, top_tokens=5))
    over = only(events, ev.FeatureActivations).values
    np.testing.assert_allclose(over[1:], acts[1:, feature], rtol=1e-4, atol=1e-5)
    assert over[0] == 0
    page = only(events, ev.FeaturePage)
    row = p["w_dec"][feature]
    np.testing.assert_allclose(page.vector.direction, row / np.linalg.norm(row), rtol=1e-5)
    assert page.vector.max_activation == pytest.approx(over.max() * np.linalg.norm(row), rel=1e-4)
    weights = load_file(tiny / "model.safetensors")
    effect = weights["model.embed_tokens.weight"] @ (page.vector.direction * weights["model.norm.weight"])
    order = np.argsort(-effect)
    assert [weight.token_id for weight in page.facts.promoted] == list(order[:5])
    assert [weight.token_id for weight in page.facts.suppressed] == list(order[::-1][:5])
    np.testing.assert_allclose([weight.value for weight in page.facts.promoted], effect[order[:5]], rtol=1e-4)
    vector = only(loaded.done(jobs.VectorFromFeature(info.id, feature)), ev.VectorMade).vector
    assert vector.direction.tobytes() == page.vector.direction.tobytes()
    assert (vector.layer, vector.site, vector.origin.facts["feature"]) == (1, "resid_post", feature)


def test_token_ids_are_read_as_they_are(loaded: Driver, sae: Path) -> None:
    encoded = only(loaded.done(jobs.Encode(str(sae), token_ids=(0, 5, 9))), ev.Encoded)
    assert encoded.token_ids == (0, 5, 9)
    assert "8192" in loaded.failed(jobs.Encode(str(sae), token_ids=(0, 8192))).message
    assert "-1" in loaded.failed(jobs.ReadFeature(str(sae), -1)).message
    assert "64" in loaded.failed(jobs.VectorFromFeature(str(sae), 64)).message


def test_an_sae_of_another_shape_is_refused(loaded: Driver, tmp_path: Path) -> None:
    wide = sae_folder(tmp_path / "wide", d_model=D_MODEL * 2)
    assert f"reads width {2 * D_MODEL}" in loaded.failed(jobs.LoadSAE(str(wide))).message
    deep = sae_folder(tmp_path / "deep", layer=7)
    assert "is for layer 7" in loaded.failed(jobs.LoadSAE(str(deep))).message


def test_vectors_from_prompts(loaded: Driver, tiny: Path) -> None:
    positive, negative = ("The dog ran.", "A dog barked at the moon"), ("The cat slept.",)
    made = only(loaded.done(jobs.VectorFromPrompts("dog", positive, negative, 2, over="last")), ev.VectorMade)
    from lens_tui import LensModel

    model = LensModel(str(tiny))

    def last(text: str) -> NDArray[np.float64]:
        rows: NDArray[np.float64] = np.array(model.residuals(text, 2), dtype=np.float64)
        return np.asarray(rows[-1])

    expected = np.mean([last(text) for text in positive], axis=0) - last(negative[0])
    np.testing.assert_allclose(made.vector.direction, expected / np.linalg.norm(expected), atol=1e-5)
    assert made.vector.norm == pytest.approx(np.linalg.norm(expected), rel=1e-4)
    assert made.residual_norm is not None
    assert made.residual_norm > 0
    assert len(made.promoted) == len(made.suppressed) == 10


def test_a_load_that_fails_leaves_the_model_before_usable(tiny: Path, tmp_path: Path, driver: Driver) -> None:
    driver.done(jobs.LoadModel(str(tiny)))
    broken = llama_folder(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"\x10" * 100)
    nan = llama_folder(tmp_path / "nan", rms_norm_eps=float("nan"))
    strange = llama_folder(tmp_path / "strange", model_type="nothing_like_it")
    code = llama_folder(tmp_path / "code", model_file="evil.py")
    (code / "evil.py").write_text("raise SystemExit('ran')")
    missing = llama_folder(tmp_path / "missing")
    (missing / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})
    )
    for folder, message in {
        broken: "cannot be loaded",
        nan: "gives NaN",
        strange: "does not know the architecture nothing_like_it",
        code: "brings its own code",
        missing: "2 of its 2 weight files are missing",
    }.items():
        failed = driver.failed(jobs.LoadModel(str(folder)))
        assert message in f"{failed.message} {failed.hint}", failed
        assert failed.message.count("\n") == 0
    assert of(driver.done(jobs.Compare(PROMPT, (), Sampling(max_tokens=2))), ev.TokenEvent)


def test_loading_another_frees_the_first_and_unloading_frees_all(tiny: Path, tmp_path: Path) -> None:
    driver = Driver(Worker())
    other = llama_folder(tmp_path / "other", seed=1)
    driver.done(jobs.LoadModel(str(tiny)))
    first = tokens_of(driver.done(jobs.Compare(PROMPT, (), SAMPLING)))
    driver.done(jobs.LoadModel(str(other)))
    second = tokens_of(driver.done(jobs.Compare(PROMPT, (), SAMPLING)))
    assert [t.token_id for t in first] != [t.token_id for t in second]
    assert only(driver.done(jobs.UnloadModel()), ev.ModelUnloaded)
    assert "No model" in driver.failed(jobs.Compare(PROMPT, ())).message
    assert driver.worker.close(60)


def test_a_model_larger_than_memory_is_refused_unless_forced(
    tiny: Path, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lens_tui.worker.handlers.load_jobs.machine_memory", lambda: 1000)
    failed = driver.failed(jobs.LoadModel(str(tiny)))
    assert "GB of weights" in failed.message
    driver.done(jobs.LoadModel(str(tiny), force=True))


def test_what_comes_after_a_load_is_imported_by_another_thread_while_weights_are_read(
    tiny: Path, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported: list[tuple[str, str]] = []

    def noted(name: str, package: str) -> ModuleType:
        imported.append((name, threading.current_thread().name))
        return import_module(name, package)

    monkeypatch.setattr(load_jobs, "import_module", noted)
    driver.done(jobs.LoadModel(str(tiny)))
    next_ones = {TABLE[kind].partition(":")[0] for kind in (jobs.BareVectors, jobs.LoadSAE, jobs.Compare)}
    assert {name.removeprefix(".") for name, _ in imported} == next_ones
    assert {thread for _, thread in imported} == {"imports"}
    monkeypatch.setattr(load_jobs, "_NEXT", ("nowhere",))
    driver.done(jobs.LoadModel(str(tiny)))
    assert imported[-1][0] == ".nowhere"


def test_the_bundled_model_and_its_sae(driver: Driver) -> None:
    loaded = only(driver.done(jobs.LoadModel("demo")), ev.ModelLoaded)
    asked: list[jobs.VectorFromFeature | jobs.VectorFromFile] = [
        jobs.VectorFromFeature(demo.default_sae(), 2666),
        *(jobs.VectorFromFile(str(ready.path)) for ready in demo.vectors()),
    ]
    bare = of(driver.done(jobs.BareVectors(tuple(asked))), ev.VectorMade)
    for made, job in zip(bare, asked, strict=True):
        assert (made.residual_norm, made.promoted, made.suppressed) == (None, (), ())
        whole = only(driver.done(job), ev.VectorMade)
        name = made.vector.name if job is asked[0] else whole.vector.name  # a feature has its label
        assert repr(made.vector) == repr(replace(whole.vector, name=name))
        assert made.vector.direction.tobytes() == whole.vector.direction.tobytes()
        said = only(driver.done(jobs.VectorGiven(made.vector)), ev.VectorMade)
        assert (said.residual_norm, said.promoted, said.suppressed) == (
            whole.residual_norm,
            whole.promoted,
            whole.suppressed,
        )
    assert loaded.info.name == "demo"
    assert recent_models() == []
    assert loaded.saes
    encoded = only(driver.done(jobs.Encode(loaded.saes[0].id, "Mix the flour and butter")), ev.Encoded)
    declared = loaded.saes[0]
    assert declared.l0 is not None
    assert 0.3 * declared.l0 < encoded.l0 < 3 * declared.l0
    assert 0 < encoded.fvu < 0.5
