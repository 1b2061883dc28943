"""What a storage type costs: size, held-out loss, speed, and what becomes of a steering dose."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from recipes.evaluate import score_domains
from recipes.export import load_float32, quantise
from recipes.samples import PROMPTS
from recipes.tokenizer import END_OF_TEXT, load_tokenizer
from recipes.tokens import TokenSet, load_tokens

VARIANTS: dict[str, dict[str, Any]] = {
    "8-bit, group 64, float32 scales": {"bits": 8, "group": 64, "dtype": "float32"},
    "8-bit, group 128, float32 scales": {"bits": 8, "group": 128, "dtype": "float32"},
    "8-bit, group 64, bfloat16 scales": {"bits": 8, "group": 64, "dtype": "bfloat16"},
    "4-bit, group 64, float32 scales": {"bits": 4, "group": 64, "dtype": "float32"},
}


def compare(
    folder: Path,
    tokens: Path,
    layer: int,
    documents: int,
    limit: int = 128,
    variants: Mapping[str, dict[str, Any]] = VARIANTS,
) -> Iterator[dict[str, Any]]:
    """One row per storage type, as it is measured; the first is the bf16 export computing in float32, the reference.

    Losses are over the first ``limit`` tokens of ``documents`` held-out documents of each domain: the same
    tokens for every type, so that their differences are paired.
    """
    held = {name: part.select(range(documents)) for name, part in load_tokens(tokens, "held_out").items()}
    held = {name: _shortened(part, limit) for name, part in held.items()}
    prompts = _prompts(folder)
    reference = load_float32(folder)
    plain, steered, direction, scale = _steered(reference, prompts, layer)
    yield {"type": "bfloat16 weights computed in float32", "bits_per_character": _loss(reference, held)}
    for name, model, size in _variants(folder, variants):
        yield {
            "type": name,
            "megabytes": size / 1e6,
            "bits_per_character": _loss(model, held),
            "tokens_per_second": tokens_per_second(model),
            **_dose(model, prompts, layer, (plain, steered, direction, scale)),
        }


def tokens_per_second(model: Any, tokens: int = 64) -> float:
    """Greedy decoding of one stream with mlx-lm's cache, from the median time of a step."""
    cache: Any = make_prompt_cache(model)
    mx.eval(model(mx.zeros((1, 16), mx.int32), cache))
    token, times = mx.zeros((1, 1), mx.int32), []
    for _ in range(tokens):
        begun = time.perf_counter()
        token = mx.argmax(model(token, cache)[:, -1:], axis=-1)
        mx.eval(token)
        times.append(time.perf_counter() - begun)
    return 1.0 / float(np.median(times))


def _variants(folder: Path, variants: Mapping[str, dict[str, Any]]) -> Iterator[tuple[str, Any, int]]:
    model, _ = load_model(folder)
    yield "bfloat16", model, (folder / "model.safetensors").stat().st_size
    with tempfile.TemporaryDirectory() as place:
        for name, how in variants.items():
            out = quantise(folder, Path(place) / name.replace(" ", "_"), **how)
            model, _ = load_model(out)
            yield name, model, (out / "model.safetensors").stat().st_size


def _shortened(tokens: TokenSet, limit: int) -> TokenSet:
    """The first ``limit`` tokens of each document; its characters are scaled alike."""
    lengths = np.diff(tokens.starts)
    kept = np.minimum(lengths, limit)
    rows = [tokens.document(index)[:limit] for index in range(len(tokens))]
    starts = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
    return TokenSet(np.concatenate(rows), starts, (tokens.characters * kept / lengths).astype(np.int64))


def _loss(model: Any, held: dict[str, TokenSet]) -> float:
    return score_domains(model, held, 512, 512)["all"].bits_per_character


def _prompts(folder: Path) -> list[list[int]]:
    tokenizer = load_tokenizer(folder)
    return [[END_OF_TEXT, *tokenizer.encode(text, add_special_tokens=False).ids] for text in PROMPTS.values()]


def _run(model: Any, ids: list[int], layer: int, vector: mx.array | None) -> tuple[mx.array, mx.array, mx.array]:
    """Last-position residual before and after the added vector, and the log-probabilities, each float32."""
    body = model.model
    h = body.embed_tokens(mx.array([ids]))
    before = after = h
    for index, block in enumerate(body.layers):
        h = block(h, "causal", None)
        if index == layer:
            before = h
            h = h if vector is None else h + vector.astype(h.dtype)
            after = h
    logits = body.embed_tokens.as_linear(body.norm(h))[0, -1].astype(mx.float32)
    return before[0, -1].astype(mx.float32), after[0, -1].astype(mx.float32), logits - mx.logsumexp(logits)


def _steered(
    model: Any, prompts: list[list[int]], layer: int
) -> tuple[list[mx.array], list[mx.array], mx.array, float]:
    """Log-probabilities without and with a seeded direction at 0.8 of the mean residual norm; direction; scale."""
    bare = [_run(model, ids, layer, None) for ids in prompts]
    norms = [float(mx.linalg.norm(row[0])) for row in bare]
    scale = 0.8 * sum(norms) / len(norms)
    vector = mx.random.normal((bare[0][0].size,), key=mx.random.key(0))
    vector = vector / mx.linalg.norm(vector)
    moved = [_run(model, ids, layer, scale * vector) for ids in prompts]
    return [row[2] for row in bare], [row[2] for row in moved], vector, scale


def _dose(
    model: Any, prompts: list[list[int]], layer: int, reference: tuple[list[mx.array], list[mx.array], mx.array, float]
) -> dict[str, float]:
    """How much of the vector the residual took up, and how far the steered output is from the reference's.

    ``dose``: projection of the residual's change on the direction over the scale asked for, mean and worst.
    ``small_dose``: the same at a hundredth of the scale. ``kl_to_reference``: mean KL divergence of the steered
    next-token distribution from the float32 reference's, in nats; ``kl_of_steering``: of the reference's own
    steered from its unsteered one, for size.
    """
    plain, steered, direction, scale = reference
    doses: dict[float, list[float]] = {1.0: [], 0.01: []}
    distances = []
    for ids, target in zip(prompts, steered, strict=True):
        for part, found in doses.items():
            before, after, output = _run(model, ids, layer, part * scale * direction)
            found.append(float((after - before) @ direction) / (part * scale))
            if part == 1.0:
                distances.append(_divergence(target, output))
    return {
        "dose_mean": float(np.mean(doses[1.0])),
        "dose_worst_error": float(np.abs(np.array(doses[1.0]) - 1).max()),
        "small_dose_mean": float(np.mean(doses[0.01])),
        "small_dose_worst_error": float(np.abs(np.array(doses[0.01]) - 1).max()),
        "kl_to_reference": float(np.mean(distances)),
        "kl_of_steering": float(np.mean([_divergence(a, b) for a, b in zip(steered, plain, strict=True)])),
    }


def _divergence(p: mx.array, q: mx.array) -> float:
    return float((mx.exp(p) * (p - q)).sum())
