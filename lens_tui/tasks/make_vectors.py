"""Make steering vectors and probes from what a person typed or a file holds, and measure what steering does."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import mlx.core as mx
import numpy as np

from lens_tui.lens.measure.dose import curves_of, dose_response, known_of
from lens_tui.lens.measure.effects import LOSS_TEXTS
from lens_tui.lens.measure.search import Quantity, find_scale
from lens_tui.lens.probes.probe_texts import sparse_probe, train_probes
from lens_tui.lens.read.jacobian import jacobian_vector
from lens_tui.lens.vectors import METHODS, Method, Over, combine, contrast, mean_difference, without
from lens_tui.lens.vectors import from_token as make
from lens_tui.records import Intervention, LensError, SteeringVector
from lens_tui.records.corpus import LabelledTexts, read_labelled
from lens_tui.records.measures import DoseResponse, ScaleSearch
from lens_tui.records.steering_vector import RankedLayer

from .jacobian_lenses import lens_of

if TYPE_CHECKING:
    from lens_tui.lens.measure.dose import FeatureProbe, Question
    from lens_tui.lens.model import LensModel
    from lens_tui.records.probe import ProbeReport, SparseProbe
    from lens_tui.sae.base import SAE


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
    if positive and negative and (layer is None or method != "mean_difference"):
        raise LensError(
            f"{len(positive)} texts toward and {len(negative)} away are not pairs.",
            "Give as many of each, or take the mean difference at one layer.",
        )
    vector = mean_difference(lens, name, positive, negative, layer or 0, over=over, raw=raw)
    return RankedLayer(vector, vector.norm)


def from_token(lens: LensModel, token: str, layer: int, kind: str = "unembedding", name: str = "") -> SteeringVector:
    """The direction of a token, written as its text (blank and all) or ``id:17``: :func:`lens_tui.from_token`.

    ``jacobian`` is its row of the unembedding through the model's Jacobian lens: :func:`lens_tui.jacobian_vector`.
    """
    kinds: dict[str, Any] = {"unembedding": "unembedding", "embedding": "embedding", "jacobian": "jacobian"}
    if kind not in kinds:
        raise LensError(f"There is no kind {kind!r} of token vector.", f"Use one of {', '.join(kinds)}.")
    wanted: str | int = token
    if token.startswith("id:"):
        if not re.fullmatch(r"[0-9]{1,18}", token[3:]):
            raise LensError(f"The token {token!r} cannot be read.", "Write id: and a number, such as id:17.")
        wanted = int(token[3:])
    if kind == "jacobian":
        return jacobian_vector(lens, lens_of(lens.info), wanted, layer, name=name)
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
    terms = [(factor, replace(vector, model=lens.info.name)) for factor, vector in terms]
    if less:
        (_, first), *others = terms
        if not others:
            raise LensError("There is nothing to leave out.", "Name at least two vectors.")
        return without(name, first, *(vector for _, vector in others))
    return combine(name, terms, unit=unit)


ON_CPU, ON_GPU = 2, 6
"""Scales measured at once: a batch costs a GPU little more than one row, a CPU as much as its rows."""
N_TEXTS = 16
"""Texts of the loss where no number is given: they are most of the work."""
DoseProgress = Callable[[DoseResponse, int, int], None]


def blocks(scales: Sequence[float], size: int) -> list[list[float]]:
    """The scales in blocks, from 0 outwards, so that the middle of a curve is there first."""
    ordered = sorted({float(scale) for scale in scales}, key=lambda scale: (abs(scale), -scale))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def measure_dose(
    lens: LensModel,
    prompt: str,
    interventions: Sequence[Intervention],
    scales: Sequence[float],
    *,
    controls: int = 1,
    probe: FeatureProbe | None = None,
    max_tokens: int = 60,
    n_texts: int | None = None,
    raw: bool = False,
    seed: int = 0,
    questions: Sequence[Question] = (),
    progress: DoseProgress | None = None,
) -> DoseResponse:
    """As :func:`lens_tui.dose_response`, some scales at a time, the loss on the first ``n_texts`` of its 64 texts.

    ``progress(response so far, scales done, scales in all)`` is called after each block; what it
    raises ends the measuring. The random directions are the same in every block.
    Raises :class:`LensError` for positions that the loss cannot be measured at.
    """
    check_positions(interventions)
    found: DoseResponse | None = None
    on_cpu = lens.info.device.startswith("cpu")
    texts = LOSS_TEXTS[: n_texts or N_TEXTS]
    parts = blocks(scales, ON_CPU if on_cpu else ON_GPU)
    total = sum(map(len, parts))
    known = known_of(lens, interventions, texts)
    for part in parts or [[]]:
        more = dose_response(
            lens,
            prompt,
            interventions,
            part,
            texts=texts,
            controls=controls,
            probe=probe,
            raw=raw,
            seed=seed,
            known=known,
            questions=questions,
            max_tokens=max_tokens,
        )
        points = (*(found.points if found else ()), *more.points)
        found = replace(more, points=tuple(sorted(points, key=lambda point: point.scale)))
        found = replace(found, curves=curves_of(found))
        if progress is not None:
            progress(found, len(found.points), total)
    assert found is not None
    return found


def check_positions(interventions: Sequence[Intervention]) -> None:
    """Refuse positions that no token of the loss's texts can have: those texts have no prompt."""
    if any(record.positions.kind == "prompt" for record in interventions):
        raise LensError(
            "A loss is measured on texts that count as generated, which prompt-only steering does not touch.",
            "Choose other positions to measure.",
        )


