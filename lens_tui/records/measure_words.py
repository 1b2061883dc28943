"""What each number of a dose-response is, in a sentence: the screen, the command line and the docs say the same."""

from __future__ import annotations

DEFINITIONS: dict[str, tuple[str, str]] = {
    "delta_loss": (
        "Δ loss",
        "Mean next-token loss of unrelated texts, steered minus plain, in nats a token; "
        "in brackets the 95 % bootstrap interval over texts.",
    ),
    "kl": (
        "KL",
        "Mean D(plain ‖ steered) on the first 20 tokens of the plain text, in nats (lanes: D(steered ‖ plain) on their "
        "own). Past 1 text often comes apart.",
    ),
    "ppl_unsteered": (
        "perplexity",
        "Of what the steered model wrote, under the plain model. High here and low under the steered one: "
        "confidently broken text.",
    ),
    "distinct_2": (
        "distinct-2",
        "Share of the token pairs of what was written that are different: it falls when text repeats itself.",
    ),
    "read_back": (
        "read-back",
        "Mean activation of the feature on what was written, read again by the plain model: "
        "high only if the text is about it.",
    ),
    "random": (
        "random",
        "The same measure with random directions of the same length in its place: what any push does. "
        "Flipped: the sign turned.",
    ),
    "relative_norm": ("‖Δh‖/‖h‖", "Mean length of the change over the length of the residual, after rounding."),
    "knee": (
        "knee",
        "The scale where the curve bends most: the point furthest from the straight line between its ends.",
    ),
}
"""By the name of the curve: what it is called on the screen, and what it is."""

OWN_KL = "KL own: mean D(steered ‖ plain) over the first 20 tokens of the steered text, in nats, as in compare."

QUANTITIES: dict[str, tuple[str, str, float]] = {
    "delta_loss": ("Δ loss", "nat", 0.3),
    "kl": ("KL", "nat", 1.0),
    "relative_norm": ("‖Δh‖/‖h‖", "", 0.1),
}
"""What a scale can be searched by: how it is called, its unit, and the target where none is named."""

MULTIPLES = (-4.0, -2.0, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
"""The scales of a dose-response where none are named, as multiples of the reference."""
