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
from lens_tui import (
    LensModel,
    PromptPair,
    Receiver,
    Sender,
    attribution_graph,
    causal_trace,
    load_transcoders,
    patch,
    path_patch,
    sparse_probe,
)
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


def test_paths_are_those_of_plain_hooks(model: tuple[LensModel, Path], tmp_path: Path) -> None:
    """From a head of each of some layers to each kind of receiver alone, and to all of them at once."""
    lens, folder = model
    plan, last = texts(lens, folder), lens.n_layers - 1
    senders = [[layer, layer % plan["heads"]] for layer in range(0, lens.n_layers, 3)]
    ends: list[list[Any]] = [["attn", last - 1, -1], ["q", last, 1], ["mlp", last, -1], ["logits", 0, -1]]
    pair = PromptPair(plan["clean"], plan["corrupted"], plan["answer"], plan["wrong"])
    cases = []
    for asked in (*([end] for end in ends), ends):
        lowest = min(lens.n_layers if kind == "logits" else layer for kind, layer, _ in asked)
        cases.append(([each for each in senders if each[0] < lowest], asked))
    theirs = ask(python_with("version('torch')"), "paths", tmp_path, {**plan, "paths": cases})
    for number, (of, asked) in enumerate(cases):
        receivers = [Receiver(kind, layer, head) for kind, layer, head in asked]
        named = " ".join(end.label for end in receivers)
        close(f"hooks: paths to {named}", paths_from(lens, pair, of, receivers), theirs[f"paths_{number}"], 2e-5)


def paths_from(lens: LensModel, pair: PromptPair, senders: list[list[int]], ends: list[Receiver]) -> Array:
    """The metric with each of some heads' paths to some receivers from the clean run."""
    of = [Sender("head", layer, head) for layer, head in senders]
    found = path_patch(lens, pair, receivers=ends, senders=of, controls=False)
    return found.raw + found.corrupted


def test_paths_to_queries_are_those_of_transformer_lens(model: tuple[LensModel, Path], tmp_path: Path) -> None:
    """From two heads to the queries of every head behind them; it gives no number for those before."""
    lens, folder = model
    plan = texts(lens, folder)
    plan["senders"] = [[lens.n_layers - 7, 0], [lens.n_layers - 3, 1]]
    theirs = ask(python_with(WITH_MODEL), "transformer_lens_paths", tmp_path, plan)["queries"]
    pair = PromptPair(plan["clean"], plan["corrupted"], plan["answer"], plan["wrong"])
    for row, sender in enumerate(plan["senders"]):
        behind = range(sender[0] + 1, lens.n_layers)
        ends = [Receiver("q", layer, head) for layer in behind for head in range(plan["heads"])]
        ours = [paths_from(lens, pair, [sender], [end])[0] for end in ends]
        close(f"TransformerLens: paths from {sender} to queries", ours, theirs[row, behind.start :].ravel(), 2e-5)


def test_sparse_probes_are_those_of_scikit_learn(model: tuple[LensModel, Path], tmp_path: Path) -> None:
    """On the MLP's hidden neurons, of which a few have to do with the label."""
    lens, _ = model
    rng = np.random.default_rng(2)
    ids = [int(one) for one in rng.integers(2, min(8000, lens.registry.decoder.vocab_size), 240)]
    with lens.capture([1], site="mlp_in") as held:
        lens.forward(ids)
    seen = np.array(held[1, "mlp_in"])[0].astype(np.float64)
    x, n = np.maximum(seen @ rng.normal(size=(seen.shape[1], 400)), 0.0), 180
    noise = rng.normal(size=len(ids)) * 2
    labels = (x[:, [3, 50, 300]] / x[:, [3, 50, 300]].std(axis=0)).sum(axis=1) + noise
    ones = (labels > np.median(labels)).astype(np.int64)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "labels.npy", ones)
    theirs = ask(python_with(WITH_LEARN), "sparse", tmp_path, {"fitted": n, "l2": L2, "features": [1, 5, 32]})
    for k in (1, 5, 32):
        ours = sparse_probe(x[:n], ones[:n], k, permutations=1)
        assert list(ours.features) == theirs[f"chosen_{k}"].tolist()
        scores = x[n:][:, list(ours.features)] @ np.array(ours.weights) + ours.bias
        close(f"scikit-learn: scores of {k} features", scores, theirs[f"scores_{k}"], 1e-6)
        close(f"scikit-learn: AUC of {k}", auc_of(scores[:, None], ones[n:, None]), theirs[f"auc_{k}"], 1e-9)


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
