"""What patches are judged by: one number for each row of a forward, from its logits or a residual."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from lens_tui.records import LensError
from lens_tui.records.patch_grid import PromptPair

from ..architecture.unembed import readout
from ..decode.sampling import log_softmax
from ..forward import Core, single_token, unhooked
from ..hooks.program import Key

_LOWEST = -1e30
"""In place of the minus infinity of ids that stand for no token: a difference of two of those is no number."""


@dataclass(frozen=True, eq=False)
class Metric:
    """One number a row: ``fn`` of float32 logits ``(rows, vocabulary)`` after one token gives ``(rows,)``.

    ``position`` is that token (the text's last by default); with ``None`` ``fn`` is given those after every token,
    ``(rows, tokens, vocabulary)``. ``reads`` names a layer and site whose tensor takes the place of the logits.
    """

    name: str
    fn: Callable[[mx.array], mx.array]
    position: int | None = -1
    reads: Key | None = None


Measure = str | Metric | Callable[[mx.array], mx.array]
"""A metric by name, as a record, or a function of the logits ``(rows, vocabulary)`` after the last token."""
NAMES = ("logit-difference", "log-probability", "probability", "kl", "rank")


def logit_difference(answer: int, wrong: int) -> Metric:
    """The answer's logit less the wrong one's, after the last token."""
    return Metric("logit-difference", lambda logits: logits[:, answer] - logits[:, wrong])


def log_probability(answer: int) -> Metric:
    """The answer's log-probability in nats, after the last token."""
    return Metric("log-probability", lambda logits: log_softmax(logits)[:, answer])


def probability(answer: int) -> Metric:
    """The answer's probability, after the last token."""
    return Metric("probability", lambda logits: mx.exp(log_softmax(logits)[:, answer]))


def kl_from(reference: mx.array) -> Metric:
    """``D(reference || row)`` in nats of the next-token distributions after the last token.

    Args:
        reference: Logits ``(vocabulary,)`` of the run that is the yardstick: 0 is the same distribution.
    """
    wanted = log_softmax(_finite(reference)[None])
    mx.eval(wanted)
    return Metric("kl", lambda logits: mx.sum(mx.exp(wanted) * (wanted - log_softmax(logits)), axis=-1))


def rank(answer: int) -> Metric:
    """How many tokens have a larger logit than the answer, after the last token; 0 is the most probable one."""
    return Metric("rank", lambda logits: mx.sum(logits > logits[:, answer : answer + 1], axis=-1).astype(mx.float32))


def metric_of(lens: Core, measure: Measure, pair: PromptPair, clean_logits: Callable[[], mx.array]) -> Metric:
    """The metric for one pair: a name is made of the pair's own answers.

    Args:
        lens: The model.
        measure: One of ``NAMES``, a :class:`Metric`, or a function of logits.
        pair: The prompts with their answers.
        clean_logits: The clean run's logits ``(vocabulary,)`` after its last token, for ``kl``.

    Raises:
        LensError: For a name that there is not, and for an answer that the pair does not have.
    """
    if isinstance(measure, Metric):
        return measure
    if not isinstance(measure, str):
        return Metric(getattr(measure, "__name__", "metric"), measure)
    if measure not in NAMES:
        raise LensError(f"There is no metric {measure!r}.", f"Use {', '.join(NAMES)}, or a function of the logits.")
    if measure == "kl":
        return kl_from(clean_logits())
    answer = token_of(lens, pair.answer, measure, "answer")
    if measure == "logit-difference":
        return logit_difference(answer, token_of(lens, pair.wrong, measure, "wrong"))
    return {"log-probability": log_probability, "probability": probability, "rank": rank}[measure](answer)


def token_of(lens: Core, token: int | str | None, measure: str, which: str) -> int:
    """The id of a pair's answer or wrong answer. Raises :class:`LensError` where it has none."""
    if token is None:
        raise LensError(
            f"The metric {measure!r} needs the pair's {which} token.",
            f"Give it as {which}=' word' (one token) or by its id.",
        )
    return single_token(lens, token) if isinstance(token, str) else lens.tokens.check([int(token)])[0]


def measured(metric: Metric, logits: mx.array) -> mx.array:
    """The metric ``(rows,)``, float32 and lazy, of what it reads ``(rows, tokens, width)``.

    Raises :class:`LensError` for a metric that gives anything but a number a row.
    """
    length = logits.shape[1]
    values = logits.astype(mx.float32)
    values = values if metric.reads is not None else _finite(values)
    if metric.position is not None:
        at = metric.position
        if not -length <= at < length:
            raise LensError(f"The metric {metric.name!r} reads token {at} of a text of {length}.")
        values = values[:, at]
    found = metric.fn(values)
    if not isinstance(found, mx.array) or found.shape != (logits.shape[0],):
        got = tuple(found.shape) if isinstance(found, mx.array) else type(found).__name__
        raise LensError(
            f"The metric {metric.name!r} gave {got}, not one number for each of {logits.shape[0]} rows.",
            "Return an array (rows,).",
        )
    return found.astype(mx.float32)


def _finite(logits: mx.array) -> mx.array:
    return mx.maximum(logits.astype(mx.float32), _LOWEST)


def from_residual(lens: Core, metric: Metric, residual: mx.array) -> mx.array:
    """The metric ``(rows,)`` of the last layer's residual ``(rows, tokens, d_model)``.

    Only the token that the metric reads goes through the unembedding, which with a large vocabulary costs more than
    the layers.
    """
    if metric.position is not None:
        at = metric.position + (residual.shape[1] if metric.position < 0 else 0)
        if not 0 <= at < residual.shape[1]:
            raise LensError(
                f"The metric {metric.name!r} reads token {metric.position} of a text of {residual.shape[1]}."
            )
        residual = residual[:, at : at + 1]
        metric = Metric(metric.name, metric.fn, 0)
    with unhooked(lens):
        return measured(metric, readout(lens.registry.decoder, residual))
