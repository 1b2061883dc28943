"""From logits to tokens: distributions over the vocabulary, and the samplers made of sampling settings.

Log-probabilities, KL and cross-entropy are in float32 and have their one place here. Rows of a batch share random
numbers.
"""

from __future__ import annotations

import math
import operator
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import mlx.core as mx

from lens_tui.records import Candidate, LensError, Sampling
from lens_tui.records.interventions import as_number
from lens_tui.records.run import LIMITS

from ..architecture.ranks import agreed_seed
from ..tokens import Tokens

Sampler = Callable[[mx.array], mx.array]
LogitsProcessor = Callable[[mx.array, mx.array], mx.array]


def settings_from(sampling: Sampling | None, options: dict[str, Any]) -> Sampling:
    """Settings from a record, changed by options of its fields' names (``temperature``: ``temp``); takes those out."""
    if "temperature" in options:
        options["temp"] = options.pop("temperature")
    names = [field.name for field in fields(Sampling)]
    base = sampling or Sampling()
    known = {name: options.pop(name) for name in names if name in options}
    if known.get("seed", 0) is None:
        known["seed"] = agreed_seed(int.from_bytes(_entropy(), "big"))
    known = {name: value if value is not None else getattr(Sampling(), name) for name, value in known.items()}
    values = {name: known.get(name, getattr(base, name)) for name in names}
    return check_sampling(Sampling(**values))


def check_sampling(sampling: Sampling) -> Sampling:
    """The settings, a single stop or a list of them as a tuple, or :class:`LensError` for the first that cannot be."""
    whole = {name: whole_number(getattr(sampling, name), name) for name in _WHOLE}
    real = {name: as_number(getattr(sampling, name), f"The sampling option {name}") for name in _REAL}
    lists = {name: _ids(getattr(sampling, name), name) for name in ("stop_ids", "xtc_special_tokens")}
    sampling = replace(sampling, stop=_several(sampling.stop, str, "stop"), **whole, **real, **lists)  # type: ignore[arg-type]
    if not all(isinstance(text, str) and text for text in sampling.stop):
        raise LensError("A stop text is empty or not a text.", "Give texts of at least one character.")
    for name, (low, high) in LIMITS.items():
        if not low <= getattr(sampling, name) <= high:
            said = f"The sampling option {name} cannot be {getattr(sampling, name)!r}."
            raise LensError(said, f"It goes from {low:,} to {high:,}.")
    if 0.0 < sampling.temp < 1e-30:  # logits divided by it do not fit float32
        raise LensError(f"The sampling option temp cannot be {sampling.temp!r}.", "Give 0 for the likeliest token.")
    return sampling


_WHOLE = ("max_tokens", "top_k", "min_tokens_to_keep", "repetition_context_size", "seed")
_REAL = ("temp", "top_p", "min_p", "xtc_probability", "xtc_threshold", "repetition_penalty")


def whole_number(value: Any, name: str) -> int:
    """A whole number as an int. Raises :class:`LensError`."""
    try:
        return operator.index(None if isinstance(value, bool) else value)  # type: ignore[arg-type]
    except TypeError:
        raise LensError(f"The sampling option {name} is {value!r}.", "Give a whole number.") from None


def _several(value: Any, kind: type, name: str) -> tuple[Any, ...]:
    if isinstance(value, kind):
        return (value,)
    if not isinstance(value, Iterable):
        raise LensError(f"The sampling option {name} is {value!r}.", "Give one, or a list.")
    return tuple(value)


def _ids(value: Any, name: str) -> tuple[int, ...]:
    return tuple(whole_number(item, name) for item in _several(value, int, name))


