"""Activation patching of the same small llama here and in TransformerLens, cell by cell, each in a Python of its own.

Before a time is taken every cell is compared: the metric under each patch, and the estimates by one backward pass,
within 1e-3 of the largest. Neither side patches controls.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lens_tui import LensModel, PromptPair, patch

from .machine import Options
from .report import Row, absent, of_speeds, of_times
from .serving import Served, first_that_has
from .torch_peers import MODEL_HELP, OFFLINE, WITH_MODEL, same_within, torch_device, write_model
from .turns import medians, timed

TOKENS, CHANGED, ANSWER, WRONG = 12, 5, 7, 30


def rows(options: Options) -> Iterator[Row]:
    """Patches a second of both, if there is a Python that has the peer."""
    python = first_that_has(options.peers, WITH_MODEL)
    if python is None:
        yield absent("TransformerLens: activation and attribution patching", MODEL_HELP)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield from _against(python, Path(folder), options)


def _against(python: str, folder: Path, options: Options) -> Iterator[Row]:
    lens = LensModel.from_model(write_model(folder), name="small llama")
    clean = np.random.default_rng(0).integers(2, 8000, TOKENS).tolist()
    corrupted = [*clean[:CHANGED], clean[CHANGED] + 1, *clean[CHANGED + 1 :]]
    plan = {"clean": clean, "corrupted": corrupted, "answer": ANSWER, "wrong": WRONG, "device": torch_device()}
    (folder / "plan.json").write_text(json.dumps(plan))
    pair = PromptPair(clean, corrupted, ANSWER, WRONG)
    ours: dict[str, Any] = {
        "positions": lambda: patch(lens, pair, controls=False),
        "heads": lambda: patch(lens, pair, by="head", controls=False),
        "attribution": lambda: patch(lens, pair, by="head-position", method="attribution"),
    }
    with Served(python, "benchmarks.torch_child", "patching", str(folder), also=OFFLINE) as peer:
        name = f"TransformerLens {peer.hello['transformer-lens']}, torch {peer.hello['torch']}"
        for task in ("positions", "heads"):
            same_within(f"{task} patched", ours[task]().values, folder / f"{task}.npy")
        estimate = ours["attribution"]()
        same_within("estimates", estimate.values - estimate.corrupted, folder / "estimates.npy")
        for task, what in (("positions", "by layer and position"), ("heads", "by head")):
            found = medians({"ours": timed(ours[task]), name: peer.contender(task)}, options.repeats(5))
            count = float(ours[task]().values.size)
            rates = [count / found[each] for each in ("ours", name)]
            yield of_speeds(f"small llama, {TOKENS} tokens: patches {what}", *rates, name, unit="patches/s")
        found = medians({"ours": timed(ours["attribution"]), name: peer.contender("attribution")}, options.repeats(5))
        yield of_times(f"small llama, {TOKENS} tokens: every head estimated", found["ours"], found[name], name)
