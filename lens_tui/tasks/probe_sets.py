"""Probes of labelled texts that a person typed, or that a file holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lens_tui.lens.probes.probe_texts import train_probes
from lens_tui.records.corpus import LabelledTexts, read_labelled

if TYPE_CHECKING:
    from lens_tui.lens.model import LensModel
    from lens_tui.records.probe import ProbeReport


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
