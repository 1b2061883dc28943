"""A stand-in where nobody has labelled a feature: what it promotes and where it peaks. Not a label, and it says so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from lens_tui.records.sanitise import sanitise_token

from .read import FeatureIndex


@dataclass(frozen=True, slots=True)
class Description:
    """``promotes`` and ``peaks_on`` are tokens, safe to show; ``convention`` says how the first were found.

    Made by counting, without any language model: ``text`` begins with ``auto:``
    so that it is never taken for somebody's label.
    """

    feature: int
    promotes: tuple[str, ...]
    peaks_on: tuple[str, ...]
    convention: str
    n_examples: int

    @property
    def text(self) -> str:
        """One line, for a list."""
        if not self.n_examples and not self.promotes:
            return "auto: never active in the corpus"
        peaks = "peaks on " + _listed(self.peaks_on) if self.peaks_on else "never active in the corpus"
        return f"auto: {peaks}" + (f" · promotes {_listed(self.promotes)}" if self.promotes else "")


def describe(
    index: FeatureIndex, feature: int, token_text: Callable[[int], str], *, convention: str = "", n: int = 3
) -> Description:
    """The tokens a feature promotes and the tokens its top examples peak on (most frequent first), ``n`` of each.

    ``token_text`` is the tokenizer's; ``convention`` defaults to the index's first.
    """
    examples = index.examples(feature)
    peaks = Counter(sanitise_token(token_text(int(example.token_ids[example.peak]))) for example in examples)
    promotes: tuple[str, ...] = ()
    convention = convention or next(iter(index.conventions), "")
    if convention:
        ids = index.pushed(feature, convention)[0][:n]
        promotes = tuple(sanitise_token(token_text(int(token))) for token in ids)
    return Description(
        int(feature), promotes, tuple(text for text, _ in peaks.most_common(n)), convention, len(examples)
    )


def _listed(tokens: tuple[str, ...]) -> str:
    return ", ".join(f"‘{token}’" for token in tokens)
