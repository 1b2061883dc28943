"""A byte-level BPE tokenizer trained on the corpus, saved as mlx-lm and transformers read it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from recipes.corpus import SEPARATOR, Domain

END_OF_TEXT = 0
"""The id of the marker that begins every document: both BOS and EOS of the model."""

# Words keep one leading space or sign, digits come at most two at a time, runs of signs take the line
# breaks behind them, and white space is kept in runs so that indented source text stays short.
_PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def train_tokenizer(
    domains: Sequence[Domain], vocabulary: int = 8192, characters_per_domain: int = 5_000_000, seed: int = 0
) -> Tokenizer:
    """Train byte-level BPE (Sennrich et al. 2016, on bytes as in GPT-2) on the training documents.

    Each domain gives at most ``characters_per_domain`` characters, drawn by shuffled
    document, so that the largest domain does not own the merges.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(domains, characters_per_domain, seed), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SEPARATOR} $A", special_tokens=[(SEPARATOR, END_OF_TEXT)]
    )
    return tokenizer


DIALOGUE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] | trim + '\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] | trim + '\n' }}"
    "{% else %}{{ raise_exception('the dialogues it was trained on have turns of user and assistant only') }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""The form of the dialogues in the training text. It is not the default template: other texts go in as they are."""


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    facts = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SEPARATOR,
        "eos_token": SEPARATOR,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "chat_template": [{"name": "dialogue", "template": DIALOGUE}],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read the ``tokenizer.json`` of a folder."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def _sample(domains: Sequence[Domain], characters: int, seed: int) -> Iterator[str]:
    shuffler = random.Random(seed)
    for domain in domains:
        documents = list(domain.train)
        shuffler.shuffle(documents)
        taken = 0
        for document in documents:
            yield document
            taken += len(document)
            if taken >= characters:
                break
