"""Steering vectors: a unit direction with where it came from and where it belongs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from .errors import LensError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    FloatArray = NDArray[np.float32]
else:

    class FloatArray:
        """Stands for ``NDArray[float32]`` at run time: an annotation must not cost the import of numpy."""


def numbers(values: Any, what: str) -> NDArray[np.float64]:
    """A list, numpy or MLX array as float64 numpy, evaluated now. Raises :class:`LensError` for anything else."""
    import numpy as np

    if type(values).__module__.startswith("mlx"):  # numpy knows no bfloat16
        try:
            values = values.astype(sys.modules["mlx.core"].float32)
            return np.array(values, dtype=np.float64)
        except RuntimeError as error:
            raise LensError(
                f"{what} was made on another thread and never evaluated ({error}).",
                "Call mx.eval on it in the thread that makes it.",
            ) from error
    try:
        if isinstance(values, (str, bytes)):
            raise TypeError
        found = np.asarray(values)
        if np.iscomplexobj(found):  # NumPy would drop the imaginary part
            raise TypeError
        return found.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise LensError(
            f"{what} cannot be made of {type(values).__name__}.", "Give numbers of shape (d_model,)."
        ) from error


OriginKind = Literal["feature", "prompts", "token", "random", "file", "arithmetic", "given", "probe"]


@dataclass(frozen=True, slots=True)
class Origin:
    """How a direction was made: its kind and the facts that would make it again.

    ``facts`` is plain JSON data, for example ``{"sae": "...", "feature": 2666}``
    or ``{"positive": [...], "negative": [...], "method": "mean_difference"}``.
    """

    kind: OriginKind = "given"
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class SteeringVector:
    """A unit direction in the residual stream of one model.

    ``direction`` is float32, read-only, shape ``(d_model,)``, of norm 1; ``norm``
    is the length the direction had before it was made unit. ``layer`` counts
    decoder blocks from 0 and ``site`` names the tensor (``resid_post`` of layer L
    is the output of block L). ``max_activation`` is set for SAE features: the
    largest activation seen, in the units of the decoder direction, so that
    ``scale / max_activation`` reads as "times its maximum".

    Build one with :meth:`of`, which checks and normalises.
    """

    name: str
    direction: FloatArray
    layer: int
    site: str = "resid_post"
    model: str = ""
    norm: float = 1.0
    origin: Origin = field(default_factory=Origin)
    max_activation: float | None = None

    @classmethod
    def of(
        cls,
        name: str,
        values: ArrayLike,
        layer: int,
        *,
        site: str = "resid_post",
        model: str = "",
        origin: Origin | None = None,
        max_activation: float | None = None,
    ) -> SteeringVector:
        """A steering vector from numbers: checked, made unit, its length kept as ``norm``.

        Args:
            name: what it is called.
            values: an array of shape ``(d_model,)``.
            layer: the decoder block it belongs to, from 0.
            site: the tensor of the block.
            model: the model it was made for, "" if any.
            origin: how it was made.
            max_activation: the feature's maximum activation, of a vector from an SAE.

        Raises:
            LensError: if it is not one-dimensional, holds NaN or infinity, is zero, or longer than a float64 can hold.
        """
        import numpy as np

        raw = numbers(values, f"The vector {name!r}")
        if raw.ndim != 1 or raw.size < 2:
            raise LensError(f"The vector {name!r} has shape {raw.shape}; a steering vector has shape (d_model,).")
        if not np.isfinite(raw).all():
            raise LensError(f"The vector {name!r} holds NaN or infinity.", "Check how it was made.")
        largest = float(np.abs(raw).max())
        if largest == 0.0:
            raise LensError(f"The vector {name!r} is zero and has no direction.", "Use inputs that differ.")
        # Squares of very large or very small numbers leave the range of a float.
        unit = 1.0 if 1e-140 < largest < 1e140 else largest
        length = float(np.linalg.norm(raw / unit))
        direction = (raw / unit / length).astype(np.float32)
        length *= unit
        if not np.isfinite(length):
            raise LensError(f"The vector {name!r} is too long for a number.", "Divide it by its largest value.")
        direction.setflags(write=False)
        return cls(name, direction, layer, site, model, length, origin or Origin(), max_activation)

    @property
    def d_model(self) -> int:
        """The width of the residual stream the direction lives in."""
        return int(self.direction.shape[0])


@dataclass(frozen=True, slots=True, eq=False)
class RankedLayer:
    """The vector of one layer, and how well it tells held-out pairs apart there.

    ``auc``, ``accuracy``, ``pairs`` and ``d_prime`` are those of ``lens.vectors.Separation``, ``None`` where there
    were too few pairs to hold any out. ``gap`` is the distance of the means along the vector, ``relative`` the same as
    a share of the mean length of the activations, ``None`` for sets that are not pairs.
    """

    vector: SteeringVector
    gap: float
    relative: float | None = None
    auc: float | None = None
    accuracy: float | None = None
    pairs: float | None = None
    d_prime: float | None = None


@dataclass(frozen=True, slots=True)
class TokenWeight:
    """A token and how strongly a direction promotes (positive) or suppresses it."""

    token_id: int
    text: str
    value: float
