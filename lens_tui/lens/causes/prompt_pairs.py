"""Two prompts side by side: their tokens, and which token of the one stands for which of the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lens_tui.records import LensError
from lens_tui.records.patch_grid import Direction, PromptPair, Span, Text

from ..forward import Core, one_text

Places = tuple[tuple[int, ...], tuple[int, ...]]
"""Tokens of the text that is patched, and for each the token of the other text that its activation comes from."""


@dataclass(frozen=True)
class Aligned:
    """A pair as token ids. ``spans`` are named tokens of both, clean first; without them all tokens, one to one."""

    pair: PromptPair
    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    spans: Mapping[str, Places]

    def columns(self, direction: Direction) -> list[tuple[str, Places]]:
        """What can be patched alone, each with a name: the named spans, or each token (then the name is empty)."""
        if not self.spans:
            return [("", ((at,), (at,))) for at in range(len(self.clean))]
        return [(name, turned(places, direction)) for name, places in self.spans.items()]

    def everything(self, direction: Direction) -> Places:
        """All that can be patched, together."""
        found = [places for _, places in self.columns(direction)]
        return tuple(at for places in found for at in places[0]), tuple(at for places in found for at in places[1])


def turned(places: Places, direction: Direction) -> Places:
    """Places (clean, corrupted) as (patched text, other text)."""
    clean, corrupted = places
    return (corrupted, clean) if direction == "denoise" else (clean, corrupted)


def several_pairs(pairs: PromptPair | Sequence[PromptPair]) -> list[PromptPair]:
    """One pair or several as a list. Raises :class:`LensError` for none, and for what is no pair."""
    several = [pairs] if isinstance(pairs, PromptPair) else list(pairs)
    if not several:
        raise LensError("There is no pair of prompts.", "Give at least one PromptPair.")
    for pair in several:
        if not isinstance(pair, PromptPair):
            raise LensError(f"A pair of prompts cannot be {type(pair).__name__}.", "Give PromptPair(clean, corrupted).")
    return several


def align(lens: Core, pair: PromptPair) -> Aligned:
    """The pair's token ids and which tokens belong together.

    Named spans of different lengths are aligned at their ends: the last tokens of both, as many as the shorter has. In
    a causal model a name's last token has read all of it.

    Raises:
        LensError: For prompts of different lengths without names, for a span that is not there, and for a prompt that
            is more than one text.
    """
    clean, corrupted = (one_text(lens, text) for text in (pair.clean, pair.corrupted))
    if not pair.spans and len(clean) != len(corrupted):
        raise LensError(
            f"The prompts have {len(clean)} and {len(corrupted)} tokens, so that no token of one stands for one of the "
            f"other: {tokens_in_line(lens, clean)} and {tokens_in_line(lens, corrupted)}.",
            "Make them equally long, or name what belongs together with the pair's spans.",
        )
    if clean == corrupted:
        raise LensError("The two prompts are the same tokens.", "Change what the metric asks about in one of them.")
    spans: dict[str, Places] = {}
    for name, (left, right) in pair.spans.items():
        first = places_of(lens, clean, pair.clean, left, f"{name!r} of the clean prompt")
        second = places_of(lens, corrupted, pair.corrupted, right, f"{name!r} of the corrupted prompt")
        count = min(len(first), len(second))
        spans[str(name)] = first[-count:], second[-count:]
    return Aligned(pair, clean, corrupted, spans)


def tokens_in_line(lens: Core, ids: Sequence[int]) -> str:
    """Tokens one by one, as ``The| Eiffel| Tower``; of many the first."""
    parts = [lens.tokens.display(token) for token in ids[:24]]
    return "|".join(parts) + ("|…" if len(ids) > 24 else "")


def places_of(lens: Core, ids: Sequence[int], text: Text, span: Span, what: str) -> tuple[int, ...]:
    """The tokens of a span: of places, or of words that the text has exactly once.

    Raises :class:`LensError` for places outside the text, and for words that are not there or there twice.
    """
    if not isinstance(span, str):
        start, stop = (int(end) + (len(ids) if end < 0 else 0) for end in span)
        if not 0 <= start < stop <= len(ids):
            raise LensError(f"Tokens {span[0]} to {span[1]} ({what}) are not in a text of {len(ids)} tokens.")
        return tuple(range(start, stop))
    if not isinstance(text, str) or not span:
        raise LensError(f"The words {span!r} ({what}) cannot be found in token ids.", "Give (start, stop) instead.")
    count = text.count(span)
    if count != 1:
        raise LensError(
            f"The words {span!r} ({what}) are {'not there' if not count else f'there {count} times'}.",
            "Give words that the prompt has once, or (start, stop).",
        )
    begin = text.index(span)
    ends = _ends(lens, ids, text)
    end = begin + len(span)
    found = tuple(at for at in range(len(ids)) if ends[at] > begin and (ends[at - 1] if at else 0) < end)
    if not found:
        raise LensError(f"The words {span!r} ({what}) are not tokens of their own.", "Give (start, stop) instead.")
    return found


def _ends(lens: Core, ids: Sequence[int], text: str) -> list[int]:
    """Where in the text each token ends: by decoding ever longer beginnings, without the special tokens in front."""
    special = lens.tokens.special_ids()
    lead = next((at for at, token in enumerate(ids) if token not in special), len(ids))
    whole = lens.tokens.decode(ids[lead:])
    shift = len(text) - len(whole)  # a space that the tokenizer puts in front, or drops
    ends = [0] * lead
    for stop in range(lead + 1, len(ids) + 1):
        ends.append(max(0, len(lens.tokens.decode(ids[lead:stop])) + shift))
    return ends
