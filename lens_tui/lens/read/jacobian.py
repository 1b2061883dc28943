"""Directions through a Jacobian lens: a token's direction at a layer, and one concept's in the place of another's.

What raises a token's logit at the end is its row ``w`` of the unembedding; what is expected to become that from layer
``l`` on is ``J_l^T w``, the gradient of ``w . J_l h`` with respect to ``h`` (Anthropic 2026, ``jacobian-lens``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lens_tui.records import LensError, Origin, SteeringVector, Swap
from lens_tui.records.jacobian_lens import JacobianLens

from ..architecture.unembed import Convention
from ..vectors import from_array, from_token

if TYPE_CHECKING:
    from ..model import LensModel


def jacobian_vector(
    lens: LensModel,
    through: JacobianLens,
    token: str | int,
    layer: int,
    *,
    name: str = "",
    convention: Convention = "norm",
) -> SteeringVector:
    """The direction of one token at a layer: its row of the unembedding, pulled back through a Jacobian lens.

    Args:
        lens: The model.
        through: The lens.
        token: An id, or a text that is one token.
        layer: Counted from 0; negative numbers count from the end. The last one, unless it was fitted, has the row.
        name: By default the token's text.
        convention: ``"norm"`` multiplies the row by the final norm's gain first, ``"raw"`` does not.

    Returns:
        The vector at ``resid_post``, of unit length; ``norm`` is what the pulled-back row had.

    Raises:
        LensError: For a lens of another model or without the layer, and for a text of no or several tokens.
    """
    through.check_fits(lens.d_model, lens.n_layers)
    row = from_token(lens, token, layer, convention=convention)
    values = row.direction * row.norm
    if row.layer != lens.n_layers - 1 or row.layer in through.matrices:
        values = values @ through.matrix(row.layer)
    facts = {**row.origin.facts, "kind": "jacobian", "lens": lens_facts(through)}
    return from_array(lens, name or row.name, values, row.layer, origin=Origin("token", facts))


def lens_facts(through: JacobianLens) -> dict[str, Any]:
    """What a vector's origin says of the lens that it came through."""
    kept = ("corpus_sha256", "context", "skip", "precision", "file")
    return {"n_texts": through.n_texts, **{key: through.facts[key] for key in kept if key in through.facts}}


def swap(
    lens: LensModel,
    through: JacobianLens,
    token: str | int,
    other: str | int,
    layer: int,
    *,
    convention: Convention = "norm",
    **options: Any,
) -> Swap:
    """What puts one token's direction at a layer in the place of another's: ``h + (h . s) (t - s)``.

    Args:
        lens: The model.
        through: The lens that both directions come through.
        token: What is taken out, ``s``: an id, or a text that is one token.
        other: What is put in its place, ``t``.
        layer: Counted from 0; negative numbers count from the end.
        convention: As of :func:`jacobian_vector`.
        options: ``id`` (by default named after tokens and layer), ``positions``, ``gate`` and other fields of
            :class:`~lens_tui.records.Swap`.

    Raises:
        LensError: As :func:`jacobian_vector` does, and for one token twice.
    """
    one, two = (jacobian_vector(lens, through, each, layer, convention=convention) for each in (token, other))
    if one.origin.facts["token"] == two.origin.facts["token"]:
        raise LensError("A token is swapped for itself.", "Give two tokens.")
    named = {"id": f"swap {one.name} for {two.name} at layer {one.layer}", **options}
    return Swap(layer=one.layer, vector=one, other=two, **named)
