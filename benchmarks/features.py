"""The strongest features of token blocks, against the bare matrix product and ``mx.topk`` on the same arrays.

Weights are random; thresholds let about 100 latents fire. On disk the encoder is read from a file for every block;
the file is in the system's cache, so that reading, not a drive, is measured.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np

from lens_tui import SAE
from lens_tui.records import SAEInfo
from lens_tui.sae.base import build
from lens_tui.sae.files import Definition, Weights, in_memory, read_safetensors
from lens_tui.sae.matrices import Residence

from .generation import on_device
from .machine import Options
from .report import Row, at_most, of_times
from .turns import medians

RESIDENCES: tuple[Residence, ...] = ("memory", "disk", "8bit")
D, K, TOKENS = 1152, 64, 256


def rows(options: Options) -> Iterator[Row]:
    """One block of latents, and where there is time four."""
    for width in (16384,) if options.quick else (16384, 65536):
        with tempfile.TemporaryDirectory() as folder:
            yield from of_width(width, Path(folder), options)


def of_width(width: int, folder: Path, options: Options) -> Iterator[Row]:
    """Each place where an encoder may be kept, against the bare product."""
    weights = weights_in(folder, width)
    x = mx.array(np.random.default_rng(1).standard_normal((TOKENS, D)).astype(np.float32))
    w = weights.w_enc.read()
    works = {"bare": on_device(lambda: mx.eval(mx.topk(x @ w, K, axis=-1)))}
    works |= {each: on_device(partial(sae_of(weights, each).top_k, x, K)) for each in RESIDENCES}
    found = medians(works, options.repeats(7), unmeasured=2)
    for each in RESIDENCES:
        bound = at_most(1.2) if each != "8bit" else None
        what = f"{K} strongest features, {D} x {width}, {TOKENS} tokens, encoder {SAID[each]}"
        yield of_times(what, found[each], found["bare"], "bare product + mx.topk", bound)


SAID = {"memory": "in memory", "disk": "on disk", "8bit": "in 8 bits"}


def weights_in(folder: Path, width: int) -> Weights:
    """Random weights, the encoder in a file; the decoder is the encoder again, for it is not used here."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((D, width), dtype=np.float32) / np.float32(D**0.5)
    mx.save_safetensors(str(folder / "w.safetensors"), {"w_enc": mx.array(w)})
    stored = read_safetensors(folder / "w.safetensors")["w_enc"]
    # Of normal pre-activations about 100 in each row are above this.
    threshold = np.full(width, statistics.NormalDist().inv_cdf(1 - 100 / width), np.float32)
    vectors = {"b_enc": in_memory("b_enc", np.zeros(width)), "threshold": in_memory("threshold", threshold)}
    return Weights(w_enc=stored, w_dec=stored.T, b_dec=in_memory("b_dec", np.zeros(D)), vectors=vectors)


def sae_of(weights: Weights, residence: Residence) -> SAE:
    """A JumpReLU SAE with its encoder kept there."""
    info = SAEInfo("bench", "bench", "", "jumprelu", "resid_post", 0, 0, 0, "")
    return build(Definition(activation="jumprelu"), weights, info, residence=residence)