class Seeded:
    """A sampler of its own seed: the Gumbel-max trick with one noise vector a step for all rows it is given.

    Rows with the same distribution choose the same token. The filters and their order are mlx-lm's.
    """

    def __init__(self, sampling: Sampling, vocab_size: int) -> None:
        self.sampling = sampling
        self.key = mx.random.key(sampling.seed)
        self._filters = _filters(sampling, vocab_size)

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Token ids (rows,) from log-probabilities (rows, vocabulary)."""
        self.key, key = mx.random.split(self.key)
        return self.pick(logprobs, key, mx.random.gumbel((1, logprobs.shape[-1]), key=key))

    def pick(self, logprobs: mx.array, key: mx.array, noise: mx.array) -> mx.array:
        """Token ids (rows,) by noise that has been drawn, (1 or rows, vocabulary)."""
        for apply in self._filters:
            logprobs = apply(logprobs, key)
        return mx.argmax(logprobs * (1.0 / self.sampling.temp) + noise, axis=-1)

    @property
    def alike(self) -> tuple[float, ...] | None:
        """Equal for samplers that may pick side by side; ``None``: alone only, for its filters draw by the step's key.

        All but the seed and what does not concern the choice.
        """
        given = self.sampling
        if given.xtc_probability > 0.0:
            return None
        return (given.temp, given.top_p, given.min_p, given.top_k, given.min_tokens_to_keep)


class SideBySide:
    """Rows of a batch that differ in their seed alone choose in one go: the tokens that each would choose alone.

    Their random states are kept in one array for as long as the same rows are there.
    """

    def __init__(self) -> None:
        self._rows: tuple[Seeded, ...] = ()
        self._keys: mx.array | None = None

    def choose(self, samplers: Sequence[Sampler], logprobs: mx.array) -> mx.array | None:
        """Token ids (rows,), or ``None`` where rows have to choose one by one."""
        rows = tuple(sampler for sampler in samplers if isinstance(sampler, Seeded))
        alike = {row.alike for row in rows}
        if len(rows) < len(samplers) or len(alike) != 1 or None in alike or len(set(map(id, rows))) < len(rows):
            self._hand_back()
            return None
        if len(rows) != len(self._rows) or any(new is not old for new, old in zip(rows, self._rows, strict=True)):
            self._hand_back()
            self._rows, self._keys = rows, mx.stack([row.key for row in rows])
        assert self._keys is not None
        both = _split_each(self._keys)
        self._keys, keys = both[:, 0], both[:, 1]
        width = logprobs.shape[-1]
        noise = mx.vmap(lambda key: mx.random.gumbel((width,), key=key))(keys)
        return rows[0].pick(logprobs, keys[0], noise)

    def _hand_back(self) -> None:
        """Give the rows their random states."""
        if self._keys is not None:
            for row, key in zip(self._rows, self._keys, strict=True):
                row.key = key
        self._rows, self._keys = (), None


_split_each: Callable[[mx.array], mx.array] = mx.vmap(lambda key: mx.random.split(key))


def make_sampler(sampling: Sampling, vocab_size: int) -> Sampler:
    """A function from log-probabilities (rows, vocabulary) to token ids (rows,): greedy at ``temp`` 0."""
    if sampling.temp == 0.0:
        return lambda logprobs: mx.argmax(logprobs, axis=-1)
    return Seeded(sampling, vocab_size)


def _filters(sampling: Sampling, vocab_size: int) -> list[Callable[[mx.array, mx.array], mx.array]]:
    """What each step's log-probabilities go through, given the step's random key."""
    from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p

    filters: list[Callable[[mx.array, mx.array], mx.array]] = []
    if 0.0 < sampling.top_p < 1.0:
        filters.append(lambda logprobs, key: apply_top_p(logprobs, sampling.top_p))
    if sampling.min_p > 0.0:
        keep = min(sampling.min_tokens_to_keep, vocab_size)
        filters.append(lambda logprobs, key: apply_min_p(logprobs, sampling.min_p, keep))
    if sampling.xtc_probability > 0.0:
        for token in sampling.xtc_special_tokens:
            if not 0 <= token < vocab_size:
                raise LensError(f"There is no token {token} for xtc_special_tokens: the vocabulary has {vocab_size}.")
        filters.append(lambda logprobs, key: _without_top_choices(logprobs, sampling, key))
    if 0 < sampling.top_k < vocab_size:
        filters.append(lambda logprobs, key: apply_top_k(logprobs, sampling.top_k))
    return filters


def _without_top_choices(logprobs: mx.array, sampling: Sampling, key: mx.array) -> mx.array:
    """mlx-lm's XTC, with one draw a step for all rows by the run's own seed (mlx-lm draws from MLX's global state)."""
    from mlx_lm.sample_utils import apply_xtc

    taken = apply_xtc(logprobs, 1.0, sampling.xtc_threshold, list(sampling.xtc_special_tokens))
    drawn = mx.random.uniform(key=mx.random.split(key)[0])
    return mx.where(drawn < sampling.xtc_probability, taken, logprobs)


def best(logprobs: mx.array, count: int) -> tuple[mx.array, mx.array]:
    """The ``count`` most likely tokens of each row, best first: ids and log-probabilities (rows, count)."""
    count = min(count, logprobs.shape[-1])
    some = mx.argpartition(-logprobs, kth=count - 1, axis=-1)[:, :count]
    values = mx.take_along_axis(logprobs, some, axis=-1)
    order = mx.argsort(-values, axis=-1)
    return mx.take_along_axis(some, order, axis=-1), mx.take_along_axis(values, order, axis=-1)


def candidates(tokens: Tokens, ids: Sequence[int], logprobs: Sequence[float]) -> tuple[Candidate, ...]:
    """A token's candidates as records, those that cannot come left out."""
    pairs = zip(ids, logprobs, strict=True)
    return tuple(Candidate(int(at), tokens.display(int(at)), value) for at, value in pairs if value > -math.inf)


PENALTIES = (
    "logit_bias",
    "presence_penalty",
    "presence_context_size",
    "frequency_penalty",
    "frequency_context_size",
)
"""Options of mlx-lm's ``make_logits_processors`` beside the repetition penalty."""


def penalties_from(options: dict[str, Any], vocab_size: int) -> list[LogitsProcessor]:
    """mlx-lm's processors for the options named in :data:`PENALTIES`; takes those out.

    Raises :class:`LensError` for what is not a number, and for ids outside the vocabulary: MLX would write beyond the
    logits.
    """
    from mlx_lm.sample_utils import make_logits_processors

    taken = {name: options.pop(name) for name in PENALTIES if name in options}
    given = {name: value for name, value in taken.items() if value is not None}
    for name, value in given.items():
        if name == "logit_bias":
            given[name] = _biases(value, vocab_size)
        elif name.endswith("_context_size"):
            given[name] = whole_number(value, name)
            if given[name] < 1:
                raise LensError(f"The sampling option {name} cannot be {value!r}.")
        else:
            given[name] = as_number(value, f"The sampling option {name}")
    return make_logits_processors(**given)


def _biases(value: Any, vocab_size: int) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise LensError(f"The sampling option logit_bias is {type(value).__name__}.", "Give token ids with numbers.")
    never = float("-inf")  # what people write who want a token never
    found = {
        whole_number(token, "logit_bias"): never if bias == never else as_number(bias, "A number of logit_bias")
        for token, bias in value.items()
    }
    for token in found:
        if not 0 <= token < vocab_size:
            raise LensError(f"There is no token {token} for logit_bias: the vocabulary has {vocab_size}.")
    return found


def make_processors(sampling: Sampling, given: Sequence[LogitsProcessor] | None) -> list[LogitsProcessor]:
    """mlx-lm's logits processors for the settings, then those given; each takes one row's tokens and logits."""
    from mlx_lm.sample_utils import make_repetition_penalty

    processors: list[LogitsProcessor] = []
    if sampling.repetition_penalty not in (0.0, 1.0):
        processors.append(make_repetition_penalty(sampling.repetition_penalty, sampling.repetition_context_size))
    return [*processors, *(given or ())]


def _entropy() -> bytes:
    return secrets.token_bytes(4)


def log_softmax(logits: mx.array) -> mx.array:
    """Log-probabilities in float32 of logits along the last axis."""
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def kl(p: mx.array, q: mx.array) -> mx.array:
    """D(p || q) in nats along the last axis of float32 log-probabilities; NaN where either is not a distribution.

    Never below 0 by rounding. A token that ``p`` cannot choose adds nothing: 0 log 0 = 0.
    """
    share = mx.exp(p)
    terms = mx.where(share == 0.0, 0.0, share * (p - q))
    return mx.maximum(terms.sum(axis=-1), 0.0)  # MLX's comparison and maximum keep NaN


def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """``-log p(target)`` in nats, ``(...,)``, of logits ``(..., vocabulary)`` and token ids ``(...,)``; in float32."""
    logits = logits.astype(mx.float32)
    return mx.logsumexp(logits, axis=-1) - mx.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
