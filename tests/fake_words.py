"""Words that stand in for tokens, and numbers that depend on nothing but what they are of."""

from __future__ import annotations

import re
import zlib

VOCAB = 8192
OTHERS = (" the", " and", " a", " was", " to", " he", ".")
STOPWORDS = frozenset({" the", " a", " and", " to", " in"})


def split(text: str) -> list[str]:
    """Words with the blank before them, newlines on their own: stands in for a tokenizer."""
    return re.findall(r"\n| ?[^\s\w]| ?\w+|\s", text)


def token_id(text: str) -> int:
    return 1 + zlib.crc32(text.encode("utf-8", "surrogatepass")) % (VOCAB - 1)


def noise(*what: object) -> float:
    """A number in [0, 1) that depends on its arguments alone."""
    return zlib.crc32(repr(what).encode()) / 2**32
