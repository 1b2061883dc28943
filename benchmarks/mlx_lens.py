"""Steered generation and a scale search, here and in mlx-lens 0.1.2 (``pip install mlx-lens==0.1.2``), in turns.

The model is measured as it is and in bfloat16 (dequantised), where mlx-lens makes everything behind a float32 vector
float32; a vector cast by hand is measured too. The scale search is this library's ``find_scale`` against the bisection
of mlx-lens' own example, from 0 to 512 and to 2 %, one loss a text and scale; both search for +0.3 nat on the same
three texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import mlx.core as mx
from mlx_lm.utils import dequantize_model, load

from lens_tui import LensModel, SteeringVector, demo, find_scale
from lens_tui.lens.vectors import SAMPLE_TEXTS
from lens_tui.records import Add

from .generation import PROMPT, on_device
from .machine import Options
from .report import Row, absent, of_speeds, of_times
from .turns import medians

try:
    import mlx_lens  # type: ignore[import-not-found]
except ImportError:
    mlx_lens = None

TARGET = 0.3
LIMIT = 512.0
KINDS = ("as it is", "bfloat16")
FLOAT32, CAST, HERE = "mlx-lens, float32 vector", "mlx-lens, vector cast by hand", "here"
BISECTION, SEARCH = "mlx-lens, its example's bisection", "find_scale"


def libraries(path: str, bfloat16: bool) -> tuple[LensModel, Any]:
    """Both libraries' models over the same weights, each with its own layers."""
    loaded = []
    for _ in range(2):
        model, tokenizer = load(path)[:2]
        if bfloat16:
            model = dequantize_model(model)
            model.set_dtype(mx.bfloat16)
        mx.eval(model.parameters())
        loaded.append((model, tokenizer))
    with patch.object(mlx_lens.model, "_mlx_load", lambda _path: loaded[1]):
        return LensModel.from_model(*loaded[0], name=path), mlx_lens.LensModel(path)


def direction(lens: LensModel) -> mx.array:
    drawn = mx.random.normal((lens.d_model,), key=mx.random.key(0))
    return drawn / mx.linalg.norm(drawn)


def generations(ours: LensModel, theirs: Any, tokens: int) -> dict[str, Callable[[], int]]:
    """Each makes ``tokens`` tokens (greedily, no end) and returns how many."""
    vector, layer = direction(ours), ours.n_layers // 2
    cast = vector.astype(ours.forward([1, 2]).dtype)

    def no_end(lens: Any) -> None:
        lens.tokenizer.eos_token_ids = set()

    no_end(ours)
    no_end(theirs)

    def here() -> int:
        with ours.steer(layer, vector, 8.0):
            ours.generate(PROMPT, max_tokens=tokens, raw=True)
        return tokens

    def there(given: mx.array | None) -> Callable[[], int]:
        def work() -> int:
            if given is None:
                theirs.generate(PROMPT, max_tokens=tokens)
            else:
                with theirs.steer(layer, given, 8.0):
                    theirs.generate(PROMPT, max_tokens=tokens)
            return tokens

        return work

    return {
        FLOAT32: there(vector),
        CAST: there(cast),
        HERE: here,
    }


def searches(ours: LensModel, theirs: Any) -> dict[str, Callable[[], tuple[float, float]]]:
    """Each returns a scale and the loss it adds, both by its own library's account."""
    vector, layer = direction(ours), ours.n_layers // 2
    texts = [list(ours.tokens.encode(text)) for text in SAMPLE_TEXTS[:3]]
    record = Add(id="search", layer=layer, vector=SteeringVector.of("random", vector, layer), scale=1.0)

    def here() -> tuple[float, float]:
        found = find_scale(ours, record, target=TARGET, texts=texts, start=1.0, limit=LIMIT, hold_out=False)
        return found.scale, found.value

    def there() -> tuple[float, float]:
        def mean() -> float:
            return sum(theirs.loss(text) for text in texts) / len(texts)

        def added(scale: float) -> float:
            with theirs.steer(layer, vector, scale):
                return mean() - base

        base, low, high = mean(), 0.0, LIMIT
        for _ in range(15):
            middle = (low + high) / 2
            low, high = (middle, high) if added(middle) < TARGET else (low, middle)
            if high - low < 0.02 * high:
                break
        return (low + high) / 2, added((low + high) / 2)

    return {BISECTION: there, SEARCH: here}


def rows(options: Options) -> Iterator[Row]:
    """Both kinds of weights; the search only where it is not a quick look."""
    if mlx_lens is None:
        yield absent("mlx-lens: generation and scale search", "not here: pip install mlx-lens==0.1.2")
        return
    tokens = 32 if options.quick else 64
    for kind in KINDS:
        ours, theirs = libraries(str(demo.model_path()), kind == "bfloat16")
        works = generations(ours, theirs, tokens)
        found = medians({name: on_device(work) for name, work in works.items()}, options.repeats(3))
        rate = {name: tokens / seconds for name, seconds in found.items()}
        for peer in (FLOAT32, CAST):
            yield of_speeds(f"bundled model, {kind}: {tokens} steered tokens", rate[HERE], rate[peer], peer)
        if not options.quick:
            found = medians({name: on_device(work) for name, work in searches(ours, theirs).items()}, 1, unmeasured=0)
            yield of_times(f"bundled model, {kind}: scale for +0.3 nat", found[SEARCH], found[BISECTION], BISECTION)
