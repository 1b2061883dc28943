"""What the tests of shared models ask of a model, as plain numbers; run as a program, of a shared one in each process.

``python -m tests.lens.sharing.ask MODE ARCHITECTURE...`` prints one line of JSON, by architecture.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from lens_tui import LensModel
from lens_tui.lens.measure.effects import delta_loss
from lens_tui.lens.read.attention import attention_patterns
from lens_tui.records import AblateHeads, Add, Arm, ClampFeature, LensError, Sampling
from lens_tui.sae.load_sae import load_sae
from tests.folders import sae_folder
from tests.lens import tiny

LONG = tuple((7 * at + 3) % tiny.VOCAB for at in range(23))
TEXTS = [list(tiny.IDS), list(LONG), [5, 6, 7]]


def listed(array: Any) -> Any:
    """An array of any library as nested lists."""
    return np.array(array, dtype=np.float64).tolist()


def model_of(architecture: str, shard: str | None = None) -> LensModel:
    """A tiny random model, the same in every process."""
    built = tiny.llama(bits=4) if architecture == "llama4bit" else getattr(tiny, architecture)()
    built.set_dtype(mx.float32)  # in 16 bits sums in another order are other numbers
    return LensModel.from_model(built, shard=shard)


def answers(lens: LensModel) -> dict[str, Any]:
    """Steering, captures, comparison, batches, losses and measures, of the residual stream and of features."""
    every = range(lens.n_layers)
    early, late = tiny.add(3.0, layer=1), replace(tiny.add(-2.0, seed=4, layer=every[-1]), id="late")
    found: dict[str, Any] = {"info": [lens.info.n_parameters, lens.info.nbytes, lens.info.n_layers, lens.d_model]}
    found["logits"] = listed(lens.forward(list(tiny.IDS)))
    with lens.capture(every) as captured, lens.intervene(early, late):
        lens.forward(list(LONG))
    found["captured"] = [listed(captured[layer]) for layer in every]
    found["residuals"] = listed(lens.residuals(TEXTS, 2))
    found["before"] = listed(lens.residuals(list(LONG), 2, site="resid_pre"))
    found["echo"] = [[echo.moved, echo.relative, echo.along or 0.0] for echo in lens.echo(list(LONG), early)]
    found["losses"] = list(lens.losses(TEXTS))
    measured = delta_loss(lens, early, texts=TEXTS)
    found["delta loss"] = [measured.base, measured.steered]
    found.update(runs(lens, early, late))
    return found


def runs(lens: LensModel, early: Add, late: Add) -> dict[str, Any]:
    """What is generated: compared arms with their KL, a clamped feature, a batch, and a seed that nobody gave."""
    sampling = Sampling(max_tokens=6, temp=0.8, seed=3)
    with tempfile.TemporaryDirectory() as folder:
        lens.attach_sae("s", load_sae(sae_folder(Path(folder) / "sae", d_model=64)))
        clamp = ClampFeature(id="clamp", layer=1, sae="s", feature=7, value=9.0)
        arms = [Arm("plain"), Arm("up", (early,)), Arm("down", (late,)), Arm("feature", (clamp,))]
        compared = tokens_of(lens.compare(list(tiny.IDS), arms, sampling))
    batch = tokens_of(lens.stream_batch(TEXTS, sampling=replace(sampling, temp=0.0), interventions=[early]))
    seedless = tokens_of(lens.stream(list(tiny.IDS), temp=1.0, seed=None, max_tokens=6))
    return {"compared": compared, "batch": batch, "seedless": seedless}


def tokens_of(run: Any) -> list[list[float]]:
    """Arm, id and divergence of each token of a run, arm by arm."""
    tokens = [event for event in run if hasattr(event, "token_id")]
    return sorted([token.arm, token.index, token.token_id, token.kl or 0.0, token.logprob] for token in tokens)


def slices(lens: LensModel) -> dict[str, Any]:
    """What is a slice in each process that shares a model by tensor: captured, and steered at."""
    sites = ["attn_q", "attn_k", "attn_v", "attn_z", "attn_out", "mlp_in", "mlp_out"]
    found: dict[str, Any] = {"sites": list(lens.sites(1))}
    with lens.capture([1, 2], sites) as captured:
        lens.forward(list(LONG))
    found["inside"] = [listed(captured[layer, site]) for layer in (1, 2) for site in sites]
    with lens.intervene(AblateHeads(id="heads", layer=1, heads=(0, 3))), lens.capture(-1) as after:
        lens.forward(list(LONG))
    found["without heads"] = listed(after[-1])
    with lens.steer(2, tiny.unit(), 2.5, site="attn_z"), lens.steer(1, tiny.unit(3), 2.0, site="mlp_in"):
        found["steered inside"] = listed(lens.residuals(list(LONG), -1, steered=True))
    return found


def refused(act: Callable[[], Any]) -> str:
    """The sentence with which something is refused; empty if it is not."""
    try:
        act()
    except LensError as error:
        return str(error)
    return ""


def all_of(architecture: str, mode: str | None = None) -> dict[str, Any]:
    """All answers of one model; of one that is refused the sentence."""
    try:
        lens = model_of(architecture, mode)
    except LensError as error:
        return {"refused": str(error)}
    found = answers(lens)
    if mode != "pipeline":
        found |= slices(lens)
    if mode:
        found["site"] = refused(lambda: lens.residuals(list(LONG), 2, site="attn_z"))
        found["patterns"] = refused(lambda: attention_patterns(lens, list(LONG), 1))
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps({name: all_of(name, sys.argv[1]) for name in sys.argv[2:]}))
