"""What a feature page takes from an index beside the strongest examples: its size, and a sample of weaker ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lens_tui.sae.index import Example, FeatureIndex


def sampled(index: FeatureIndex, feature: int, plain: Callable[[Example], dict[str, Any]]) -> dict[str, Any]:
    """Plain data for ``FeaturePage.extras``.

    ``counted``: tokens the index is over. ``samples``: for each octave of activation with any, strongest first,
    ``{"from": its lower edge, "examples": [...]}`` with examples drawn at random, as ``plain`` gives them.
    """
    groups = index.sample(feature)
    samples = [{"from": edge, "examples": [plain(example) for example in examples]} for edge, examples in groups]
    return {"counted": index.n_counted, "samples": samples}
