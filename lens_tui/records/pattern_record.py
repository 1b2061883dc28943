"""The record that changes what heads attend to."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import ClassVar

from .errors import LensError
from .interventions import ALL, Intervention, Positions, _indices, as_positions
from .steering_vector import FloatArray, numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class EditPattern(Intervention):
    """What some heads of a layer attend to is changed: weights on ``sources`` become zero, or whole rows are replaced.

    ``positions`` are the tokens that attend (queries), ``sources`` those attended to (keys); a negative index counts
    from the end of the prompt. With ``renormalise`` the weights left are what the softmax gives where those sources
    are masked (attention knockout, Geva et al. 2023, 2304.14767; a sink keeps its part); without, they stay as they
    are and what the sources gave is missing. A token of whose weights nothing is left attends to nothing.

    ``weights`` are put in the place of the pattern instead, without ``sources``: ``(len(heads), tokens, sources)``, row
    after row from the first token of the sequence, as :func:`~lens_tui.attention_patterns` gives them of another run,
    or ``(len(heads), 1, sources)``, one row for every token in ``positions``. Tokens behind the last row keep
    their own. ``heads`` are those of queries; none named are all. ``shape`` (of ``weights``, kept flat) and ``count``
    (how many heads the layer has) are filled in.
    """

    mode: ClassVar[str] = "edit_pattern"
    site: str = "attn_z"
    heads: tuple[int, ...] = ()
    sources: Positions = field(default=ALL)
    renormalise: bool = True
    weights: FloatArray | None = None
    shape: tuple[int, ...] = ()
    count: int = 0

    def __post_init__(self) -> None:
        Intervention.__post_init__(self)
        object.__setattr__(self, "heads", _indices(self.heads))
        object.__setattr__(self, "sources", as_positions(self.sources))
        if self.weights is None:
            return
        given = numbers(self.weights, f"The weights of {self.id!r}").astype("float32")
        shape = tuple(self.shape) or ((1, *given.shape) if given.ndim == 2 else given.shape)
        if len(shape) != 3 or prod(shape) != given.size:
            raise LensError(
                f"The weights of {self.id!r} have the shape {given.shape}.", "Give (heads, tokens, sources)."
            )
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "weights", given.reshape(-1))
