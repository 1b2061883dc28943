"""What a model can do with many prompts at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lens_tui.records import Intervention, Sampling

from .batch import BatchGeneration
from .batch_setup import Prompts, start_batch
from .engine import Engine
from .prefix import PrefixCache
from .registry import Registry
from .tokens import Tokens


class BatchMethods:
    """The part of ``LensModel`` that generates batches.

    ``prefixes`` are the prompts' beginnings kept for reuse, by any of its ways to
    generate; ``engine`` says who schedules batches.
    """

    tokens: Tokens
    prefixes: PrefixCache
    engine: Engine
    _registry: Registry

    def stream_batch(
        self,
        prompts: Prompts,
        *,
        sampling: Sampling | None = None,
        interventions: Sequence[Intervention] | None = None,
        **options: Any,
    ) -> BatchGeneration:
        """Generate many prompts together by mlx-lm's continuous batching: an iterator of tokens and prompt ends.

        Each prompt is a text, chat messages, token ids, or a
        :class:`~lens_tui.records.Request` with interventions, sampling and stops of its
        own; for the others those given here hold, and those of the ``steer`` blocks
        around the call. ``options`` are mlx-lm's sampling options and the stops as for
        :meth:`stream`, ``raw``, ``top``, ``sampler``, ``logits_processors``, ``completion_batch_size``,
        ``prefill_batch_size``, ``prefill_step_size`` and ``max_kv_size``. A prompt's
        result is what it gives alone, its seed included, in float32; in lower precision
        a batch may round differently. Models that mlx-lm cannot batch rightly are run row
        by row; that is found out by a tiny batch before the first one.
        """
        return start_batch(
            self._registry,
            self.tokens,
            prompts,
            sampling=sampling,
            interventions=interventions,
            options=options,
            prefixes=self.prefixes,
            engine=self.engine,
        )

    def generate_batch(self, prompts: Prompts, **options: Any) -> list[str]:
        """Generate a text for each prompt, together; the options are those of :meth:`stream_batch`."""
        batch = self.stream_batch(prompts, **options)
        for _ in batch:
            pass
        return list(batch.texts)
