"""Words for features: your label of one, and features by words. Disk and tokenizer only, nothing is computed."""

from __future__ import annotations

from collections.abc import Iterator

from lens_tui.records import LensError
from lens_tui.records.labels import Labels
from lens_tui.records.sanitise import one_line
from lens_tui.records.store import Store
from lens_tui.worker import events as ev
from lens_tui.worker import jobs
from lens_tui.worker.control import Control
from lens_tui.worker.finding import search_features

from .context import Context
from .knowledge import index_of
from .load import open_sae


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
    result = search_features(job.words, info, context.need_model(), index_of(info), k=job.top_k)
    found: dict[int, ev.FoundFeature] = {}
    for row in result["labels"]:
        found.setdefault(row["feature"], ev.FoundFeature(row["feature"], one_line(row["text"], 200), "label"))
    for row in result["promoting"] or ():
        why = f"promotes ‘{one_line(row['token'], 30)}’"
        name = one_line(row["label"], 200) if row["label"] else why
        found.setdefault(row["feature"], ev.FoundFeature(row["feature"], name, why))
    indexed = result["promoting"] is not None
    yield ev.FeaturesFound(control.id, info.id, one_line(job.words, 80), tuple(found.values())[: job.top_k], indexed)
