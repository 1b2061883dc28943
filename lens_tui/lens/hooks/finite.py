"""Numbers that are not finite: found where they first come to the host, and told with the layer they begin at.

Looking costs nothing a token: a NaN anywhere in the logits makes the log-probability of every token NaN, the chosen
one's too, and that one is read anyway. Only when it is found does one more forward look for the place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np

from lens_tui.records import LensError, NotFinite

from ..architecture.taps import first_of
from .program import Key
from .registry import Entry, Plan, Recorder, Registry, Run
from .steered import Passage

HEAD = "the residual is finite at every layer, so the final norm or the unembedding is not"


def check_chosen(logprob: float, what: str, where: Callable[[], str]) -> None:
    """Raise :class:`NotFinite` if the log-probability of a chosen token is no number; ``where()`` says from where on.

    Minus infinity is one: a sampler of the user's may choose a token of probability 0.
    """
    if math.isnan(logprob) or logprob == math.inf:
        raise not_finite(what, where())


def check_values(values: Any, what: str, where: Callable[[], str] = lambda: "") -> None:
    """Raise :class:`NotFinite` if any of these numbers, in numpy or MLX, is NaN or infinite."""
    finite = mx.isfinite(values).all().item() if isinstance(values, mx.array) else np.isfinite(values).all()
    if not finite:
        raise not_finite(what, where())


def not_finite(what: str, where: str = "") -> NotFinite:
    """The error: ``what`` (a plural) is not finite, and ``where`` that begins."""
    return NotFinite(
        f"{what} are not finite numbers" + (f": {where}." if where else "."),
        "Lower the scale." if " under " in where else "Check the weights, or convert the model to float32.",
    )


def origin_in(registry: Registry, passage: Passage, entries: Sequence[Entry] = ()) -> str:
    """Where numbers cease to be finite in one text under these interventions, as a clause: found by one forward."""
    try:
        return "" if passage.start else _origin(registry, passage, entries)  # tokens in a cache are not known
    except LensError:
        return ""  # positions of chat roles, say, where only ids are known


def _origin(registry: Registry, passage: Passage, entries: Sequence[Entry]) -> str:
    where = passage.where()
    watch = _Watch(registry)
    plan = Plan((entries,), (watch,))
    registry.need(plan.keys)
    try:
        with registry.running(Run(registry, plan, passage.n_prompt, passage.spans, thinking=where.thinking)):
            logits: mx.array = first_of(registry.decoder.root(where.ids))
        layer = watch.first()
    finally:
        registry.release(plan.keys)
    if layer:
        acting = ", ".join(repr(entry.item.id) for entry in entries)
        return f"the residual is not finite from {layer} on" + (f" under {acting}" if acting else "")
    # A logit of minus infinity is a token that cannot come, and no fault.
    return HEAD if (mx.isnan(logits) | mx.isposinf(logits)).any().item() else ""


def origin_of(registry: Registry, rows: Any, entries: Sequence[Entry] = (), *, n_prompt: int | None = None) -> str:
    """The same for texts, ids (rows, tokens) or lists of them: what is found in the first that has such a place."""
    listed: Any = rows.tolist() if isinstance(rows, mx.array) else rows
    passages = (Passage(tuple(row), n_prompt or len(row), bos=registry.bos) for row in listed)
    return next(filter(None, (origin_in(registry, passage, entries) for passage in passages)), "")


@contextmanager
def explained(registry: Registry, rows: Any, plans: Sequence[Sequence[Entry]], ends: Sequence[int]) -> Iterator[None]:
    """A residual found not to be finite inside is told with where that begins in these texts.

    ``plans`` has the entries of each text or, one sequence, those of all; ``ends`` where each one's prompt ends.
    """
    try:
        yield
    except NotFinite:
        listed: Any = rows.tolist() if isinstance(rows, mx.array) else rows
        each = plans if len(plans) == len(listed) else [plans[0]] * len(listed)
        texts = zip(listed, each, ends, strict=True)
        found = (origin_of(registry, [row], entries, n_prompt=end) for row, entries, end in texts)
        if where := next(filter(None, found), ""):
            raise not_finite("The model's activations", where) from None
        raise


class _Watch(Recorder):
    """Whether the residual is finite before the first and behind each layer: one truth value a layer is kept."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.places = ((0, "resid_pre"), *((layer, "resid_post") for layer in range(registry.decoder.n_layers)))
        self._finite: dict[Key, mx.array] = {}

    def begin(self, run: Run | None, starts: bool) -> None:
        """A forward begins."""

    def record(self, key: Key, tensor: mx.array) -> None:
        """The residual at a layer."""
        self._finite[key] = mx.isfinite(tensor).all()

    def first(self) -> str:
        """The place from which on the residual is not finite; empty where it is."""
        mx.eval(*self._finite.values())
        for key in self.places:
            if key in self._finite and not self._finite[key].item():
                return "the embedding" if key[1] == "resid_pre" else f"layer {key[0]}"
        return ""
