"""Set a run up: its cache, its plan and the options of its decoding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lens_tui.records import LensError

from .generation import DecodeOptions, RowDecoder
from .meter import Meter
from .prefix import PrefixCache
from .registry import Plan, Registry, Run
from .sampling import penalties_from
from .tokens import EncodedPrompt

OPTIONS = (
    "prefill_step_size",
    "progress",
    "sampler",
    "logits_processors",
    "kv_bits",
    "kv_group_size",
    "quantized_kv_start",
)
"""What ``stream`` and ``compare`` take beside sampling settings; the names are mlx-lm's."""


def row_decoder(
    registry: Registry,
    prompt: EncodedPrompt,
    plan: Plan,
    n_rows: int,
    decode: DecodeOptions,
    options: dict[str, Any],
    prompt_cache: list[Any] | None = None,
    prefixes: PrefixCache | None = None,
) -> RowDecoder:
    """A decoder of ``n_rows`` rows over a fresh cache, or over one that was filled under the same plan.

    ``prefixes`` are used and added to where the cache is a fresh one, not quantised.

    Raises :class:`LensError` for an option that does not exist, for a cache that was filled under
    other interventions, and for more tokens than a model with learnt positions has places for.
    """
    from mlx_lm.models.cache import make_prompt_cache

    extra = {name: options.pop(name) for name in OPTIONS if name in options}
    max_kv_size = options.pop("max_kv_size", None)
    if penalties := penalties_from(options):
        extra["logits_processors"] = [*penalties, *(extra.get("logits_processors") or ())]
    if options:
        raise LensError(f"There is no option {next(iter(options))!r}.", "See the docstring of LensModel.stream.")
    cache = prompt_cache if prompt_cache is not None else make_prompt_cache(registry.decoder.root, max_kv_size)
    n_prompt = registry.caches.check(cache, plan.fingerprint()) + len(prompt.ids)
    registry.decoder.check_positions(n_prompt + decode.sampling.max_tokens - 1)
    meter = Meter() if any(plan.rows) else None
    run = Run(registry, plan, n_prompt, prompt.spans, meter, shown=n_rows if decode.kl else None)
    if prompt_cache is not None or extra.get("kv_bits") is not None:
        prefixes = None
    return RowDecoder(
        registry,
        run,
        prompt.ids,
        n_rows,
        cache,
        replace(decode, **extra),
        prompt.thinking,
        prompt.inside,
        prefixes,
        max_kv_size,
    )
