"""Attention patterns of several layers, of which some may have none to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lens_tui.lens.read.attention import attention_patterns
from lens_tui.records import Intervention, LensError

if TYPE_CHECKING:
    from lens_tui.lens.model import LensModel
    from lens_tui.records.measures import AttentionPattern


def patterns(
    lens: LensModel, text: Any, layers: Sequence[int], *, interventions: Sequence[Intervention] | None = None
) -> list[AttentionPattern | LensError]:
    """As :func:`lens_tui.attention_patterns`, with the reason in the place of a layer that has no pattern to read.

    Args:
        lens: The model.
        text: A text, or its token ids.
        layers: Counted from 0.
        interventions: Replace those of the blocks around the call, which hold otherwise.
    """
    try:  # one forward for all of them, where every one can be read
        return list(attention_patterns(lens, text, layers, interventions=interventions))
    except LensError:
        found: list[AttentionPattern | LensError] = []
        for layer in layers:
            try:
                found += attention_patterns(lens, text, layer, interventions=interventions)
            except LensError as error:
                found.append(error)
        return found
