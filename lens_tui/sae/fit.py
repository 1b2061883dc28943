"""An SAE on a model: its reconstruction spliced in, and the tensor it fits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from lens_tui.records import LensError, SAEInfo
from lens_tui.records.training import FitReport, Place, SiteFit

from .base import SAE, factor


def splice(
    sae: SAE,
    *,
    clamp: Mapping[int, float] | None = None,
    scale: Mapping[int, float] | None = None,
    keep_error: bool = True,
) -> Callable[[mx.array], mx.array]:
    """A function of the residual ``(..., d)`` that gives what the model is to continue with, in the residual's dtype.

    Args:
        sae: an SAE that gives what it reads; for a transcoder see :func:`spliced`.
        clamp: features by id, and the activation each is set to.
        scale: features by id, and what the activation each has is multiplied by (0 ablates).
        keep_error: let what the SAE does not explain pass through. Only the difference that the edits make is added
            then, and without edits nothing changes, to the bit. Without it the reconstruction takes the residual's
            place, and no gradient goes through it.

    Raises:
        LensError: for a transcoder, and for feature ids that do not exist.
    """
    if sae.info.is_transcoder or sae.d_model != sae.d_out:
        raise LensError(
            f"{sae.info.name or 'The SAE'} is a transcoder: it reads one tensor and gives another.",
            "Use spliced(sae, output, source=input).",
        )
    edits = _edits(sae, clamp, scale)
    return lambda h: _spliced(sae, h, h, edits, keep_error)


def spliced(
    sae: SAE,
    output: mx.array,
    *,
    source: mx.array | None = None,
    clamp: Mapping[int, float] | None = None,
    scale: Mapping[int, float] | None = None,
    keep_error: bool = True,
) -> mx.array:
    """:func:`splice` on arrays.

    Args:
        sae: an SAE or a transcoder.
        output: the tensor to change, ``(..., d_out)``.
        source: what a transcoder reads, ``(..., d_model)``; by default ``output``.
        clamp: as for :func:`splice`.
        scale: as for :func:`splice`.
        keep_error: as for :func:`splice`.

    Raises:
        LensError: if a transcoder is given no source, for tensors of other widths, and for feature ids that do not
            exist.
    """
    if source is None and (sae.info.is_transcoder or sae.d_model != sae.d_out):
        raise LensError("A transcoder needs the tensor that it reads.", "Give source=.")
    return _spliced(sae, output, output if source is None else source, _edits(sae, clamp, scale), keep_error)


_Edits = tuple[list[int], mx.array, mx.array]


def _edits(sae: SAE, clamp: Mapping[int, float] | None, scale: Mapping[int, float] | None) -> _Edits:
    """Ids, and for each a factor and a summand: the new activation is ``factor * a + summand``."""
    clamp, scale = clamp or {}, scale or {}
    both = sorted(set(clamp) & set(scale))
    if both:
        raise LensError(f"Feature {both[0]} is both clamped and scaled.", "Do one or the other.")
    for feature, value in (*clamp.items(), *scale.items()):
        if not math.isfinite(value):
            raise LensError(f"Feature {feature} is to be {value!r}.", "Give a finite number.")
    ids = [*clamp, *scale]
    sae.directions(ids)  # refuses ids that do not exist
    factors = mx.array([0.0] * len(clamp) + [float(value) for value in scale.values()])
    summands = mx.array([float(value) for value in clamp.values()] + [0.0] * len(scale))
    mx.eval(factors, summands)
    return ids, factors, summands


def _spliced(sae: SAE, output: mx.array, source: mx.array, edits: _Edits, keep_error: bool) -> mx.array:
    for name, tensor, width in (("output", output, sae.d_out), ("source", source, sae.d_model)):
        if tensor.ndim < 1 or tensor.shape[-1] != width:
            raise LensError(
                f"The {name} has shape {tuple(tensor.shape)}, and the SAE's is (..., {width}).",
                "Give the tensor of the site that the SAE is for.",
            )
    ids, factors, summands = edits
    base = output if keep_error else sae.reconstruct(source).output
    if not ids:
        return base.reshape(output.shape).astype(output.dtype)
    now = sae.encode_features(source, ids)
    change = ((factors - 1.0) * now + summands) @ sae.effects(ids)
    change = change * factor(sae.definition, source.reshape(*change.shape[:-1], sae.d_model))
    new = base.reshape(change.shape).astype(mx.float32) + change
    return new.reshape(output.shape).astype(output.dtype)


Capture = Callable[[Sequence[Place]], Mapping[Place, Any]]
"""Gives the activations ``(n, d)`` of places; those that the model lacks are left out."""

BETTER = 0.9
"""Another tensor fits better if its FVU is below this share of the declared one's."""
POOR = 0.6
"""FVU from which on an SAE that declares none does not fit."""
L0_RANGE = 4.0
"""L0 may differ from the declared one by this factor."""

_FAMILIES = (
    ("resid_post",),
    ("resid_pre",),
    ("mlp_out", "mlp_out_normed", "resid_post"),
    ("attn_out", "attn_out_normed", "attn_z", "resid_post"),
    ("mlp_in", "mlp_normed", "resid_pre"),
)


def candidates(info: SAEInfo, n_layers: int) -> tuple[Place, ...]:
    """The tensors to try: the declared one, its neighbours, and those it may be mistaken for.

    Where the layer or the site is not declared, every layer or every site's residual stream stands in.
    """
    layers = range(n_layers) if info.layer < 0 else (info.layer, info.layer - 1, info.layer + 1)
    site = info.site or "resid_post"
    places: list[Place] = [(layer, site) for layer in layers if 0 <= layer < n_layers]
    family = [other for sites in _FAMILIES if site in sites for other in sites]
    if info.layer >= 0:
        places += [(info.layer, other) for other in family if 0 <= info.layer < n_layers]
    return tuple(dict.fromkeys(places))


