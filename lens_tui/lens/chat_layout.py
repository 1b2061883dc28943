"""Where in a rendered conversation the messages' own contents are: what is left is the template's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

Messages = Sequence[Mapping[str, str]]
Render = Callable[[Messages], str]
Stretch = tuple[int, int]

_PRIVATE = range(0xE000, 0xF8FF)
_BODY = re.compile(r"(?P<before>(?:.*</think>)?\s*)(?P<own>.*?)(?P<after>\s*)", re.DOTALL)


def contents_in(messages: Messages, render: Render) -> tuple[str, list[Stretch] | None]:
    """A conversation as its template renders it, and where the contents of its messages stand in that text.

    The template renders it a second time with a mark at both ends of each content; where it gives the same text around
    the marks, they say where the contents are. Marks stand inside the white space at the ends, which many templates
    trim, and behind thinking, which many leave out of earlier turns.

    Args:
        messages: The conversation.
        render: Applies the template. What it raises for the conversation as it is goes through.

    Returns:
        The text, and half-open ranges of its characters in order, one for each content that is shown; ``None`` where
        the template does something else with a content that is marked.
    """
    text = render(messages)
    said = "".join(str(message.get("content", "")) for message in messages) + text
    opening, closing = [char for char in map(chr, _PRIVATE) if char not in said][:2]
    try:
        marked = render([_marked(message, opening, closing) for message in messages])
    except Exception:  # whatever a template raises for a content that it looks into
        return text, None
    found: list[Stretch] = []
    start: int | None = None
    at = 0
    for char in marked:
        if char == opening:
            start = at
        elif char == closing and start is not None:
            found.append((start, at))
            start = None
        elif char != closing:
            at += 1
    same = marked.replace(opening, "").replace(closing, "") == text
    return text, found if same else None


def _marked(message: Mapping[str, str], opening: str, closing: str) -> Mapping[str, str]:
    content = message.get("content", "")
    if not isinstance(content, str):
        return message
    parts = _BODY.fullmatch(content)
    assert parts is not None  # every text is white space, something, white space
    return {**message, "content": f"{parts['before']}{opening}{parts['own']}{closing}{parts['after']}"}


def characters_of(tokenizer: Any, text: str, ids: Sequence[int]) -> list[Stretch] | None:
    """Which characters of a text each of its tokens stands for, those that no token owns up to given to the next.

    Tokens that are parts of one character share it. ``None`` where the tokenizer does not say, or gives other tokens.
    """
    try:
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    except (NotImplementedError, TypeError, ValueError):
        return None
    more = len(found["input_ids"]) - len(ids)  # a BOS that was there twice
    if more < 0 or list(found["input_ids"][more:]) != list(ids):
        return None
    reach: list[Stretch] = []
    end = 0
    for _, stop in found["offset_mapping"]:
        reach.append((end, stop) if stop > end or not reach else reach[-1])
        end = max(end, stop)
    return reach[more:]


def template_tokens(
    reach: Sequence[Stretch], contents: Sequence[Stretch], thinking: Sequence[Stretch]
) -> list[Stretch]:
    """Half-open spans of the tokens that hold nothing of a content and are not of the ``thinking``.

    Args:
        reach: The characters of each token.
        contents: The characters of the contents.
        thinking: Spans of tokens.
    """

    def is_templates(place: int) -> bool:
        start, stop = reach[place]
        inside = any(start < end and stop > begin for begin, end in contents)
        return not inside and not any(begin <= place < end for begin, end in thinking)

    spans = []
    for is_its, places in groupby(range(len(reach)), key=is_templates):
        if is_its:
            run = list(places)
            spans.append((run[0], run[-1] + 1))
    return spans


TRIAL = (
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
)


def between_turns(render: Render) -> str:
    """What a template puts behind an answer and before what the user says next; ``""`` where that is not known."""
    try:
        text, contents = contents_in(TRIAL, render)
    except Exception:  # whatever a template raises
        return ""
    return text[contents[1][1] : contents[2][0]] if contents is not None and len(contents) == len(TRIAL) else ""
