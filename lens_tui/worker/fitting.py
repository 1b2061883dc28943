"""Put an SAE on the tensors of a model that it could be for, over a short text: where the two libraries meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from lens_tui.records import LensError
from lens_tui.records.activations import Place
from lens_tui.records.fit import FitReport

if TYPE_CHECKING:
    from lens_tui.lens import LensModel
    from lens_tui.sae import SAE

FIT_TEXT = (
    "The lighthouse keeper climbed the stairs every evening, lit the lamp, and wrote the weather into a small book. "
    "In 1848 the town had nine hundred people, two churches and a market where farmers sold wool, cheese and horses. "
    "“Will it rain tomorrow?” asked the girl. Her father laughed: “Ask the cat; she knows more than the newspaper.” "
    "Water boils at 100 degrees Celsius at sea level, and at a lower temperature on a mountain. "
    "To make the soup, chop two onions, fry them in butter, add salt, and let everything simmer for half an hour."
)
"""The text of a check when none is given: some hundred tokens of plain English of several kinds."""


def check_sae(model: LensModel, sae: SAE, text: str | None = None) -> FitReport:
    """L0 and FVU of an SAE on each tensor it could be for, over one text (by default ``FIT_TEXT``), and the verdict.

    Special tokens (BOS and the like) are left out. One forward pass. Raises ``LensError`` for a text of fewer than
    two tokens, and where no tensor of this model has the width that the SAE reads.
    """
    from lens_tui.sae.fit import check_fit_with

    ids = model.tokens.encode(FIT_TEXT if text is None else text)
    specials = model.tokens.special_ids()
    kept = [place for place, token in enumerate(ids) if token not in specials]
    if len(kept) < 2:
        raise LensError("The text has too few tokens to measure on.", "Give a few sentences.")

    def capture(places: Sequence[Place]) -> Mapping[Place, Any]:
        return capture_places(model, ids, kept, places)

    return check_fit_with(sae, capture, model.n_layers)


def capture_places(
    model: LensModel, ids: Sequence[int], kept: Sequence[int], places: Sequence[Place]
) -> dict[Place, Any]:
    """Activations ``(len(kept), d)`` of some places at some positions; places the model lacks are left out."""
    import mlx.core as mx

    by_site: dict[str, list[int]] = {}
    for layer, site in places:
        if site in model.sites(layer):
            by_site.setdefault(site, []).append(layer)
    rows = mx.array(list(kept))
    with ExitStack() as stack:
        held = {site: stack.enter_context(model.capture(layers, site=[site])) for site, layers in by_site.items()}
        model.forward(list(ids))
        return {
            (layer, site): mx.take(held[site][layer, site][0], rows, axis=0)
            for site, layers in by_site.items()
            for layer in layers
        }