def check_fit_with(sae: SAE, capture: Capture, n_layers: int) -> FitReport:
    """:func:`check_fit` on what ``capture`` gives for the plausible tensors of a model of ``n_layers`` layers."""
    places = candidates(sae.info, n_layers)
    if sae.info.layer >= n_layers:
        raise LensError(
            f"The SAE is for layer {sae.info.layer}; this model's layers are 0 to {n_layers - 1}.",
            "Choose one made for this model.",
        )
    if not sae.info.is_transcoder:
        return check_fit(sae, capture(places))
    outs = {(layer, sae.info.site_out) for layer, _ in places if sae.info.site_out}
    held = capture([*places, *(place for place in outs if place not in places)])
    targets = {place: held[place[0], sae.info.site_out] for place in places if (place[0], sae.info.site_out) in held}
    return check_fit(sae, {place: held[place] for place in places if place in held}, targets)


def check_fit(sae: SAE, residuals: Mapping[Place, Any], targets: Mapping[Place, Any] | None = None) -> FitReport:
    """Measure an SAE on ``{(layer, site): (n, d)}`` and judge.

    Leave out the positions that the SAE was not trained on (BOS, other special tokens): their huge norms would
    drown the rest. Arrays of another width than the SAE reads are passed over. ``targets`` holds for each
    place what a transcoder should give there. Raises ``LensError`` if nothing can be measured.
    """
    info = sae.info
    declared = (info.layer, info.site) if info.site and info.layer >= 0 else None
    rows = [_measure(sae, place, x, (targets or {}).get(place)) for place, x in residuals.items() if _suits(sae, x)]
    if not rows:
        widths = ", ".join(sorted({str(tuple(x.shape)[-1]) for x in residuals.values()})) or "none"
        raise LensError(
            f"The SAE reads width {sae.d_model}; the tensors of this model that it could be for have {widths}.",
            "Choose one made for this model.",
        )
    rows.sort(key=lambda row: row.place != declared)
    return _judge(info, declared, tuple(rows))


def _suits(sae: SAE, x: Any) -> bool:
    return len(x.shape) == 2 and x.shape[1] == sae.d_model and x.shape[0] > 1


def _measure(sae: SAE, place: Place, x: Any, target: Any) -> SiteFit:
    made = sae.reconstruct(mx.array(x), None if target is None else mx.array(target))
    return SiteFit(place, int(x.shape[0]), float(np.mean(np.asarray(made.l0))), made.fvu)


def _judge(info: SAEInfo, declared: Place | None, rows: tuple[SiteFit, ...]) -> FitReport:
    measured = [row for row in rows if row.fvu is not None]
    best = min(measured, key=lambda row: _fvu(row), default=None)
    home = next((row for row in rows if row.place == declared), None)

    def report(verdict: Any, sentence: str, better: Place | None = None) -> FitReport:
        return FitReport(verdict, sentence, rows, declared, info.l0, info.fvu, better)

    if home is None or declared is None:
        if best is None or _fvu(best) > POOR:
            return report("does not fit", f"It fits none of the {len(rows)} tensors tried{_tail(best, info)}.")
        what = "It does not say what it reads" if declared is None else f"The model has no {_name(declared)}"
        return report("not declared", f"{what}; it fits best {_name(best.place)}{_tail(best, info)}.", best.place)
    if best is not None and home.fvu is not None and best.place != declared and _fvu(best) < BETTER * home.fvu:
        if _fvu(best) <= _limit(info):
            sentence = (
                f"It says {_name(declared)}{_tail(home, info)}, but fits {_name(best.place)} better{_tail(best)}."
            )
            return report("fits better elsewhere", sentence, best.place)
        return report("does not fit", f"It fits neither {_name(declared)}{_tail(home, info)} nor what is near.")
    if home.fvu is not None and home.fvu > _limit(info):
        return report("does not fit", f"It does not fit {_name(declared)}{_tail(home, info)}: too much is unexplained.")
    if info.l0 and not 1 / L0_RANGE <= home.l0 / info.l0 <= L0_RANGE:
        return report("does not fit", f"It does not fit {_name(declared)}{_tail(home, info)}: L0 is far off.")
    return report("fits", f"It fits {_name(declared)}{_tail(home, info)}.")


def _limit(info: SAEInfo) -> float:
    """The FVU up to which it may be said to fit: short texts differ from its maker's corpus."""
    if info.fvu is None:
        return POOR
    return max(1.75 * info.fvu, info.fvu + 0.15)


def _fvu(row: SiteFit) -> float:
    return float("inf") if row.fvu is None else row.fvu


def _name(place: Place) -> str:
    return f"{place[1]} of layer {place[0]}"


def _tail(row: SiteFit | None, info: SAEInfo | None = None) -> str:
    if row is None:
        return ""
    l0 = f"L0 {row.l0:.0f}" + (f", {info.l0:.0f} declared" if info and info.l0 is not None else "")
    if row.fvu is None:
        return f" ({l0})"
    fvu = f"FVU {row.fvu:.2f}" + (f", {info.fvu:.2f} declared" if info and info.fvu is not None else "")
    return f" ({l0}; {fvu}; {row.n_tokens} tokens)"
