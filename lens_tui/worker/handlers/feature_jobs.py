"""Read a text: with an SAE the features of each token, one feature over it and its page; with the logit lens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx
import numpy as np

from lens_tui.records import FloatArray, LensError
from lens_tui.records.labels import Labels
from lens_tui.records.paths import expanded
from lens_tui.records.sanitise import one_line
from lens_tui.records.store import Store
from lens_tui.sae.index.questions import co_active, decoder_neighbours
from lens_tui.tasks.feature_page import (
    contrast_texts,
    export_list,
    feature_facts,
    feature_vector,
    found_features,
    read_texts,
    search_features,
)
from lens_tui.tasks.knowledge import dense_features, index_of
from lens_tui.tasks.run_features import counted

from .. import events as ev
from .. import jobs
from ..events import NeighboursRead
from ..jobs import ReadNeighbours
from ..thread import Control
from . import Context, Reading
from .load_jobs import open_sae
from .vector_jobs import stoppable, vector_event

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lens_tui.sae.index.questions import Measure, Over
    from lens_tui.sae.load_sae import SAE


_BLOCK = 512  # tokens between two looks at the stop flag


def encode(control: Control, job: jobs.Encode, context: Context) -> Iterator[ev.Event]:
    """The strongest features of every token, L0 and FVU over the tokens that count, unsteered."""
    model = context.need_model()
    sae = open_sae(job.sae, context)
    ids = model.tokens.check(job.token_ids) if job.token_ids else model.tokens.encode(job.text)
    context.reading = Reading(ids)
    control.progress("tokens", 0, len(ids), "tokens")
    residual = _residual(control, context, sae)
    specials, kept = model.tokens.special_ids(), counted(model, sae, ids)
    special = tuple(token in specials for token in ids)
    k = min(job.top_k, sae.d_sae)
    places, values = [], []
    for start in range(0, len(ids), _BLOCK):
        some_ids, some_values = sae.top_k(residual[start : start + _BLOCK], k)
        places.append(np.array(some_ids, dtype=np.int32))
        values.append(np.array(some_values, dtype=np.float32))
        control.progress("tokens", min(start + _BLOCK, len(ids)), len(ids), "tokens")
    found, strengths = np.concatenate(places), np.concatenate(values)
    found[~kept], strengths[~kept] = -1, 0.0
    of_text = kept if sae.info.bos else kept & model.tokens.content(ids)
    l0, fvu = _quality(control, context, sae, of_text)
    tokens = tuple(model.tokens.display(token) for token in ids)
    dense = tuple(dense_features(index_of(sae.info)).items())
    yield ev.Encoded(control.id, sae.info.id, ids, tokens, special, found, strengths, l0, fvu, dense)


def read_feature(control: Control, job: jobs.ReadFeature, context: Context) -> Iterator[ev.Event]:
    """A feature over the text last encoded, and everything known of it."""
    sae = open_sae(job.sae, context)
    here = _over_text(control, sae, job.feature, context)
    if here is not None:
        yield ev.FeatureActivations(control.id, sae.info.id, job.feature, here)
    control.check()
    facts = feature_facts(
        context.need_model(), sae, job.feature, index_of(sae.info), tokens=job.top_tokens, neighbours=None, lenient=True
    )
    yield ev.FeaturePage(control.id, sae.info.id, job.feature, facts, feature_vector(sae, facts, here))


def from_feature(control: Control, job: jobs.VectorFromFeature, context: Context) -> Iterator[ev.Event]:
    """A feature's decoder direction."""
    sae = open_sae(job.sae, context)
    here = _over_text(control, sae, job.feature, context)
    facts = feature_facts(
        context.need_model(), sae, job.feature, index_of(sae.info), examples=0, neighbours=None, lenient=True
    )
    yield vector_event(control, feature_vector(sae, facts, here), context)


def _over_text(control: Control, sae: SAE, feature: int, context: Context) -> FloatArray | None:
    """A feature's activation on each token of the text last encoded, ``None`` if there is no such text."""
    if context.reading is None or context.model is None:
        # The id is checked all the same: there is no feature -1 whatever was read.
        sae.directions([feature])
        return None
    residual = _residual(control, context, sae)
    values: FloatArray = np.array(sae.encode_features(residual, [feature])[:, 0], dtype=np.float32)
    kept = counted(context.model, sae, context.reading.token_ids)
    return np.where(kept, values, np.float32(0.0)).astype(np.float32)


