"""Seeded continuations of a prompt per domain, to read with one's own eyes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx

PROMPTS = {
    "stories": "Once upon a time, there was a little",
    "fairytales": "There was once a king who had",
    "novels": "The old man opened the door and",
    "shakespeare": "HAMLET: My lord, I",
    "bible": "And it came to pass, that",
    "poetry": "O Captain of the silent sea,\n",
    "recipes": "Ingredients:\n\n- 2 cups flour\n-",
    "dialogue": "User: I want to book a table for two.\nAssistant:",
    "encyclopedia": "The city of Lyon is",
    "science": "A star forms when",
    "history_law": "The Constitution gives Congress the power",
    "techdocs": "The SELECT statement is used to",
    "python": "def read_file(path):\n",
}


def samples(folder: Path, tokens: int = 60, temperature: float = 0.0, seed: int = 7) -> dict[str, str]:
    """Domain -> prompt and continuation by mlx-lm; greedy where the temperature is 0."""
    from mlx_lm import load, stream_generate
    from mlx_lm.sample_utils import make_sampler

    loaded: Any = load(str(folder))
    model, tokenizer = loaded
    texts = {}
    for name, prompt in PROMPTS.items():
        mx.random.seed(seed)
        ids = tokenizer.encode(prompt)
        replies = stream_generate(model, tokenizer, ids, max_tokens=tokens, sampler=make_sampler(temp=temperature))
        new = [reply.token for reply in replies]
        # Decode both together: mlx-lm's streaming text drops the first token's leading space.
        texts[name] = tokenizer.decode(ids + new, skip_special_tokens=True)
    return texts
