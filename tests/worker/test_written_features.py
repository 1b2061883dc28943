"""The features of what a run writes: live, afterwards, and one of them, held against a forward over the whole text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import LensModel, demo, load_sae
from lens_tui.lens.vectors import residual_norm
from lens_tui.records import Add, Arm, Sampling, SteeringVector
from lens_tui.worker import events as ev
from lens_tui.worker import jobs
from lens_tui.worker.thread import Worker
from tests.folders import llama_folder
from tests.worker.drive import Driver, of, only, tokens_of

PROMPT = "the cat sat on"
N = 21


@pytest.fixture(scope="module", params=["float32", "bfloat16", "8-bit"])
def kind(
    request: pytest.FixtureRequest, tiny: Path, sae: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A model as it is named and an SAE of it: a float32 llama, the same in bfloat16, the bundled one in 8 bits."""
    if request.param == "8-bit":
        return "demo", demo.sae_paths()[demo.default_sae()]
    if request.param == "float32":
        return str(tiny), sae
    folder = llama_folder(tmp_path_factory.mktemp("models") / "it")
    weights: Any = mx.load(str(folder / "model.safetensors"))
    half = {name: value.astype(mx.bfloat16) for name, value in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), half)
    return str(folder), sae


def arms_of(model: LensModel) -> tuple[Arm, ...]:
    direction = np.random.default_rng(0).standard_normal(model.d_model)
    vector = SteeringVector.of("v", direction, 1, model="it")
    norm = residual_norm(model, 1)
    below, here = (Add(id=f"a{layer}", layer=layer, vector=vector, scale=0.4 * norm) for layer in (0, 1))
    return Arm("baseline"), Arm("below", (below,)), Arm("here", (here,))


def expected(
    model: LensModel, sae: Any, prompt: tuple[int, ...], text: list[int], arm: Arm
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """All features of the written tokens, by the public steering and capture on the whole text at once."""
    ids = [*prompt, *text]
    with model.intervene(*arm.interventions), model.capture([sae.info.layer]) as seen:
        model.forward(ids)
        hidden = seen[sae.info.layer][0, len(prompt) :]
    return np.array(sae.encode(hidden).astype(mx.float32))


def test_live_features_and_those_read_afterwards_are_the_encoding_of_the_steered_text(
    kind: tuple[str, Path], home: Path
) -> None:
    (name, sae), driver, tolerance = kind, Driver(Worker()), 2e-4
    driver.done(jobs.LoadModel(name, dequantize="never"))
    with LensModel(name, dequantize="never") as model:
        arms = arms_of(model)
        opened = load_sae(sae)
        info = only(driver.done(jobs.LoadSAE(str(sae), check=False)), ev.SAELoaded).info
        compare = jobs.Compare(PROMPT, arms, Sampling(max_tokens=N), sae=info.id)
        events = driver.done(compare)
        plain = driver.done(jobs.Compare(PROMPT, arms, Sampling(max_tokens=N)))
        written = [[t.token_id for t in tokens_of(events) if t.arm == arm] for arm in range(3)]
        assert written == [[t.token_id for t in tokens_of(plain) if t.arm == arm] for arm in range(3)]
        assert not of(plain, ev.ArmFeatures)
        if model.info.dtype != "float32" or model.info.quantization:
            tolerance = 0.04  # a token alone and a text at once round differently
        prompt = only(events, ev.RunStarted).prompt_ids
        texts = tuple((arm.interventions, tuple(text)) for arm, text in zip(arms, written, strict=True))
        job = jobs.ReadWritten(info.id, 0, PROMPT, texts)
        for source in (events, driver.done(job)):
            for arm, text in enumerate(written):
                truth = expected(model, opened, prompt, text, arms[arm])
                parts = [event for event in of(source, ev.ArmFeatures) if event.arm == arm]
                ids, values = (np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "values"))
                assert [part.start for part in parts] == np.cumsum([0, *(len(p.ids) for p in parts)])[:-1].tolist()
                assert len(ids) == len(text)
                scale = float(truth.max())
                for token in range(len(text)):
                    active = ids[token] >= 0
                    found = truth[token][ids[token][active]]
                    assert values[token][active] == pytest.approx(found, abs=tolerance * scale)
                    best = np.sort(truth[token])[::-1][: active.sum()]
                    assert values[token][active] == pytest.approx(best, abs=tolerance * scale)
        assert len(of(events, ev.ArmFeatures)) > 3  # in several batches, not at the end alone
    assert driver.worker.close(60)


def test_one_feature_is_told_of_every_token_and_its_own_activations_are_used(tiny: Path, sae: Path, home: Path) -> None:
    driver = Driver(Worker())
    driver.done(jobs.LoadModel(str(tiny)))
    info = only(driver.done(jobs.LoadSAE(str(sae), check=False)), ev.SAELoaded).info
    with LensModel(str(tiny)) as model:
        arms = arms_of(model)
        number = driver.worker.submit(jobs.Compare(PROMPT, arms, Sampling(max_tokens=N), sae=info.id))
        events = driver.follow(number, lambda _: None)
        written = [[t.token_id for t in tokens_of(events) if t.arm == arm] for arm in range(3)]
        feature = int(of(events, ev.ArmFeatures)[0].ids[0, 0])
        texts = tuple((arm.interventions, tuple(text)) for arm, text in zip(arms, written, strict=True))
        prompt = only(events, ev.RunStarted).prompt_ids
        for run in (number, 0):
            found = of(driver.done(jobs.ReadWritten(info.id, run, PROMPT, texts, feature=feature)), ev.ArmActivation)
            assert [event.arm for event in found] == [0, 1, 2]
            for event in found:
                truth = expected(model, load_sae(sae), prompt, written[event.arm], arms[event.arm])[:, feature]
                assert event.values == pytest.approx(truth, abs=2e-4 * max(1.0, float(truth.max())))
        other = tuple((items, text[::-1]) for items, text in texts)  # of another run that has no job either
        for event in of(driver.done(jobs.ReadWritten(info.id, 0, PROMPT, other, feature=feature)), ev.ArmActivation):
            truth = expected(model, load_sae(sae), prompt, list(other[event.arm][1]), arms[event.arm])[:, feature]
            assert event.values == pytest.approx(truth, abs=2e-4 * max(1.0, float(truth.max())))
    assert driver.failed(jobs.ReadWritten(info.id, 0, PROMPT, texts, feature=10**6)).message
    assert driver.worker.close(60)
