"""How the next token is chosen; the names are mlx-lm's."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling settings. ``temp`` 0 is greedy.

    ``seed`` makes a run repeatable: with the same settings, model, machine and
    batch shape the same tokens come out. Every arm of a comparison draws from
    the same random numbers, so that texts differ by the intervention alone.
    ``min_tokens_to_keep`` goes with ``min_p``; with ``xtc_probability`` the tokens above
    ``xtc_threshold`` but the least likely of them are left out at a step, save those of
    ``xtc_special_tokens``. ``stop`` are texts that end a row and are left out of it, however they are cut
    into tokens; ``stop_ids`` are token ids that end it beside the tokenizer's own.
    """

    max_tokens: int = 128
    temp: float = 0.0
    top_p: float = 0.0
    min_p: float = 0.0
    top_k: int = 0
    repetition_penalty: float = 0.0
    repetition_context_size: int = 20
    seed: int = 0
    min_tokens_to_keep: int = 1
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    xtc_special_tokens: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
