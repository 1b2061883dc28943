"""Text for the bundled index that is free to ship: what the model writes itself, and public-domain books held out.

The model writes from nothing but its first token and from the prompts of
``recipes.prompts``, each document under a seed of its own. What repeats a run of
words of a training document that is not in the public domain is thrown away.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens_tui.records import Request, Sampling
from recipes.copied import Copied
from recipes.corpus import HELD_OUT_EVERY, HELD_OUT_INDEX, Domain
from recipes.prompts import PROMPTS

if TYPE_CHECKING:
    from lens_tui import LensModel

FREE = ("bible", "novels", "poetry", "recipes", "shakespeare")
"""The domains whose every text is in the public domain, by the list of sources in the model card."""

_PIECE = re.compile(r".+?(?:\n+|(?<=[.!?;:,]) +|\Z)|\n+", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Settings:
    """How much text, and how it is made.

    Attributes:
        written: tokens that the model writes; half of the documents begin from nothing.
        books: tokens of held-out public-domain documents at most, in equal parts by domain.
        temperature: of sampling.
        shortest, longest: tokens of a written document, drawn evenly; fewer if the model ends it before.
        passage: tokens of a passage of a book at most.
        least: shorter documents and passages are left out.
        rows: documents written side by side.
        rounds: batches of rows at most, so that it ends whatever the model writes.
        seed: of everything.
    """

    written: int = 150_000
    books: int = 100_000
    temperature: float = 0.9
    shortest: int = 256
    longest: int = 480
    passage: int = 400
    least: int = 48
    rows: int = 256
    rounds: int = 40
    seed: int = 7


@dataclass(frozen=True, slots=True)
class Text:
    """A document: its file's name, its domain ("" if it was written from nothing), and where it is from."""

    kind: str
    domain: str
    text: str
    tokens: int
    source: str


def write(model: LensModel, domains: Sequence[Domain], out: Path, settings: Settings) -> dict[str, Any]:
    """Make the texts and write ``KIND.jsonl`` files into ``out`` and ``facts.json`` beside them; returns the facts."""
    guarded = (document for domain in domains if domain.name not in FREE for document in domain.train)
    texts, dropped = written(model, Copied(guarded), settings)
    texts += books(model, domains, settings)
    out.mkdir(parents=True, exist_ok=True)
    kinds = sorted({text.kind for text in texts})
    for kind in kinds:
        rows = [json.dumps(_row(text), ensure_ascii=False) for text in texts if text.kind == kind]
        (out / f"{kind}.jsonl").write_text("".join(row + "\n" for row in rows), encoding="utf-8")
    counted = {kind: [text.tokens for text in texts if text.kind == kind] for kind in kinds}
    facts = {
        "settings": asdict(settings),
        "documents": {kind: len(numbers) for kind, numbers in counted.items()},
        "tokens": {kind: sum(numbers) for kind, numbers in counted.items()},
        "dropped_as_copies": dropped,
    }
    (out / "facts.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return facts


def _row(text: Text) -> dict[str, str]:
    return {"text": text.text, "domain": text.domain, "source": text.source}


def written(model: LensModel, copied: Copied, settings: Settings) -> tuple[list[Text], dict[str, int]]:
    """What the model writes, up to ``settings.written`` tokens, and how many documents of each domain were copies."""
    texts: list[Text] = []
    dropped: dict[str, int] = {}
    total = 0
    for start in range(0, settings.rounds * settings.rows, settings.rows):
        for text in _batch(model, range(start, start + settings.rows), settings):
            if total >= settings.written:
                return texts, dropped
            if text.tokens < settings.least:
                continue
            if copied.share(text.text):
                dropped[text.domain or "unprompted"] = dropped.get(text.domain or "unprompted", 0) + 1
                continue
            texts.append(text)
            total += text.tokens
    return texts, dropped


def _batch(model: LensModel, places: range, settings: Settings) -> Iterator[Text]:
    """Documents by their place in the order: even places from nothing, odd ones from one prompt after the other."""
    asked = [_request(model, place, settings) for place in places]
    batch = model.stream_batch(
        [request for _, request in asked],
        completion_batch_size=settings.rows,
        prefill_batch_size=settings.rows,
    )
    for _ in batch:
        pass
    special = model.tokens.special_ids()
    for place, (domain, _), row in zip(places, asked, batch.records, strict=True):
        ids = [token for token in (*row.prompt_ids, *row.token_ids) if token not in special]
        text = model.tokens.decode(ids).rstrip("\ufffd")  # a character may be cut at the end
        kind = "prompted" if domain else "unprompted"
        yield Text(kind, domain, text, len(ids), f"written under seed {place} of {settings.seed}")


def _request(model: LensModel, place: int, settings: Settings) -> tuple[str, Request]:
    source = random.Random(settings.seed * 1_000_003 + place)
    sampling = Sampling(
        max_tokens=source.randint(settings.shortest, settings.longest),
        temp=settings.temperature,
        seed=source.getrandbits(31),
    )
    if place % 2 == 0:
        bos = model.tokens.bos
        assert bos is not None, "the bundled model's tokenizer has a first token"
        return "", Request([bos], sampling=sampling)
    domain, prompt = prompts()[place // 2 % len(prompts())]
    return domain, Request(prompt, sampling=sampling, raw=True)


def prompts(table: Mapping[str, Sequence[str]] = PROMPTS) -> list[tuple[str, str]]:
    """(domain, prompt), one of every domain before the second of any."""
    return [(name, table[name][turn]) for turn in range(max(map(len, table.values()))) for name in table]


def books(model: LensModel, domains: Sequence[Domain], settings: Settings) -> list[Text]:
    """Passages of held-out documents of the free domains, the first of every document before the second of any."""
    free = [domain for domain in domains if domain.name in FREE]
    texts: list[Text] = []
    for domain in free:
        budget = settings.books // len(free)
        for text in _in_turn([_passages(model, domain, n, settings) for n in range(len(domain.held_out))]):
            if text.tokens > budget:
                break
            texts.append(text)
            budget -= text.tokens
    return texts


def _in_turn(documents: Sequence[Sequence[Text]]) -> Iterator[Text]:
    for turn in range(max(map(len, documents), default=0)):
        yield from (passages[turn] for passages in documents if turn < len(passages))


def _passages(model: LensModel, domain: Domain, number: int, settings: Settings) -> list[Text]:
    place = HELD_OUT_INDEX + HELD_OUT_EVERY * number
    cut = cut_passages(domain.held_out[number], lambda text: len(model.tokens.encode(text)) - 1, settings.passage)
    return [
        Text(domain.name, domain.name, text, tokens, f"document {place} of {domain.name}")
        for text, tokens in cut
        if tokens >= settings.least
    ]


def cut_passages(text: str, count: Any, limit: int) -> list[tuple[str, int]]:
    """A text cut at ends of lines, sentences and clauses into passages of at most ``limit`` tokens by ``count``.

    A piece that is longer by itself stays whole. Nothing is lost but white space at the cuts.
    """
    passages: list[tuple[str, int]] = []
    gathered, size = "", 0
    for piece in _PIECE.findall(text):
        tokens = count(piece)
        if gathered and size + tokens > limit:
            passages.append((gathered, size))
            gathered, size = "", 0
        gathered, size = gathered + piece, size + tokens
    passages.append((gathered, size))
    trimmed = [passage.strip() for passage, _ in passages]
    return [(passage, count(passage)) for passage in trimmed if passage]
