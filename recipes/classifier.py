"""Which domain a passage is of: naive Bayes on its bag of words, trained on the corpus' training documents.

A passage is what it has of lower-cased words, punctuation marks, numbers (all one word) and line breaks
(three kinds: plain, before a blank line, before an indentation). The score of a domain is
the sum of log p(word | domain) over the words that are known, with the same prior for every domain
(multinomial naive Bayes with additive smoothing; McCallum & Nigam 1998).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recipes.corpus import Domain
from recipes.passages import draw

PASSAGES = 6000
"""Passages of a domain that it is trained on, at most, so that no domain is known much better than another."""
LEAST = 5
SMOOTHING = 0.1
_WORDS = re.compile(r"[a-z]+(?:'[a-z]+)?|\d+|\n+[ \t]*|[^\w\s]")


def words(text: str) -> list[str]:
    """The words of a text in order; a number is ``0``, line breaks are ``\\n``, ``\\n\\n`` and ``\\n `` (indented)."""
    return [_line_break(word) if word[0] == "\n" else "0" if word[0].isdigit() else word for word in _found(text)]


def _found(text: str) -> list[str]:
    return _WORDS.findall(text.lower())


def _line_break(word: str) -> str:
    return "\n " if word[-1] in " \t" else word[:2]


@dataclass(frozen=True)
class Classifier:
    """Domains, known words, and log p(word | domain), float32 (words, domains)."""

    domains: tuple[str, ...]
    vocabulary: tuple[str, ...]
    logprobs: NDArray[np.float32]
    _places: Mapping[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_places", {word: place for place, word in enumerate(self.vocabulary)})

    def scores(self, text: str) -> NDArray[np.float64]:
        """The summed log-probability of the text's known words under each domain (domains,)."""
        rows = [self._places[word] for word in words(text) if word in self._places]
        total: NDArray[np.float64] = self.logprobs[rows].sum(axis=0, dtype=np.float64)
        return total

    def domain(self, text: str) -> str:
        """The most likely domain; an empty string for a text without a known word, which is of none."""
        scores = self.scores(text)
        return self.domains[int(scores.argmax())] if scores.any() else ""

    def save(self, path: Path) -> None:
        """Write it as one npz file, without pickle."""
        path.parent.mkdir(parents=True, exist_ok=True)
        names = json.dumps({"domains": self.domains, "vocabulary": self.vocabulary}).encode()
        np.savez_compressed(path, logprobs=self.logprobs, names=np.frombuffer(names, np.uint8))


def load(path: Path) -> Classifier:
    """Read what :meth:`Classifier.save` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        names = json.loads(stored["names"].tobytes())
        return Classifier(tuple(names["domains"]), tuple(names["vocabulary"]), stored["logprobs"])


def fit(texts: Mapping[str, Sequence[str]], *, least: int = LEAST, smoothing: float = SMOOTHING) -> Classifier:
    """Count words by domain; those that all domains together have fewer than ``least`` times are left out."""
    counted = {name: Counter(word for text in some for word in words(text)) for name, some in texts.items()}
    every: Counter[str] = Counter()
    for counts in counted.values():
        every.update(counts)
    vocabulary = tuple(sorted(word for word, count in every.items() if count >= least))
    table = np.array([[counts[word] for counts in counted.values()] for word in vocabulary], np.float64) + smoothing
    return Classifier(tuple(counted), vocabulary, np.log(table / table.sum(axis=0)).astype(np.float32))


def train(domains: Sequence[Domain], passages: int = PASSAGES) -> Classifier:
    """Fit it to passages of the training documents of every domain."""
    return fit({domain.name: draw(domain.train, passages) for domain in domains})


def accuracy(classifier: Classifier, domains: Sequence[Domain], passages: int = 400) -> dict[str, dict[str, float]]:
    """For each domain the shares of passages of held-out documents given to each domain, largest first."""
    return {
        domain.name: shares([classifier.domain(text) for text in draw(domain.held_out, passages)]) for domain in domains
    }


def shares(found: Sequence[str]) -> dict[str, float]:
    """How often each name is among ``found``, as shares, largest first."""
    return {name: count / len(found) for name, count in Counter(found).most_common()}
