"""The corpus under an SAE: a sample of what was trained on, and what was held out, each as a full index."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lens_tui import FeatureIndex, IndexSettings, load_sae
from lens_tui.tasks.index import index_text
from recipes.corpus import HELD_OUT_EVERY, HELD_OUT_INDEX, Domain

if TYPE_CHECKING:
    from lens_tui import LensModel

CONTEXT = 512
CHARACTERS_PER_TOKEN = 3.7
BEFORE, AFTER = 16, 8
"""Tokens of an example on a card, before and after its peak."""

FULL = IndexSettings(top_k=20, before=BEFORE, after=AFTER, sample_per_bin=0, full=True)
SLIM = IndexSettings(top_k=20, before=BEFORE, after=AFTER, sample_per_bin=0)


@dataclass(frozen=True, slots=True)
class Place:
    """A document of the corpus: its domain and its number in the domain's file, counted from 0."""

    domain: str
    number: int


@dataclass(frozen=True)
class Material:
    """An index of one SAE over some documents of the corpus, and where each document is from."""

    index: FeatureIndex
    places: tuple[Place, ...]

    @cached_property
    def domains(self) -> tuple[str, ...]:
        """The domains by name."""
        return tuple(sorted({place.domain for place in self.places}))

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """The first token of every sequence, and the end of the last one, ``(n + 1,)``."""
        begin = np.load(self.index.path / "sequence_starts.npy").astype(np.int64)
        return np.append(begin, self.index.n_tokens)

    @cached_property
    def documents(self) -> NDArray[np.int64]:
        """The document of every sequence, as a number in ``places``."""
        return np.asarray(np.load(self.index.path / "sequence_documents.npy"), np.int64)

    @cached_property
    def domain_of_token(self) -> NDArray[np.int64]:
        """The domain of every token, as a number in ``domains``, -1 where it is not counted."""
        of_place = np.array([self.domains.index(place.domain) for place in self.places])
        domain = np.repeat(of_place[self.documents], np.diff(self.starts))
        return np.where(self.index.special, -1, domain)

    @cached_property
    def domain_sizes(self) -> NDArray[np.int64]:
        """Counted tokens of every domain, ``(domains,)``."""
        domain = self.domain_of_token
        return np.bincount(domain[domain >= 0], minlength=len(self.domains))

    @cached_property
    def tokens_of_domain(self) -> tuple[NDArray[np.int64], ...]:
        """The counted tokens of every domain."""
        return tuple(np.flatnonzero(self.domain_of_token == number) for number in range(len(self.domains)))

    def sequences(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """The sequence that each token lies in."""
        return np.searchsorted(self.starts, tokens, side="right") - 1

    def place(self, token: int) -> Place:
        """The document that a token lies in."""
        return self.places[int(self.documents[self.sequences(np.array([token]))[0]])]


def numbers(domain: Domain) -> tuple[list[int], list[int]]:
    """The numbers in its file of a domain's training documents and of its held-out ones."""
    everything = range(len(domain.train) + len(domain.held_out))
    held = [number for number in everything if number % HELD_OUT_EVERY == HELD_OUT_INDEX]
    return [number for number in everything if number % HELD_OUT_EVERY != HELD_OUT_INDEX], held


def training_sample(domains: Sequence[Domain], tokens: int) -> list[tuple[Place, str]]:
    """Every n-th training document, with ``n`` of each domain so that domains give about equally many tokens."""
    budget = tokens / len(domains) * CHARACTERS_PER_TOKEN
    chosen = []
    for domain in sorted(domains, key=lambda domain: domain.name):
        step = max(1, round(sum(map(len, domain.train)) / budget))
        pairs = list(zip(numbers(domain)[0], domain.train, strict=True))[::step]
        chosen += [(Place(domain.name, number), text) for number, text in pairs]
    return chosen


def held_out(domains: Sequence[Domain], most: int | None = None) -> list[tuple[Place, str]]:
    """All held-out documents, or the first ``most`` of each domain."""
    chosen = []
    for domain in sorted(domains, key=lambda domain: domain.name):
        pairs = list(zip(numbers(domain)[1], domain.held_out, strict=True))[:most]
        chosen += [(Place(domain.name, number), text) for number, text in pairs]
    return chosen


def index_documents(
    model: LensModel, sae: Path, documents: Sequence[tuple[Place, str]], work: Path, settings: IndexSettings, rows: int
) -> Material:
    """Index documents (in the order of their domains' names) under ``work``; found done, it is not done again."""
    texts = work / "texts"
    texts.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys(place.domain for place, _ in documents):
        lines = [json.dumps({"text": text}) for place, text in documents if place.domain == name]
        (texts / f"{name}.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    result = index_text(
        model,
        [load_sae(sae)],
        texts,
        work / "index",
        settings=settings,
        context=CONTEXT,
        rows=rows,
        conventions=("norm",),
    )
    return Material(FeatureIndex(result.indexes[0]), tuple(place for place, _ in documents))