def _residual(control: Control, context: Context, sae: SAE) -> mx.array:
    """The activations of the text at the SAE's place, computed once for each place; it may stop between two pieces."""
    info = sae.info
    if info.layer < 0 or not info.site:
        raise LensError(
            f"It is not known which layer and site the SAE {info.name} reads.", "Load it with its layer and site."
        )
    return _activations(control, context, (info.layer, info.site))


def _activations(control: Control, context: Context, place: tuple[int, str]) -> mx.array:
    """The activations of the text at a layer and site."""
    reading = context.reading
    assert reading is not None
    if place not in reading.residuals:
        with stoppable(context, control) as model:
            reading.residuals[place] = model.residuals(
                reading.token_ids,
                place[0],
                site=place[1],
                progress=lambda done, total: control.progress("read", done, total, "tokens"),
            )
    found: mx.array = reading.residuals[place]
    return found


def _quality(control: Control, context: Context, sae: SAE, of_text: Any) -> tuple[float, float]:
    """Mean L0 and FVU over the tokens that count, of a transcoder against what it should give; NaN where unknown."""
    rows = np.flatnonzero(of_text)
    if not len(rows):
        return float("nan"), float("nan")
    which = mx.array(rows.astype(np.int32))
    goal = None if sae.info.target is None else _activations(control, context, sae.info.target)
    target = goal[which] if goal is not None and goal.shape[-1] == sae.d_out else None
    made = sae.reconstruct(_residual(control, context, sae)[which], target)
    return float(mx.mean(made.l0)), float("nan") if made.fvu is None else made.fvu


def set_label(control: Control, job: jobs.SetLabel, context: Context) -> Iterator[ev.Event]:
    """Write your label of a feature down."""
    info = open_sae(job.sae, context).info
    if not 0 <= job.feature < info.width:
        raise LensError(f"There is no feature {job.feature}.", f"{info.name} has features 0 to {info.width - 1}.")
    with Store() as store:
        label = Labels(store).set(info.id, job.feature, job.text)
    yield ev.LabelSet(control.id, info.id, job.feature, one_line(label.text, 200) if label else "")


def find_features(control: Control, job: jobs.FindFeatures, context: Context) -> Iterator[ev.Event]:
    """Features whose labels hold the words, then those that promote one of them."""
    info = open_sae(job.sae, context).info
    search = search_features(job.words, info, context.need_model(), index_of(info), k=job.top_k)
    found = found_features(search, job.top_k)
    yield ev.FeaturesFound(control.id, info.id, one_line(job.words, 80), found, search.promoting is not None)


def contrast(control: Control, job: jobs.ContrastTexts, context: Context) -> Iterator[ev.Event]:
    """Text by text, looking at the stop flag between two; the same call as the verb's."""
    sae = open_sae(job.sae, context)
    a = read_texts(expanded(job.path_a)) if job.path_a else list(job.a)
    b = read_texts(expanded(job.path_b)) if job.path_b else list(job.b)
    control.progress("texts", 0, len(a) + len(b), "texts")
    found = contrast_texts(
        context.need_model(),
        sae,
        a,
        b,
        measure=cast("Measure", job.measure),
        over=cast("Over", job.over),
        both_sides=job.both_sides,
        k=job.top_k,
        seed=job.seed,
        progress=lambda done, total: control.progress("texts", done, total, "texts"),
    )
    rows = tuple(replace(row, label=one_line(row.label, 200) if row.label else None) for row in found)
    yield ev.Contrasted(control.id, sae.info.id, rows, len(a), len(b))


def export(control: Control, job: jobs.ExportFeatures, context: Context) -> Iterator[ev.Event]:
    """A list of features as a file."""
    info = open_sae(job.sae, context).info
    written = export_list(info, job.name, job.features, expanded(job.path))
    yield ev.FeaturesExported(control.id, one_line(str(written), 300), len(job.features))


def read_neighbours(control: Control, job: ReadNeighbours, context: Context) -> Iterator[ev.Event]:
    """One pass over the decoder; of a wide one a block at a time, looking at the stop flag between two."""
    sae = open_sae(job.sae, context)
    sae.directions([job.feature])  # checks the id before the long way

    def directions(ids: NDArray[Any]) -> Any:
        control.progress("decoder", int(ids[0]), sae.d_sae, "features")
        return sae.directions(ids)

    near = decoder_neighbours(directions, sae.d_sae, job.feature, k=job.top_k)
    index = index_of(sae.info)
    together = None
    if index is not None and index.knows_co_active and job.feature < index.width:
        together = tuple((row.feature, row.jaccard) for row in co_active(index, job.feature, k=job.top_k))
    yield NeighboursRead(control.id, sae.info.id, job.feature, near, together)
