"""Conversations: their turns, the files that hold them, and what a run of one is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import LensError
from .paths import expanded
from .read_files import parse_json, read_text
from .sanitise import one_line

MAX_BYTES = 64 << 20
_FORM = 'Write a list of {"role": ..., "content": ...}, or an object with it as "messages".'


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation: who says it (``system``, ``user``, ``assistant``, ...) and what, exactly."""

    role: str
    content: str


def as_prompt(prompt: str, turns: Sequence[Turn]) -> str | list[dict[str, str]]:
    """What a model is asked: the conversation as chat messages where there is one, else the text."""
    return [{"role": turn.role, "content": turn.content} for turn in turns] or prompt


def last_words(turns: Sequence[Turn]) -> str:
    """What a conversation is called by: what the user said last, or whoever spoke last."""
    users = [turn.content for turn in turns if turn.role == "user"]
    return users[-1] if users else turns[-1].content if turns else ""


def read_chat(path: str | Path) -> tuple[Turn, ...]:
    """The conversation of a JSON file.

    Args:
        path: Its path.

    Raises:
        LensError: For a file that cannot be read, and as :func:`parse_chat` does.
    """
    return parse_chat(read_text(expanded(path), MAX_BYTES), str(path))


def read_chats(path: str | Path) -> list[tuple[Turn, ...]]:
    """The conversations of a JSON or JSON Lines file, as of :func:`parse_chats`; ``path`` is its path."""
    return parse_chats(read_text(expanded(path), MAX_BYTES), str(path))


def parse_chat(text: str, where: str) -> tuple[Turn, ...]:
    """A conversation from JSON: a list of messages, or an object with ``messages`` as chat APIs take it.

    Args:
        text: The JSON.
        where: What errors call it.

    Raises:
        LensError: For what is not that, with the number of the message.
    """
    return turns_of(parse_json(text, where), one_line(where, 120))


def parse_chats(text: str, where: str) -> list[tuple[Turn, ...]]:
    """One conversation, as of :func:`parse_chat`, or several: JSON Lines with one on each line.

    Raises :class:`LensError` as that does.
    """
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if len(lines) > 1 and all(line.strip()[0] in "[{" and line.strip()[-1] in "]}" for _, line in lines):
        return [parse_chat(line, f"{where}, line {number}") for number, line in lines]
    return [parse_chat(text, where)]


def turns_of(data: Any, name: str) -> tuple[Turn, ...]:
    """The turns in plain data. Raises :class:`LensError` that calls it ``name``."""
    messages = data.get("messages") if isinstance(data, Mapping) else data
    if not isinstance(messages, list) or not messages:
        raise LensError(f"{name} holds no messages.", _FORM)
    return tuple(_turn(item, f"Message {number} of {name}") for number, item in enumerate(messages, 1))


def _turn(item: Any, name: str) -> Turn:
    if not isinstance(item, Mapping) or not isinstance(item.get("role"), str) or not item["role"]:
        raise LensError(f"{name} has no role.", _FORM)
    content = item.get("content")
    if isinstance(content, list):  # the parts of chat APIs
        texts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
        all_texts = len(texts) == len(content) and all(isinstance(part, str) for part in texts)
        content = "".join(map(str, texts)) if all_texts else None
    if not isinstance(content, str):
        raise LensError(f"{name} has no content that is text.", _FORM)
    return Turn(item["role"], content)
