"""Words: where a plural is due, blanks that can be seen, and whether a text has the words that were typed."""

from __future__ import annotations

__all__ = ["dotted", "dotted_quote", "has_words", "many"]


def many(number: int, noun: str, shown: str = "") -> str:
    """A count with its noun: ``1 model``, ``3 models``, ``0 models``.

    Args:
        number: how many there are.
        noun: the singular, of a noun whose plural ends in ``s``.
        shown: the number as it is written, where that is not its digits (``18.4 M``).

    Returns:
        The number and the noun, in the plural unless there is exactly one.
    """
    return f"{shown or number} {noun}{'' if number == 1 else 's'}"


def dotted(text: str) -> str:
    """A text with its blanks as dots, so that they can be seen."""
    return text.replace(" ", "·")


def dotted_quote(text: str) -> str:
    """A token in quotes, its blanks as dots."""
    return f"‘{dotted(text)}’"


def has_words(text: str, words: str) -> bool:
    """Whether a text has every one of the words somewhere, whatever their case; any text has no words at all."""
    text = text.casefold()
    return all(word in text for word in words.casefold().split())
