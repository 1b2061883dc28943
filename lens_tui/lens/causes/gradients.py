"""Gradients of a metric with respect to activations, by MLX's vector-Jacobian products.

They pass through quantised weights exactly: a quantised product is linear in its input. The gradient is computed in the
model's own dtype from the site on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from lens_tui.records import FloatArray, LensError, NotFinite
from lens_tui.records.errors import warn
from lens_tui.records.patch_grid import IntegratedGradients, SiteGradients
from lens_tui.records.wording import many

from ..forward import Core, as_float, one_text
from ..hooks.program import Hook, Key, adding
from ..hooks.registry import Resume
from ..measure.scores import can_resume
from .cells import metric_of_run, read_run
from .metrics import Measure, Metric

_BATCH = 16
_ERROR_SHARE = 0.1
"""The error of integrated gradients, as a share of the difference, above which it is warned of."""


def gradients(lens: Core, text: Any, metric: Measure, sites: Sequence[Key]) -> SiteGradients:
    """A metric of one text and its gradient with respect to the tensors at sites, by one backward pass.

    Args:
        lens: The model; what holds in blocks around the call is left out.
        text: A text, raw, or its token ids.
        metric: A :class:`Metric` (``logit_difference(answer, wrong)``, ``log_probability(answer)``, or one of your
            own; with ``reads`` of a residual), or a function of float32 logits (rows, vocabulary) after the last token
            that gives (rows,).
        sites: Layers, counted from 0 (negative ones from the end), with a site of each.

    Raises:
        LensError: For a metric without a gradient (``rank``), and for a site that there is not.
        NotFinite: For a gradient that is not a number.
    """
    if isinstance(metric, str):
        raise LensError(f"The metric {metric!r} needs its tokens.", "Give a Metric, such as log_probability(answer).")
    record = metric if isinstance(metric, Metric) else Metric(getattr(metric, "__name__", "metric"), metric)
    keys = [(lens.registry.decoder.index(layer), site) for layer, site in sites]
    if not keys:
        raise LensError("There is no site to differentiate by.", "Name at least one layer and site.")
    value, found = gradient_at(lens, one_text(lens, text), keys, record)
    return SiteGradients(record.name, value, {key: as_float(each) for key, each in found.items()})


def gradient_at(
    lens: Core, ids: Sequence[int], keys: Sequence[Key], metric: Metric
) -> tuple[float, dict[Key, mx.array]]:
    """The metric of a text and its gradients ``(tokens, width)``, float32 and evaluated, by layer and site."""
    places = list(dict.fromkeys(keys))
    batch = mx.array([list(ids)], dtype=mx.int32)
    # The metric is of one text, and each site's tensor has zeros added to it: the gradient with respect to what is
    # added is that with respect to the tensor.
    lens.registry.decoder.check_whole("Gradients")
    zeros = [mx.zeros((1, len(ids), lens.registry.sites.point(*key).width)) for key in places]

    def value(added: list[mx.array]) -> mx.array:
        hooks = [Hook("gradient", *key, adding(each)) for key, each in zip(places, added, strict=True)]
        return metric_of_run(lens, batch, hooks, metric)[0]

    found, slopes = differentiated(metric.name, value, zeros)
    return float(found), {key: slope[0] for key, slope in zip(places, slopes, strict=True)}


def differentiated(
    name: str, value: Callable[[list[mx.array]], mx.array], at: list[mx.array]
) -> tuple[mx.array, list[mx.array]]:
    """A scalar function of arrays and its gradients there, evaluated.

    Raises :class:`LensError` where a part of the model has no gradient or the function has none, and ``NotFinite``.
    """
    try:
        found, slopes = mx.value_and_grad(value)(at)
        mx.eval(found, slopes)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        if isinstance(error, LensError):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LensError(f"The metric {name!r} has no gradient in this model: {reason}.") from error
    if not all(bool(mx.isfinite(each).all()) for each in (found, *slopes)):
        raise NotFinite(f"The gradient of {name!r} is not finite.", "Load the model in float32, or use another metric.")
    if not any(bool(mx.any(each != 0)) for each in slopes):
        raise LensError(
            f"The metric {name!r} has a gradient of zero at every site: it does not depend on them, or only in steps.",
            "Use a smooth metric (logit-difference, log-probability, kl), read after the token in question.",
        )
    return found, slopes


def integrated_gradients(
    lens: Core,
    text: Any,
    metric: Metric | Callable[[mx.array], mx.array],
    layer: int,
    *,
    site: str = "resid_pre",
    baseline: Any = None,
    steps: int = 16,
) -> IntegratedGradients:
    """Integrated gradients of a metric along the line from a baseline to the activations of a text at one site.

    Sundararajan et al. 2017 (1703.01365): contributions add up to the metric's difference. The integral is a quadrature
    (Gauss-Legendre) in a batch. A ``LensWarning`` is given of an error of more than a tenth of the difference.

    Args:
        lens: The model; what holds in blocks around the call is left out.
        text: A text, raw, or its token ids.
        metric: A :class:`Metric`, or a function of the logits as for :func:`gradients`.
        layer: Counted from 0; negative ones from the end.
        site: One of its sites.
        baseline: ``(tokens, width)`` or ``(width,)``, by default zeros; another text's activations, say.
        steps: Points of the quadrature, at least 1.

    Raises:
        LensError: For a metric without a gradient, a baseline of another shape, or fewer than one step.
        NotFinite: For a gradient that is not a number.
    """
    if steps < 1:
        raise LensError(f"The quadrature has {steps} points.", "Give at least 1.")
    record = metric if isinstance(metric, Metric) else Metric(getattr(metric, "__name__", "metric"), metric)
    key = (lens.registry.decoder.index(layer), site)
    ids = one_text(lens, text)
    here = read_run(lens, ids, [key, (key[0], "resid_pre")])
    end = here.hidden[key].astype(mx.float32)
    start = _baseline(baseline, end)
    below = here.hidden[key[0], "resid_pre"] if can_resume(lens.registry) else None

    def values(points: mx.array) -> mx.array:
        rows = points.shape[0]
        resume = None
        if below is not None:
            resume = Resume((key[0], "resid_pre"), mx.broadcast_to(below[None], (rows, *below.shape)))
        hook = Hook("integrated gradients", *key, lambda ctx, h: points.astype(h.dtype))
        return metric_of_run(lens, mx.broadcast_to(mx.array([list(ids)]), (rows, len(ids))), [hook], record, resume)

    nodes, weights = np.polynomial.legendre.leggauss(steps)
    total = np.zeros(end.shape, np.float64)
    for begin in range(0, steps, _BATCH):
        at = mx.array(((nodes[begin : begin + _BATCH] + 1) / 2).astype(np.float32))[:, None, None]
        points = start + at * (end - start)
        _, (slopes,) = differentiated(record.name, lambda given: values(given[0]).sum(), [points])
        total += np.einsum("r,rtw->tw", weights[begin : begin + _BATCH] / 2, np.array(slopes, np.float64))
    ends = np.array(values(mx.stack([end, start])), np.float64)
    parts = total * np.array(end - start, np.float64)
    difference = float(ends[0] - ends[1])
    error = float(parts.sum() - difference)
    _warn_of_error(record.name, difference, error, steps)
    contributions: FloatArray = parts.astype(np.float32)
    return IntegratedGradients(record.name, key[0], site, contributions, float(ends[0]), float(ends[1]), error, steps)


def _warn_of_error(metric: str, difference: float, error: float, steps: int) -> None:
    if abs(error) > _ERROR_SHARE * abs(difference):
        warn(
            f"The contributions to {metric!r} add up to {difference + error:.3g}, and the difference is "
            f"{difference:.3g}: {many(steps, 'step')} {'leaves' if steps == 1 else 'leave'} more than a tenth of it. "
            "Give a nearer baseline, or more steps."
        )


def _baseline(baseline: Any, end: mx.array) -> mx.array:
    if baseline is None:
        return mx.zeros(end.shape)
    given = baseline if isinstance(baseline, mx.array) else mx.array(np.asarray(baseline, np.float32))
    if tuple(given.shape) not in (tuple(end.shape), (end.shape[1],)):
        raise LensError(
            f"The baseline has shape {tuple(given.shape)}; the activations have {tuple(end.shape)}.",
            f"Give {tuple(end.shape)}, or ({end.shape[1]},) for every token.",
        )
    return mx.broadcast_to(given.astype(mx.float32), end.shape)
