"""Patching, tracing, probes and graphs held against torch, TransformerLens, scikit-learn and circuit-tracer.

Skipped unless ``LENS_TUI_PEERS`` names Pythons that have them (see CONTRIBUTING.md); ``LENS_TUI_PEERS_MODELS`` names
folders of llamas in float32 beside the random one. ``pytest -rP`` shows how far apart the two are.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.graph_speed import WIDTH, WITH_GRAPHS, effects
from benchmarks.serving import ROOT, Served, first_that_has
from benchmarks.torch_peers import OFFLINE, WITH_MODEL, write_model
from lens_tui import LensModel, PromptPair, attribution_graph, causal_trace, load_transcoders, patch
from lens_tui.lens.probes.probe_fits import L2, Reduced, auc_of, fit_many, r2_of
from tests.folders import transcoder_folder

PYTHONS = [each for each in os.environ.get("LENS_TUI_PEERS", "").split(os.pathsep) if each]
MODELS = ["random", *(each for each in os.environ.get("LENS_TUI_PEERS_MODELS", "").split(os.pathsep) if each)]
WITH_LEARN = "version('scikit-learn')"
ALONE = {**OFFLINE, "OMP_NUM_THREADS": "1"}
"""Threads that wait for each other in products as small as these take longer than one."""
Array = np.ndarray[Any, Any]

pytestmark = pytest.mark.skipif(not PYTHONS, reason="LENS_TUI_PEERS names no Python with a peer in it")


def python_with(wanted: str) -> str:
    found = first_that_has(PYTHONS, wanted)
    if found is None:
        pytest.skip(f"no Python of LENS_TUI_PEERS has {wanted}")
    return found


def ask(python: str, what: str, folder: Path, plan: dict[str, Any]) -> dict[str, Array]:
    """What the other side makes of a plan, by the names of its files."""
    (folder / "plan.json").write_text(json.dumps(plan))
    before = set(folder.glob("*.npy"))
    command = [python, str(ROOT / "tests" / "peers" / "torch_side.py"), what, str(folder)]
    done = subprocess.run(command, env={**os.environ, **ALONE}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {file.stem: np.load(file) for file in set(folder.glob("*.npy")) - before}


def close(what: str, ours: Any, theirs: Array, within: float) -> None:
    """The largest difference is less than a share of the largest number, and both are said."""
    ours = np.asarray(ours, np.float64).reshape(theirs.shape)
    gap, most = float(np.abs(ours - theirs).max()), float(np.abs(theirs).max())
    sys.stdout.write(f"{what}: {theirs.size} numbers, {gap:.2g} apart at most, {gap / most:.2g} of the largest\n")
    assert most > 0
    assert gap < within * most


@pytest.fixture(scope="module", params=MODELS, ids=lambda each: Path(each).name)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LensModel, Path]]:
    """A llama and the folder that both sides load it from."""
    folder = Path(request.param)
    if request.param == "random":
        folder = tmp_path_factory.mktemp("llama")
        write_model(folder)
    with LensModel(str(folder)) as lens:
        yield lens, folder


def texts(lens: LensModel, folder: Path) -> dict[str, Any]:
    """Two prompts that differ in one token, the answer and the wrong one, and a subject."""
    rng = np.random.default_rng(0)
    clean = [int(one) for one in rng.integers(2, min(8000, lens.registry.decoder.vocab_size), 8)]
    corrupted = [*clean[:3], clean[3] + 1, *clean[4:]]
    heads = json.loads((folder / "config.json").read_text())["num_attention_heads"]
    return {
        "model": str(folder), "clean": clean, "corrupted": corrupted, "answer": 7, "wrong": 30, "heads": heads,
        "subject": [2, 5], "samples": 2,
    }  # fmt: skip


def test_patches_estimates_and_traces_are_those_of_plain_hooks(model: tuple[LensModel, Path], tmp_path: Path) -> None:
    lens, folder = model
    plan = texts(lens, folder)
    theirs = ask(python_with("version('torch')"), "hooks", tmp_path, plan)
    pair = PromptPair(plan["clean"], plan["corrupted"], plan["answer"], plan["wrong"])
    for site in ("resid_pre", "attn_out", "mlp_out"):
        close(f"hooks: {site} patched", patch(lens, pair, site=site, controls=False).values, theirs[site], 1e-4)
    close("hooks: heads patched", patch(lens, pair, by="head", controls=False).values, theirs["heads"], 1e-4)
    found = patch(lens, pair, by="head-position", method="attribution")
    close("hooks: heads estimated", found.values - found.corrupted, theirs["estimates"], 1e-4)
    for site in ("resid_post", "mlp_out"):
        trace = causal_trace(lens, plan["clean"], (2, 5), answer=plan["answer"], site=site, samples=2, controls=False)
        close(f"hooks: {site} traced", trace.per_sample, theirs[f"traced_{site}"], 1e-4)


def test_patches_and_estimates_are_those_of_transformer_lens(model: tuple[LensModel, Path], tmp_path: Path) -> None:
    lens, folder = model
    plan = texts(lens, folder)
    theirs = ask(python_with(WITH_MODEL), "transformer_lens", tmp_path, plan)
    pair = PromptPair(plan["clean"], plan["corrupted"], plan["answer"], plan["wrong"])
    for site in ("resid_pre", "attn_out", "mlp_out"):
        ours = patch(lens, pair, site=site, controls=False).values
        close(f"TransformerLens: {site} patched", ours, theirs[site], 1e-4)
    ours = patch(lens, pair, by="head", controls=False).values
    close("TransformerLens: heads patched", ours, theirs["heads"], 1e-4)
    found = patch(lens, pair, by="head-position", method="attribution")
    close("TransformerLens: heads estimated", found.values - found.corrupted, theirs["estimates"], 1e-4)


def test_probes_are_those_of_scikit_learn(model: tuple[LensModel, Path], tmp_path: Path) -> None:
    """Fitted to three quarters of the residuals of random tokens, and read on the others."""
    lens, _ = model
    rng = np.random.default_rng(1)
    ids = [int(one) for one in rng.integers(2, min(8000, lens.registry.decoder.vocab_size), 240)]
    layers, n = range(0, lens.n_layers, 3), 180
    with lens.capture(layers) as held:
        lens.forward(ids)
    x = np.stack([np.array(held[layer])[0].astype(np.float64) for layer in layers])
    labels = x[0] @ rng.normal(size=x.shape[2]) / np.linalg.norm(x[0], axis=1) + rng.normal(size=len(ids)) * 0.3
    labels -= np.median(labels)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "labels.npy", labels)
    theirs = ask(python_with(WITH_LEARN), "scikit_learn", tmp_path, {"fitted": n, "l2": L2})
    ones = (labels > 0).astype(np.float64)[:, None]
    found: dict[str, list[Array]] = {name: [] for name in theirs}
    for each in x:
        reduced = Reduced.of(each[:n])
        for kind, wanted in (("logistic", ones), ("ridge", labels[:, None])):
            (w,), (b,) = fit_many(kind, reduced, wanted[:n])
            found[kind].append(each[n:] @ w + b)
        found["auc"].append(auc_of(found["logistic"][-1][:, None], ones[n:]))
        found["r2"].append(r2_of(found["ridge"][-1][:, None], labels[n:, None]))
    for name, within in (("logistic", 1e-5), ("ridge", 1e-8), ("auc", 1e-12), ("r2", 1e-8)):
        close(f"scikit-learn: {name}", np.array(found[name]), theirs[name], within)


def test_direct_effects_are_those_of_circuit_tracer(model: tuple[LensModel, Path], tmp_path: Path) -> None:
    """All but those from the first token's errors, which it leaves out."""
    lens, folder = model
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    plan = texts(lens, folder)
    config = json.loads((folder / "config.json").read_text())
    ids = [config["bos_token_id"], *plan["clean"][:4]]  # it puts one there where there is none
    with lens.capture(range(lens.n_layers), site="mlp_in") as held:
        lens.forward(ids)
    sizes = [float(np.sqrt((np.array(held[layer, "mlp_in"])[0, 1:] ** 2).mean())) for layer in range(lens.n_layers)]
    size = float(np.median(sizes))
    transcoder_folder(tmp_path / "set", n_layers=lens.n_layers, width=WIDTH, d_model=lens.d_model, size=size)
    (tmp_path / "plan.json").write_text(json.dumps({"ids": ids, "logits": 3, "config": config, "device": "cpu"}))
    with Served(python_with(WITH_GRAPHS), "benchmarks.torch_child", "graphs", str(tmp_path), also=ALONE):
        theirs = np.load(tmp_path / "effects.npy")
    transcoders = load_transcoders(tmp_path / "set")
    graph = attribution_graph(lens, ids, transcoders, ignored=1, most_logits=3, mass=1.0, most_features=1_000_000)
    close(f"circuit-tracer: direct effects of {len(graph.nodes)} nodes", effects(graph), theirs, 1e-4)
