"""Jacobian lenses: the average Jacobian of the last residual with respect to every layer's, and directions through it.

For a text, with positions ``p`` and ``t`` from ``skip`` to the one before the last,

    J_l = mean over p of  sum over t >= p of  d resid_post_last[t] / d resid_post_l[p]

and a lens is the mean of that over texts. The estimator is that of Anthropic's ``jacobian-lens`` (2026): the first
positions are left out as attention sinks, the last for want of a next token. Each row of the matrices is the gradient
of one entry of the last residual; one pass backwards gives a row for every layer together, and many rows go together,
by ``vmap`` over one forward pass where the model's operations have it (quantised products have not), else as rows of a
batch. Gradients are the model's own, in its dtype, through quantised weights too; sums are float32.

What raises a token's logit at the end is its row ``w`` of the unembedding; what is expected to become that from layer
``l`` on is ``J_l^T w``, the gradient of ``w . J_l h`` with respect to ``h``: a token's direction at a layer, and with
two of them one concept's in the place of another's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from lens_tui.records import FloatArray, LensError, NotFinite, Origin, SteeringVector, Swap
from lens_tui.records.jacobian_lens import JacobianLens

from ..architecture.unembed import Convention
from ..causes.cells import Kept
from ..forward import Core, one_text, run_through
from ..hooks.program import Hook, adding
from ..hooks.registry import Plan, PlanEntry, Registry, Run
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


SKIP = 16
"""Positions at the start of a text that are left out: attention sinks."""
_NUMBERS = 1 << 28
"""Of one pass backwards, about as many as are held."""
_MOST_ROWS = {"cpu": 16, "gpu": 128}
"""Rows at once by device: a CPU gains nothing by more, and its caches lose."""
_PROBE = (1, 3, 2, 5, 4, 1)


@dataclass(eq=False)
class JacobianSums:
    """What a fit has so far: of every other text in turn the sum of its Jacobians, so that halves can be compared.

    ``halves`` are two of ``{layer: (d_model, d_model)}``, float32; ``counts`` how many texts each is of;
    ``positions`` over how many positions in all; ``history`` after how many texts the largest error of a layer was how
    much (:meth:`errors`); ``skipped`` counts texts that were too short.
    """

    layers: tuple[int, ...]
    halves: tuple[dict[int, FloatArray], dict[int, FloatArray]] = field(default_factory=lambda: ({}, {}))
    counts: list[int] = field(default_factory=lambda: [0, 0])
    positions: int = 0
    skipped: int = 0
    history: list[tuple[int, float]] = field(default_factory=list)

    @property
    def n_texts(self) -> int:
        """Texts so far."""
        return sum(self.counts)

    def add(self, found: Mapping[int, FloatArray], positions: int) -> None:
        """One more text."""
        side = 0 if self.counts[0] <= self.counts[1] else 1
        for layer, matrix in found.items():
            held = self.halves[side].get(layer)
            self.halves[side][layer] = matrix.copy() if held is None else held + matrix
        self.counts[side] += 1
        self.positions += positions
        if self.counts[1]:
            self.history.append((self.n_texts, max(self.errors().values())))

    def mean(self, layer: int) -> FloatArray:
        """The estimate of a layer. At least one text is there."""
        parts = [half[layer] for half, count in zip(self.halves, self.counts, strict=True) if count]
        return np.asarray(sum(parts[1:], parts[0]) / self.n_texts, np.float32)

    def errors(self) -> dict[int, float]:
        """The standard error of each layer's estimate as a share of its length (Frobenius), from the two halves.

        Half the distance of the halves' means: what each is off by is independent of the other, so that their distance
        is twice what the mean of both is off by. Empty while one half has no text.
        """
        if not all(self.counts):
            return {}
        found = {}
        for layer in self.layers:
            one, other = (half[layer] / count for half, count in zip(self.halves, self.counts, strict=True))
            length = float(np.linalg.norm(self.mean(layer)))
            found[layer] = float(np.linalg.norm(one - other)) / 2 / max(length, 1e-30)
        return found

    def lens(self, model: str, facts: Mapping[str, Any] | None = None) -> JacobianLens:
        """The lens. Raises :class:`LensError` while there is no text."""
        if not self.n_texts:
            raise LensError(
                "No text was long enough to fit a Jacobian lens to.", "Give longer texts, or a smaller skip=."
            )
        matrices = {layer: self.mean(layer) for layer in self.layers}
        kept = {**(facts or {}), "convergence": [[n, round(error, 5)] for n, error in _thinned(self.history)]}
        return JacobianLens(model, matrices, self.n_texts, self.positions, self.errors(), kept)


def _thinned(history: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most 40 points, the last one among them."""
    step = max(1, -(-len(history) // 40))
    return list(history[::-1][::step][::-1])


def fit_jacobian_lens(
    lens: Core,
    texts: Iterable[Any],
    *,
    layers: Sequence[int] | None = None,
    skip: int = SKIP,
    rows: int | None = None,
    sums: JacobianSums | None = None,
    facts: Mapping[str, Any] | None = None,
    progress: Callable[[JacobianSums], None] | None = None,
) -> JacobianLens:
    """Fit a Jacobian lens to a model by texts.

    Args:
        lens: The model; what holds in blocks around the call is left out.
        texts: Texts or lists of token ids; those of fewer than ``skip + 2`` tokens are left out.
        layers: By default all but the last, whose matrix is the identity.
        skip: Positions left out at the start of each text.
        rows: Rows of the matrices in one pass backwards, by default as many as memory is sensibly used for.
        sums: What an earlier call has summed up, to go on from; it is added to.
        facts: What the lens's record says of the texts.
        progress: Called after each text with the sums so far; what it raises ends the fit.

    Returns:
        The lens, with the error of each layer from two halves of the texts.

    Raises:
        LensError: For a model without a single residual stream or without gradients, and where no text is long enough.
        NotFinite: For a Jacobian that is not a number.
    """
    chosen = fitted_layers(lens, layers)
    held = sums if sums is not None else JacobianSums(chosen)
    if held.layers != chosen:
        raise LensError(f"The sums are of layers {held.layers}, not {chosen}.", "Give the same layers as before.")
    for text in texts:
        ids = one_text(lens, text)
        if len(ids) < skip + 2:
            held.skipped += 1
            continue
        held.add(text_jacobians(lens, ids, chosen, skip=skip, rows=rows), len(ids) - 1 - skip)
        if progress is not None:
            progress(held)
    info = lens.info
    made = {"skip": skip, "precision": info.quantization or info.dtype, "weights": info.weights, **(facts or {})}
    return held.lens(info.name, made)


def fitted_layers(lens: Core, layers: Sequence[int] | None = None) -> tuple[int, ...]:
    """The layers to fit, in order, by default all but the last. Raises :class:`LensError` where none can be."""
    decoder = lens.registry.decoder
    if not decoder.closed:
        raise LensError(
            "This model's logits depend on more than the last layer's residual, so it has no Jacobian lens."
        )
    chosen = decoder.indices(range(lens.n_layers - 1) if layers is None else layers)
    if not chosen:
        raise LensError("There is no layer to fit.", "Name at least one.")
    return tuple(sorted(set(chosen)))


def text_jacobians(
    lens: Core, ids: Sequence[int], layers: Sequence[int], *, skip: int = SKIP, rows: int | None = None
) -> dict[int, FloatArray]:
    """The Jacobians of one text, averaged over positions as the module says: ``(d_model, d_model)`` by layer."""
    width, vmapped = lens.d_model, lens.registry.once(_vmaps)
    size = rows or batch_rows(lens, len(ids), vmapped)
    back = _Backward(lens.registry, tuple(ids), tuple(layers), skip)
    found = {layer: np.empty((width, width), np.float32) for layer in layers}
    for start in range(0, width, size):
        lens.registry.between()
        stop = min(start + size, width)
        parts = back.rows(start, stop, vmapped)
        for layer, part in zip(layers, parts, strict=True):
            found[layer][start:stop] = np.array(part)
    if not all(np.isfinite(each).all() for each in found.values()):
        raise NotFinite("The Jacobian of a text is not finite.", "Load the model in float32, or leave the text out.")
    return found


def batch_rows(lens: Core, tokens: int, vmapped: bool) -> int:
    """How many rows of the matrices go together: of a batch each also holds what its forward pass leaves."""
    per_layer = 2 if vmapped else 24
    most = _MOST_ROWS["gpu" if mx.default_device().type == mx.gpu else "cpu"]
    return max(1, min(most, _NUMBERS // max(1, tokens * lens.d_model * (lens.n_layers * per_layer + 24))))


@dataclass(frozen=True, eq=False)
class _Backward:
    """One text on its way backwards: rows of the Jacobians of its last residual."""

    registry: Registry
    ids: tuple[int, ...]
    layers: tuple[int, ...]
    skip: int

    def rows(self, start: int, stop: int, vmapped: bool) -> list[mx.array]:
        """Rows ``start`` to ``stop`` of each layer's matrix, evaluated."""
        width, count = self.registry.decoder.d_model, stop - start
        place = mx.arange(len(self.ids))
        valid = ((place >= self.skip) & (place < len(self.ids) - 1)).astype(mx.float32)[:, None]
        entries = (mx.arange(width) == mx.arange(start, stop)[:, None]).astype(self.registry.decoder.dtype)
        cotangents = entries[:, None] * valid.astype(entries.dtype)
        pull = self._vmapped if vmapped else self._batched
        share = valid / valid.sum()
        try:
            parts = [(slope.reshape(count, -1, width) * share).sum(axis=1) for slope in pull(cotangents)]
            mx.eval(parts)
        except (ValueError, RuntimeError, NotImplementedError) as error:
            if isinstance(error, LensError):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise LensError(f"This model has no gradient, so no Jacobian lens: {reason}.") from error
        return parts

    def _vmapped(self, cotangents: mx.array) -> list[mx.array]:
        zeros = self._zeros(1)

        def pull(cotangent: mx.array) -> list[mx.array]:
            return mx.vjp(self._last, zeros, [cotangent])[1]

        many: Any = mx.vmap(pull)
        found: list[mx.array] = many(cotangents[:, None])
        return found

    def _batched(self, cotangents: mx.array) -> list[mx.array]:
        return mx.vjp(self._last, self._zeros(cotangents.shape[0]), [cotangents])[1]

    def _zeros(self, rows: int) -> list[mx.array]:
        # What is added to a residual is zero: the gradient with respect to it is that with respect to the residual.
        return [mx.zeros((rows, len(self.ids), self.registry.decoder.d_model)) for _ in self.layers]

    def _last(self, *added: mx.array) -> list[mx.array]:
        last = (self.registry.decoder.n_layers - 1, "resid_post")
        hooks = [
            Hook("jacobian", layer, "resid_post", adding(each)) for layer, each in zip(self.layers, added, strict=True)
        ]
        kept = Kept(self.registry, (last,))
        plan = Plan(([PlanEntry(self.registry, hook) for hook in hooks],), (kept,))
        ids = mx.broadcast_to(mx.array([list(self.ids)], dtype=mx.int32), (added[0].shape[0], len(self.ids)))
        run_through(Run(self.registry, plan, len(self.ids)), ids)
        return [kept.tensors[last]]


def _vmaps(registry: Registry) -> bool:
    """Whether cotangents may be vmapped over one forward pass: what that gives is what rows of a batch give."""
    back = _Backward(registry, tuple(one % registry.decoder.vocab_size for one in _PROBE), (0,), 1)
    try:
        one, other = (np.array(back.rows(0, 2, vmapped)[0]) for vmapped in (True, False))
    except LensError:
        return False
    close = 1e-3 if registry.decoder.dtype == mx.float32 else 5e-2
    return bool(np.abs(one - other).max() <= close * max(float(np.abs(other).max()), 1e-30))
