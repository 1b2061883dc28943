"""Whether an SAE fits the model it is used on: what was measured, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .activations import Place

Verdict = Literal["fits", "fits better elsewhere", "does not fit", "not declared"]


@dataclass(frozen=True, slots=True)
class SiteFit:
    """An SAE measured on one tensor: mean active latents a token, and the share of variance it leaves unexplained.

    ``fvu`` is ``None`` where it cannot be had (a transcoder without its target, tokens that do not vary).
    """

    place: Place
    n_tokens: int
    l0: float
    fvu: float | None


@dataclass(frozen=True, slots=True)
class FitReport:
    """The verdict on an SAE, with what it rests on.

    ``rows`` are the tensors that were tried, the declared one first; ``better`` is the one it fits better, or, if it
    declares none, the one it fits best. ``sentence`` says it all in one sentence.
    """

    verdict: Verdict
    sentence: str
    rows: tuple[SiteFit, ...]
    declared: Place | None = None
    declared_l0: float | None = None
    declared_fvu: float | None = None
    better: Place | None = None

    @property
    def fits(self) -> bool:
        """Whether it may be used where it says it belongs."""
        return self.verdict == "fits"
