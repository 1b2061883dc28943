"""Read a text: with an SAE the features of each token, one feature over it and its page; what every layer predicts.

With the logit lens there are also what adds to a logit and where heads look. And the features of what a run writes are
read here, while it is written and afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx
import numpy as np

from lens_tui.lens.read.attention import attention_patterns
from lens_tui.lens.read.logits import attribute_logits, logit_lens
from lens_tui.records import FloatArray, LensError, Token
from lens_tui.records.chat import as_prompt
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
from lens_tui.tasks.jacobian_lenses import lens_of
from lens_tui.tasks.knowledge import dense_features, index_of
from lens_tui.tasks.run_features import (
    TOP,
    counted,
    feature_names,
    feature_values,
    place_of,
    silenced,
    top_features,
    watching,
    written_activations,
)

from .. import events as ev
from .. import jobs
from ..events import NeighboursRead
from ..jobs import ReadNeighbours
from ..thread import Control
from . import Context, Reading, WrittenActivations
from .load_jobs import open_sae
from .vector_jobs import stoppable, vector_event

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lens_tui.lens.model import LensModel
    from lens_tui.records import Intervention
    from lens_tui.sae.index.questions import Measure, Over
    from lens_tui.sae.load_sae import SAE
    from lens_tui.tasks.run_features import Watch


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


class FeatureEvents:
    """Says which features the tokens of a run have, and once of each feature what it is called."""

    def __init__(self, job: int, model: LensModel, sae: SAE) -> None:
        self._job, self._model, self._sae = job, model, sae
        self._named: set[int] = set()
        self._dense = tuple(dense_features(index_of(sae.info)).items())

    def of_tokens(self, arm: int, start: int, found: Any, values: Any) -> ev.ArmFeatures:
        """The event of some tokens of an arm."""
        fresh = [int(f) for f in np.unique(found) if f >= 0 and int(f) not in self._named]
        self._named.update(fresh)
        names = feature_names(self._model, self._sae.info, fresh)
        safe = tuple((feature, one_line(name, 200), label) for feature, name, label in names)
        return ev.ArmFeatures(self._job, self._sae.info.id, arm, start, found, values, safe, self._dense)


class WrittenReader:
    """The features of a run's tokens while it writes: what its watch has read, arm by arm."""

    def __init__(self, job: int, model: LensModel, sae: SAE, watch: Watch[Any]) -> None:
        self._job, self._model, self._sae, self._watch = job, model, sae, watch
        self._events = FeatureEvents(job, model, sae)
        self._texts: list[list[int]] = []

    def add(self, token: Token) -> None:
        """An arm's next token."""
        while len(self._texts) <= token.arm:
            self._texts.append([])
        self._texts[token.arm].append(token.token_id)

    def ready(self) -> Iterator[ev.ArmFeatures]:
        """The events of what has been read since the last call."""
        return self._of_batches(self._watch.take())

    def rest(self, context: Context) -> Iterator[ev.ArmFeatures]:
        """Those of what is left; the run's own activations are kept for questions about one feature."""
        yield from self._of_batches(self._watch.rest())
        found = {arm: self._watch.activations(arm, len(text)) for arm, text in enumerate(self._texts) if text}
        context.written = WrittenActivations(self._job, place_of(self._sae.info), found)

    def _of_batches(self, batches: Sequence[tuple[int, Any]]) -> Iterator[ev.ArmFeatures]:
        for start, (ids, values) in batches:
            some_ids, some_values = np.array(ids), np.array(values)
            for arm, text in enumerate(self._texts):
                tokens = text[start : start + len(some_ids)]
                if tokens:  # of an arm that has ended, what it was fed beside the others is left out
                    of_arm = some_ids[: len(tokens), arm], some_values[: len(tokens), arm]
                    yield self._events.of_tokens(arm, start, *silenced(self._model, self._sae, tokens, *of_arm))


