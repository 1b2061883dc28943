"""The features of what a run writes, while it is written and afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from lens_tui.lens.read.written import written_activations
from lens_tui.records import Token
from lens_tui.records.chat import as_prompt
from lens_tui.records.sanitise import one_line
from lens_tui.tasks.knowledge import dense_features, index_of
from lens_tui.tasks.run_features import TOP, feature_names, feature_values, place_of, silenced, top_features, watching

from .. import events as ev
from .. import jobs
from ..thread import Control
from . import Context, WrittenActivations
from .load_jobs import open_sae

if TYPE_CHECKING:
    from lens_tui.lens.model import LensModel
    from lens_tui.lens.read.written import Watch
    from lens_tui.sae.load_sae import SAE


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