def find(
    lens: LensModel,
    interventions: Sequence[Intervention],
    quantity: str = "delta_loss",
    target: float | None = None,
    *,
    questions: Sequence[Question] = (),
    raw: bool = False,
    progress: Callable[[dict[float, float]], None] | None = None,
) -> ScaleSearch:
    """As :func:`lens_tui.find_scale`, with ``quantity`` checked; ``raw`` is of the questions, other texts always are.

    Raises :class:`LensError` for positions that it cannot be measured at: a question has a prompt, the texts have none.
    """
    by_questions = quantity == "behaviour"
    if not by_questions:
        check_positions(interventions)
    known: dict[str, Any] = {name: name for name in get_args(Quantity)}
    if quantity not in known:
        raise LensError(f"There is no quantity {quantity!r} to search for.", f"Use one of {', '.join(known)}.")
    return find_scale(
        lens,
        *interventions,
        quantity=known[quantity],
        target=target,
        raw=raw or not by_questions,
        questions=questions,
        progress=progress,
    )


def probe_features(
    lens: LensModel,
    sae: SAE,
    texts: Sequence[Any],
    labels: Sequence[Any],
    k: int,
    *,
    over: str = "mean",
    **options: Any,
) -> SparseProbe:
    """A probe on the ``k`` features of an SAE that tell the texts' labels apart best.

    Args:
        lens: The model.
        sae: An SAE whose layer and site are known.
        texts: Texts or token ids, read as they are.
        labels: 0 and 1, one for each.
        k: How many features.
        over: ``"last"``: the features of a text's last token; ``"mean"``: their mean over all but special
            ones and the first.
        options: The others of :func:`lens_tui.sparse_probe`.

    Raises:
        LensError: For an SAE whose place is not known, and what ``sparse_probe`` refuses.
    """
    if sae.info.layer < 0 or not sae.info.site:
        raise LensError(f"The SAE {sae.info.name!r} does not say which layer it reads.", "Name it with @LAYER:SITE.")
    if over == "every":
        raise LensError("A sparse probe reads one row of features a text.", "Use 'last' or 'mean'.")
    rows = []
    for text in texts:
        ids = lens.rows([text])[0] if isinstance(text, str) else tuple(text)
        active = np.array(sae.encode(lens.residuals(ids, sae.info.layer, site=sae.info.site)).astype(mx.float32))
        rows.append(active[-1] if over == "last" else active[lens.tokens.content(ids)].mean(axis=0))
    return sparse_probe(np.stack(rows), labels, k, **options)


def labelled(positive: Sequence[str], negative: Sequence[str]) -> LabelledTexts:
    """Texts with label 1 and texts with label 0; where there are as many of each, first and first are a group."""
    pairs = len(positive) == len(negative)
    groups = tuple(str(at) for texts in (positive, negative) for at in range(len(texts))) if pairs else None
    return LabelledTexts((*positive, *negative), (1.0,) * len(positive) + (0.0,) * len(negative), groups)


def probes_of(
    lens: LensModel,
    name: str,
    positive: Sequence[str] = (),
    negative: Sequence[str] = (),
    *,
    path: str = "",
    kind: str = "logistic",
    layers: Sequence[int] | None = None,
    over: str = "last",
    raw: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> ProbeReport:
    """A probe at each layer: :func:`lens_tui.train_probes` on texts of two kinds, or on a file of labelled texts.

    Args:
        lens: The model.
        name: What the probes are called.
        positive: Texts of label 1.
        negative: Texts of label 0.
        path: A file of labelled texts, read in their place.
        kind: One of ``train_probes``.
        layers: Which; ``None``: all.
        over: What of a text is read.
        raw: Do not apply the chat template.
        progress: Counts layers.

    Raises:
        LensError: For a file that holds none, and what ``train_probes`` refuses.
    """
    given = read_labelled(path) if path else labelled(positive, negative)
    asked: dict[str, Any] = {"kind": kind, "layers": layers, "raw": raw, "groups": given.groups}
    asked["over"] = "every" if given.by_token else over
    return train_probes(lens, name, given.texts, given.labels, progress=progress, **asked)