@contextmanager
def followed(control: Control, job: jobs.Compare, context: Context) -> Iterator[WrittenReader | None]:
    """What reads the features of a run made inside; ``None`` where none are asked for."""
    if not job.sae:
        yield None
        return
    model, sae = context.need_model(), open_sae(job.sae, context)
    with watching(model, sae) as watch:
        yield WrittenReader(control.id, model, sae, watch)


def read_written(control: Control, job: jobs.ReadWritten, context: Context) -> Iterator[ev.Event]:
    """Arm by arm: from the run's own activations where they are kept, else by a forward over prompt and text."""
    model, sae = context.need_model(), open_sae(job.sae, context)
    if job.feature >= 0:
        sae.directions([job.feature])  # checks the id before the long way
    layer, site = place_of(sae.info)
    kept = context.written
    if kept is None or not job.run or (kept.job, kept.place) != (job.run, (layer, site)):  # 0 says of no run which
        kept = context.written = WrittenActivations(job.run, (layer, site), {})
    features = FeatureEvents(control.id, model, sae)
    for arm, (interventions, ids) in enumerate(job.arms):
        control.progress("arms", arm, len(job.arms))
        if not ids:
            continue
        if arm not in kept.arms or len(kept.arms[arm]) != len(ids):
            asked = as_prompt(job.prompt, job.turns)
            kept.arms[arm] = written_activations(model, asked, ids, interventions, layer, site=site, raw=job.raw)
        if job.feature < 0:
            yield features.of_tokens(arm, 0, *top_features(model, sae, ids, kept.arms[arm], TOP))
        else:
            values = feature_values(model, sae, ids, kept.arms[arm], job.feature)
            yield ev.ArmActivation(control.id, sae.info.id, job.feature, arm, values)


LensReading = jobs.ReadLens | jobs.ReadParts | jobs.ReadPattern


def read_lens(control: Control, job: jobs.ReadLens, context: Context) -> Iterator[ev.Event]:
    """Every layer's most probable tokens at every token of the text, and the rank of the followed token."""
    model = context.need_model()
    ids = _ids(job, model)
    control.progress("tokens", 0, len(ids), "tokens")

    def said(done: int, total: int) -> None:
        control.progress("tokens", done, total, "tokens")

    through = None
    if job.jacobian:
        through = lens_of(model.info)
    target = None if job.target == "" else job.target
    steering = _steering(job)
    found = logit_lens(
        model, ids, target=target, top_k=job.top_k, interventions=steering, progress=said, through=through
    )
    beside = None
    if through is not None:
        beside = logit_lens(model, ids, layers=found.layers, target=target, top_k=1, interventions=steering)
    yield ev.LensRead(control.id, found, beside)


def read_parts(control: Control, job: jobs.ReadParts, context: Context) -> Iterator[ev.Event]:
    """What each layer's attention, its heads and its MLP add to the logit."""
    model = context.need_model()
    found = attribute_logits(
        model, _ids(job, model), job.target, positions=[job.position], interventions=_steering(job), heads=True
    )
    yield ev.PartsRead(control.id, found)


def read_pattern(control: Control, job: jobs.ReadPattern, context: Context) -> Iterator[ev.Event]:
    """The attention of one layer."""
    model = context.need_model()
    (found,) = attention_patterns(model, _ids(job, model), job.layer, interventions=_steering(job))
    yield ev.PatternRead(control.id, found)


def _ids(job: LensReading, model: LensModel) -> tuple[int, ...]:
    ids = tuple(model.tokens.check(job.token_ids) if job.token_ids else model.tokens.encode(job.text))
    if len(ids) > jobs.LENS_TOKENS:
        wrong, do = jobs.TOO_LONG
        raise LensError(wrong.format(len(ids)), do)
    return ids


def _steering(job: LensReading) -> tuple[Intervention, ...]:
    return job.arm.interventions if job.arm else ()
