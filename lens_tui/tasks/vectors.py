"""Make steering vectors from what a person typed or a file holds: what the screen and the verbs share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from lens_tui.records import LensError, SteeringVector
from lens_tui.records.vectors import RankedLayer

if TYPE_CHECKING:
    from lens_tui.lens.model import LensModel


def from_pairs(
    lens: LensModel,
    name: str,
    positive: Sequence[str],
    negative: Sequence[str],
    *,
    layer: int | None = None,
    method: str = "mean_difference",
    over: str = "all",
    raw: bool = True,
) -> tuple[RankedLayer, ...]:
    """Vectors of one layer, or of all, best layer first: :func:`lens_tui.contrast`.

    Sets of unequal size are not pairs: they have the mean difference at one layer, unranked.
    """
    from lens_tui.lens.vectors import METHODS, Method, Over, contrast

    methods: dict[str, Any] = dict(zip(METHODS, get_args(Method), strict=True))
    if method not in methods:
        raise LensError(f"There is no method {method!r} of making vectors.", f"Use one of {', '.join(METHODS)}.")
    ways: dict[str, Any] = {way: way for way in get_args(Over)}
    if over not in ways:
        raise LensError(f"Activations cannot be taken over {over!r}.", f"Use one of {', '.join(ways)}.")
    if len(positive) != len(negative):
        return (_unpaired(lens, name, positive, negative, layer, method, ways[over], raw),)
    found = contrast(lens, name, positive, negative, layers=layer, method=methods[method], over=ways[over], raw=raw)
    ranked = []
    for score in found.ranking:
        held = score.held_out
        apart = (held.auc, held.accuracy, held.pairs, held.d_prime) if held else (None,) * 4
        ranked.append(RankedLayer(found.at(score.layer), score.gap, score.relative, *apart))
    return tuple(ranked)


def _unpaired(
    lens: LensModel,
    name: str,
    positive: Sequence[str],
    negative: Sequence[str],
    layer: int | None,
    method: str,
    over: Literal["last", "all"],
    raw: bool,
) -> RankedLayer:
    from lens_tui.lens.vectors import mean_difference

    if positive and negative and (layer is None or method != "mean_difference"):
        raise LensError(
            f"{len(positive)} texts toward and {len(negative)} away are not pairs.",
            "Give as many of each, or take the mean difference at one layer.",
        )
    vector = mean_difference(lens, name, positive, negative, layer or 0, over=over, raw=raw)
    return RankedLayer(vector, vector.norm)


def from_token(lens: LensModel, token: str, layer: int, kind: str = "unembedding", name: str = "") -> SteeringVector:
    """The direction of a token, written as its text (blank and all) or ``id:17``: :func:`lens_tui.from_token`."""
    from lens_tui.lens.vectors import from_token as make

    kinds: dict[str, Any] = {"unembedding": "unembedding", "embedding": "embedding"}
    if kind not in kinds:
        raise LensError(f"There is no kind {kind!r} of token vector.", f"Use one of {', '.join(kinds)}.")
    wanted: str | int = token
    if token.startswith("id:"):
        if not re.fullmatch(r"[0-9]{1,18}", token[3:]):
            raise LensError(f"The token {token!r} cannot be read.", "Write id: and a number, such as id:17.")
        wanted = int(token[3:])
    return make(lens, wanted, layer, kind=kinds[kind], name=name)


def from_terms(
    lens: LensModel,
    name: str,
    terms: Sequence[tuple[float, SteeringVector]],
    *,
    less: bool = False,
    unit: bool = True,
) -> SteeringVector:
    """A weighted sum, each vector at length 1 or (``unit`` off) its own; or, ``less``, the first without the others.

    All are taken as this model's, whatever they call it: an SAE names the model that it was trained on.
    """
    from lens_tui.lens.vectors import combine, without

    terms = [(factor, replace(vector, model=lens.info.name)) for factor, vector in terms]
    if less:
        (_, first), *others = terms
        if not others:
            raise LensError("There is nothing to leave out.", "Name at least two vectors.")
        return without(name, first, *(vector for _, vector in others))
    return combine(name, terms, unit=unit)
