"""Batches through vllm-mlx's ``EngineCore``: its scheduler decides who runs, this library what a row is and chooses.

The engine is given a model that hooks each row by itself and a logits processor a
request that makes the choice, so sampling, seeds and log-probabilities are those of
the built-in way, also at a temperature (the engine has one sampler for all). Its
prefix cache knows nothing of interventions and is switched off.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, Literal

import mlx.core as mx

from lens_tui.records import ArmEnd, LensError, Token

from .batch import Batch
from .batch_model import BatchModel, RowLabels
from .batch_rows import Launched, Row
from .steps import best

Engine = Literal["built-in", "vllm-mlx"]


def check_engine(use_engine: bool | str) -> Engine:
    """The engine that ``use_engine`` names, if it is installed. Raises :class:`LensError`."""
    if isinstance(use_engine, bool):
        return "built-in"
    if use_engine != "vllm-mlx":
        raise LensError(f"There is no engine {use_engine!r}.", "Use True (the built-in one) or 'vllm-mlx'.")
    if find_spec("vllm_mlx") is None:
        raise LensError(
            "vllm-mlx is not installed.",
            "pip install 'mlx-lens-tui[engine]' && pip install --no-deps vllm-mlx",
        )
    return "vllm-mlx"


class EngineModel:
    """The model as the engine sees it. Caches made for it end in the label of the row that is inserted next."""

    def __init__(self, model: BatchModel, root: Any, max_kv_size: int | None) -> None:
        self.model = model
        self.next_rows: deque[int] = deque()
        self._root = root
        self._max_kv_size = max_kv_size

    def __call__(self, inputs: mx.array, cache: list[Any], **_: Any) -> mx.array:
        """The last position's logits (rows, 1, vocabulary), float32."""
        return self.model(inputs, cache)

    @property
    def layers(self) -> Any:
        """The model's own."""
        return self._root.layers

    def make_cache(self) -> list[Any]:
        """Caches of one row: the one handed over first that has none yet."""
        from mlx_lm.models.cache import make_prompt_cache

        cache = make_prompt_cache(self._root, self._max_kv_size)
        return [*cache, RowLabels([self.next_rows.popleft()], [0])]


class EngineBatch(Batch):
    """A batch that vllm-mlx schedules."""

    def _together(self) -> Iterator[Token | ArmEnd]:
        if self.tokens.tokenizer is None:
            raise LensError("vllm-mlx needs a tokenizer, and this model was given none.", "Leave use_engine out.")
        facade = EngineModel(self.model, self.registry.decoder.root, self.options.max_kv_size)
        self._generator = _core(facade, self.tokens.tokenizer, self._config())
        scheduler = self._generator.scheduler
        while self._unfinished():
            self._submit(facade, scheduler)
            for output in scheduler.step().outputs:
                row = self.rows[int(output.request_id)]
                for token in output.new_token_ids:
                    if not row.reason and row.launched:
                        yield from self._emit(row, int(token), *row.launched.popleft())
                if row.reason and not output.finished:
                    scheduler.abort_request(output.request_id)

    def _submit(self, facade: EngineModel, scheduler: Any) -> None:
        """Hand over the rows that have joined since the last step, in order."""
        from vllm_mlx.request import Request, SamplingParams

        for row in self._waiting:
            self._hold(row)
            params = SamplingParams(
                max_tokens=row.sampling.max_tokens,
                temperature=0.0,
                top_p=1.0,
                logits_processors=[_chooser(row, self.model)],
            )
            facade.next_rows.append(row.index)
            scheduler.add_request(Request(str(row.index), list(row.plan.prompt.ids), params))
        self._waiting.clear()

    def leave(self, row: Row) -> None:
        """A row ends where it stands."""
        if not row.reason and row not in self._waiting and self._generator is not None:
            self._generator.scheduler.abort_request(str(row.index))
        super().leave(row)

    def _config(self) -> dict[str, Any]:
        prefill = self._prefill_rows
        return {
            "enable_prefix_cache": False,
            "prefill_batch_size": prefill,
            "completion_batch_size": max(self.options.completion_batch_size, prefill),
            "prefill_step_size": self.options.prefill_step_size,
        }


def _chooser(row: Row, model: BatchModel) -> Callable[[mx.array, mx.array], mx.array]:
    """A logits processor that chooses the row's token by its own settings and leaves the engine no other."""

    def choose(_: mx.array, logits: mx.array) -> mx.array:
        if row.index not in model.last:
            raise LensError(f"vllm-mlx has mixed up the rows of a batch (prompt {row.index}).", "Leave use_engine out.")
        logits = model.logits[model.last.index(row.index)][None]
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        chosen = row.choose(model.choosable(logits), model.choosable(logprobs))
        of_chosen = mx.take_along_axis(logprobs, chosen[:, None], axis=-1)[:, 0]
        scales = (model.scales[model.last.index(row.index)],)
        top = best(model.choosable(logprobs), row.top) if row.top else None
        made = Launched(len(model.last), of_chosen, top, scales, model.doses(), (model.last.index(row.index),))
        row.launched.append((made, 0))
        return mx.where(mx.arange(logits.shape[-1])[None] == chosen[:, None], 0.0, -mx.inf)

    return choose


def _core(model: EngineModel, tokenizer: Any, config: dict[str, Any]) -> Any:
    from vllm_mlx.engine_core import EngineConfig, EngineCore
    from vllm_mlx.mlx_streams import bind_generation_streams
    from vllm_mlx.scheduler import SchedulerConfig

    bind_generation_streams()
    return EngineCore(model, tokenizer, EngineConfig(scheduler_config=SchedulerConfig(**config)))
