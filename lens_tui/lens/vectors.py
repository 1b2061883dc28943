"""Make steering vectors: from texts, at random, from numbers; and the residual norm that a scale is read against."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import mlx.core as mx
import numpy as np

from lens_tui.records import FloatArray, LensError, Origin, SteeringVector
from lens_tui.records.sanitise import one_line
from lens_tui.records.vector_formats import check_fit, load_vectors

from .checks import as_numpy, check_vector
from .unembed import Convention, Unembedding, find_unembedding
from .vectors_contrast import Over, plain

if TYPE_CHECKING:
    from .model import LensModel
    from .tokens import Prompt

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
        "positive": [plain(text) for text in positive],
        "negative": [plain(text) for text in negative],
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


def from_array(
    lens: LensModel,
    name: str,
    values: Any,
    layer: int,
    *,
    site: str = "resid_post",
    origin: Origin | None = None,
    max_activation: float | None = None,
) -> SteeringVector:
    """Numbers of shape ``(d_model,)``, checked and made unit; their length is kept as ``norm``.

    For a row of an SAE's decoder give ``Origin("feature", {"sae": ..., "feature": ...})`` and the
    largest activation seen.
    """
    where = lens.registry.decoder.index(layer)
    array = as_numpy(values)
    check_vector(array, lens.registry.sites.point(where, site).width, f"The vector {name!r}")
    return SteeringVector.of(
        name, array, where, site=site, model=lens.info.name, origin=origin, max_activation=max_activation
    )


def from_token(
    lens: LensModel,
    token: str | int,
    layer: int,
    *,
    name: str = "",
    kind: Literal["unembedding", "embedding"] = "unembedding",
    convention: Convention = "norm",
    site: str = "resid_post",
) -> SteeringVector:
    """The direction of one token: its row of the unembedding, or what it puts into the residual stream.

    ``unembedding`` rows are multiplied by the final norm's gain unless ``convention`` is
    ``"raw"``: adding the direction to the last residual then raises the token's own logit most for its length,
    up to the norm's division. ``embedding`` is the token's residual before the first block, with the
    model's embedding scale (and its first position's embedding, where it has such). ``token`` is an id,
    or a text that is one token. Raises :class:`LensError` for any other text.
    """
    where = lens.registry.decoder.index(layer)
    at = _token_id(lens, token)
    if kind == "unembedding":
        values = _unembedding_row(find_unembedding(lens.registry.decoder), at, convention)
    elif kind == "embedding":
        values = np.array(lens.residuals([at], 0, site="resid_pre").astype(mx.float32))[0]
    else:
        raise LensError(f"There is no kind {kind!r} of token vector.", "Use 'unembedding' or 'embedding'.")
    shown = lens.tokens.display(at)
    facts = {"token": at, "text": shown, "kind": kind, "convention": convention}
    return from_array(lens, name or f"token {shown}", values, where, site=site, origin=Origin("token", facts))


def load_for(
    lens: LensModel,
    path: Path | str,
    *,
    layer: int | None = None,
    name: str | None = None,
    position: int | None = None,
) -> tuple[SteeringVector, ...]:
    """The vectors of a file of any known format, checked against this model: width, layers, and the model they name.

    ``layer``, ``name`` and ``position`` as in ``records.vector_formats.load_vectors``. A GGUF or CAA file only hints at
    its model, with no name that could be compared; the hint is in ``origin.facts["model_hint"]``. Raises
    :class:`LensError` for a vector of another width or model, and for a layer that this model does not have.
    """
    at = None if layer is None else lens.registry.decoder.index(layer)
    found = load_vectors(path, layer=at, name=name, position=position, n_layers=lens.n_layers)
    for vector in found:
        where = lens.registry.decoder.index(vector.layer)
        check_fit(vector, model=lens.info.name)
        check_vector(
            vector.direction, lens.registry.sites.point(where, vector.site).width, f"The vector {vector.name!r}"
        )
    return found


def residual_norm(
    lens: LensModel, layer: int, *, site: str = "resid_post", texts: Sequence[Prompt] | None = None
) -> float:
    """The median of ``||h||`` over the texts' tokens, special ones left out: what scales are compared with.

    Texts are ``SAMPLE_TEXTS`` by default.
    """
    texts = SAMPLE_TEXTS if texts is None else texts
    if not texts:
        raise LensError("A residual norm needs texts.", "Give at least one.")
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


def _token_id(lens: LensModel, token: str | int) -> int:
    if isinstance(token, Integral):
        return lens.tokens.check([int(token)])[0]
    special = lens.tokens.special_ids()
    ids = [item for item in lens.tokens.encode(str(token)) if item not in special]
    if len(ids) != 1:
        pieces = " ".join(lens.tokens.display(item) for item in ids)
        raise LensError(
            f"{one_line(str(token), 40)!r} is {len(ids)} tokens ({one_line(pieces, 80)}).", "Give one token."
        )
    return ids[0]


def _unembedding_row(unembedding: Unembedding, token: int, convention: Convention) -> FloatArray:
    start = 0
    for rows in unembedding.rows():
        if token < start + rows.shape[0]:
            row: FloatArray = np.array(rows[token - start])
            return row * unembedding.gain if convention == "norm" else row
        start += rows.shape[0]
    raise LensError(f"The unembedding has no row {token}.")
