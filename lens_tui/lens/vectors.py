"""Make steering vectors: from texts, at random, from numbers; and the residual norm that a scale is read against."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import mlx.core as mx
import numpy as np

from lens_tui.records import FloatArray, LensError, Origin, SteeringVector

from .checks import as_numpy, check_vector

if TYPE_CHECKING:
    from .model import LensModel
    from .tokens import Prompt

Over = Literal["last", "all"]

# Plain sentences for the norm of a residual where nothing else is given.
SAMPLE_TEXTS = (
    "The town lies on the river, and most of its houses were built when the bridge was opened.",
    "She opened the door, looked at the letter on the table and sat down without a word.",
    "In the second experiment the samples were heated slowly and weighed again after an hour.",
    "The committee will meet on Monday to decide whether the plan can be paid for.",
)


def mean_difference(
    lens: LensModel,
    name: str,
    positive: Sequence[Prompt],
    negative: Sequence[Prompt],
    layer: int,
    *,
    site: str = "resid_post",
    over: Over = "all",
    raw: bool = True,
) -> SteeringVector:
    """Mean activation over ``positive`` minus mean over ``negative``, as a unit vector.

    Each text counts once: the activation at its last token (``over="last"``), or
    the mean over all its tokens but special ones. Difference of means is the
    method of ActAdd (Turner et al. 2023, 2308.10248) and CAA (Panickssery et al.
    2023, 2312.06681). ``norm`` of the result is the length of the difference:
    steering by it moves one mean onto the other.
    """
    if not positive or not negative:
        raise LensError("A mean difference needs texts on both sides.", "Give at least one text to each.")
    where = lens.registry.decoder.index(layer)
    means = [_mean(lens, texts, where, site, over, raw) for texts in (positive, negative)]
    facts: dict[str, Any] = {
        "method": "mean_difference",
        "over": over,
        "positive": [_plain(text) for text in positive],
        "negative": [_plain(text) for text in negative],
    }
    facts["sha256"] = hashlib.sha256(repr((facts["positive"], facts["negative"])).encode()).hexdigest()
    origin = Origin("prompts", facts)
    return SteeringVector.of(name, means[0] - means[1], where, site=site, model=lens.info.name, origin=origin)


def random_unit(lens: LensModel, name: str, layer: int, *, seed: int = 0, site: str = "resid_post") -> SteeringVector:
    """A direction drawn uniformly from the sphere: the control that an effect is held against."""
    where = lens.registry.decoder.index(layer)
    width = lens.registry.sites.point(where, site).width
    values = np.random.default_rng(seed).normal(size=width)
    origin = Origin("random", {"seed": seed})
    return SteeringVector.of(name, values, where, site=site, model=lens.info.name, origin=origin)


def from_array(lens: LensModel, name: str, values: Any, layer: int, *, site: str = "resid_post") -> SteeringVector:
    """Numbers of shape ``(d_model,)``, checked and made unit; their length is kept as ``norm``."""
    where = lens.registry.decoder.index(layer)
    array = as_numpy(values)
    check_vector(array, lens.registry.sites.point(where, site).width, f"The vector {name!r}")
    return SteeringVector.of(name, array, where, site=site, model=lens.info.name)


def residual_norm(
    lens: LensModel, layer: int, *, site: str = "resid_post", texts: Sequence[Prompt] = SAMPLE_TEXTS
) -> float:
    """The median of ``||h||`` over the texts' tokens, special ones left out: what scales are compared with."""
    norms = []
    for text in texts:
        h, keep = _activations(lens, text, layer, site, raw=True)
        norms.append(np.linalg.norm(h[keep], axis=-1))
    return float(np.median(np.concatenate(norms)))


def _mean(lens: LensModel, texts: Sequence[Prompt], layer: int, site: str, over: Over, raw: bool) -> FloatArray:
    rows = []
    for text in texts:
        h, keep = _activations(lens, text, layer, site, raw=raw)
        rows.append(h[-1] if over == "last" else h[keep].mean(axis=0))
    return np.asarray(np.mean(rows, axis=0, dtype=np.float64), dtype=np.float32)


def _activations(lens: LensModel, text: Prompt, layer: int, site: str, *, raw: bool) -> tuple[FloatArray, Any]:
    """Unsteered activations (tokens, width) of one text in float32, and which tokens are not special."""
    ids = lens.tokens.prompt(text, raw=raw).ids
    h = np.array(lens.residuals(ids, layer, site=site).astype(mx.float32))
    special = lens.tokens.special_ids()
    keep = np.array([token not in special for token in ids])
    return h, keep if keep.any() else np.ones(len(ids), dtype=bool)


def _plain(prompt: Prompt) -> Any:
    """A prompt as JSON data."""
    if isinstance(prompt, str):
        return prompt
    return [dict(item) if isinstance(item, Mapping) else int(item) for item in prompt]
