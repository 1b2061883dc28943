"""What an index is made of: its settings, the identity of what was indexed, and the activation bins."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError

FORMAT = 1

N_BINS = 40
"""Activation bins of half an octave each, the first and the last open-ended."""

LOWEST_LOG2 = -6
EDGES: NDArray[np.float32] = (np.float32(2.0) ** (LOWEST_LOG2 + np.arange(N_BINS + 1) // 2)).astype(np.float32)
EDGES[1::2] *= np.sqrt(np.float32(2.0))
EDGES.setflags(write=False)

N_OCTAVES = N_BINS // 2
"""Bins of the activation sample: an octave each."""

_SQRT2_MANTISSA = np.uint32(int(np.sqrt(np.float32(2.0)).view(np.uint32)) & 0x7FFFFF)

DEFINITIONS = {
    "active": "value > 0 in the SAE's own definition of its activations",
    "density": "active tokens / counted tokens; special tokens are in neither unless include_special",
    "sum": "exact to 2**-32 per value whatever the order; likewise sumsq",
    "histogram": f"{N_BINS} bins of half an octave from 2**{LOWEST_LOG2}; the first and last hold all beyond",
    "examples": "each document's strongest token, the strongest top_k documents; ties go to the earlier token",
    "sample": "per octave the sample_per_bin tokens of smallest hash(seed, document, offset, feature)",
}


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """How an index is built; all of it goes into the index's key.

    ``top_k`` examples a feature, each with ``before`` and ``after`` tokens of
    context; ``sample_per_bin`` random tokens a feature in every octave of its
    activation; at most ``max_active`` features a token are read (tokens with
    more are counted and reported: four times L0 is a good choice). BOS and
    other special tokens are left out unless ``include_special``. ``full`` keeps
    every activation, by token and by feature (10 to 16 bytes each in all).
    """

    top_k: int = 20
    before: int = 12
    after: int = 7
    sample_per_bin: int = 3
    max_active: int = 256
    include_special: bool = False
    full: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {
            "top_k": (self.top_k, 1, 10_000),
            "before": (self.before, 0, 4096),
            "after": (self.after, 0, 4096),
            "sample_per_bin": (self.sample_per_bin, 0, 1000),
            "max_active": (self.max_active, 1, 65_535),
            "seed": (self.seed, 0, 2**63 - 1),
        }
        for name, (value, low, high) in limits.items():
            if not low <= value <= high:
                raise LensError(f"The index setting {name} is {value}.", f"Give it a value from {low} to {high}.")

    @property
    def window(self) -> int:
        """Tokens in a stored context window, the peak included."""
        return self.before + 1 + self.after


@dataclass(frozen=True, slots=True)
class Identity:
    """What was indexed. The hashes name contents; empty means that nobody computed them."""

    model: str
    model_hash: str
    precision: str
    sae: str
    sae_hash: str
    layer: int
    site: str
    width: int
    d_model: int
    corpus: str
    corpus_hash: str
    context: int
    bos: bool


def index_key(identity: Identity, settings: IndexSettings) -> str:
    """16 hex digits: the same for the same model, SAE, corpus, settings and definitions, and for nothing else."""
    facts: dict[str, Any] = {
        "format": FORMAT,
        "definitions": DEFINITIONS,
        "identity": asdict(identity),
        "settings": asdict(settings),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def bin_of(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """The bin of each value (> 0), read off its exponent and mantissa, so that edges are exact."""
    bits = values.view(np.uint32)
    octave = (bits >> np.uint32(23)).astype(np.int64) - 127 - LOWEST_LOG2
    upper = (bits & np.uint32(0x7FFFFF)) >= _SQRT2_MANTISSA
    return np.clip(2 * octave + upper, 0, N_BINS - 1)
