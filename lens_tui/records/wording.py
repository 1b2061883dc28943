"""Words: where a plural is due, blanks that can be seen, words that were typed, and several texts in one line."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["dotted", "dotted_quote", "has_words", "in_one_line", "many", "texts_in"]


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


def texts_in(line: str) -> list[str]:
    """The texts that stand in one line with ``|`` between them, as they are; those of blanks alone are left out.

    ``\\|`` is a plain ``|``. A backslash is itself anywhere else; of those right before a ``|`` two stand for one.
    """
    found, here = [""], 0
    for bar in re.finditer(r"(\\*)\|", line):
        found[-1] += line[here : bar.start()] + "\\" * (len(bar[1]) // 2)
        if len(bar[1]) % 2:
            found[-1] += "|"
        else:
            found.append("")
        here = bar.end()
    found[-1] += line[here:]
    return [text for text in found if text.strip()]


def in_one_line(texts: Sequence[str], between: str = "|") -> str:
    """Texts in one line, of which :func:`texts_in` gives them back; ``between`` is a ``|``, with blanks or without."""
    barred = [re.sub(r"(\\*)\|", r"\1\1\\|", text) for text in texts]
    ends = [re.sub(r"(\\+)\Z", r"\1\1", text) if between[0] == "|" else text for text in barred[:-1]]
    return between.join([*ends, *barred[-1:]])
