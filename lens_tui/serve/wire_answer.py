"""Answers as OpenAI writes them: one object, or chunks of server-sent events."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lens_tui.records import LensError
from lens_tui.records.sanitise import finite

from .engine_thread import Begun, Ended, Piece, ScoredToken
from .limits import error_body
from .wire_request import Order

DONE = b"data: [DONE]\n\n"


@dataclass
class Answer:
    """One of an order's answers as far as it has come."""

    text: list[str] = field(default_factory=list)
    scored: list[ScoredToken] = field(default_factory=list)
    end: Ended | None = None


@dataclass
class Reply:
    """What came of an order, and how it is written."""

    order: Order
    model: str
    begun: Begun = field(default_factory=lambda: Begun(0))
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))
    answers: list[Answer] = field(default_factory=list)
    _offsets: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.answers = [Answer() for _ in range(self.order.rows)]
        self._offsets = [0] * self.order.rows

    @property
    def done(self) -> bool:
        """Whether every answer has ended."""
        return all(answer.end is not None for answer in self.answers)

    def take(self, event: Begun | Piece | Ended) -> None:
        """Note what has come."""
        if isinstance(event, Begun):
            self.begun = event
        elif isinstance(event, Ended):
            self.answers[event.answer].end = event
        else:
            here = self.answers[event.answer]
            here.text.append(event.text)
            if event.scored is not None:
                here.scored.append(event.scored)

    def whole(self) -> bytes:
        """The answer of a request that does not stream."""
        choices = [self._choice(at, answer) for at, answer in enumerate(self.answers)]
        return as_json({**self._head(chunk=False), "choices": choices, "usage": self._usage(), **self._warnings()})

    def first(self) -> Iterator[bytes]:
        """The first chunks of a stream: in a chat who speaks, and that no token has a log-probability yet."""
        if self.order.kind == "chat":
            scored: list[ScoredToken] | None = [] if self.order.logprobs else None
            for at in range(len(self.answers)):
                yield self._chunk(at, {"role": "assistant", "content": ""}, None, scored)

    def chunks(self, event: Piece | Ended) -> Iterator[bytes]:
        """The chunks of what has come."""
        if isinstance(event, Piece):
            if event.text or event.scored is not None:
                scored = [event.scored] if event.scored is not None else None
                yield self._chunk(event.answer, {"content": event.text}, None, scored)
            return
        nothing = self.order.logprobs and self.order.kind == "text" and not self.answers[event.answer].scored
        yield self._chunk(event.answer, {}, event.reason, [] if nothing else None, event.readings)
        if self.done and self.order.usage:
            yield _event({**self._head(chunk=True), "choices": [], "usage": self._usage(), **self._warnings()})

    def _head(self, *, chunk: bool) -> dict[str, Any]:
        chat = self.order.kind == "chat"
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if chat else "text_completion"
        name = f"{'chatcmpl' if chat else 'cmpl'}-{self.id}"
        return {"id": name, "object": kind, "created": self.created, "model": self.model}

    def _choice(self, at: int, answer: Answer) -> dict[str, Any]:
        assert answer.end is not None
        text = "".join(answer.text)
        scored = self._scored(at, answer.scored) if self.order.logprobs else None
        body = {"message": {"role": "assistant", "content": text}} if self.order.kind == "chat" else {"text": text}
        found = {"index": at, **body, "logprobs": scored, "finish_reason": answer.end.reason}
        return found if answer.end.readings is None else {**found, "lens": answer.end.readings}

    def _chunk(
        self,
        at: int,
        delta: dict[str, str],
        reason: str | None,
        scored: Sequence[ScoredToken] | None = None,
        readings: dict[str, Any] | None = None,
    ) -> bytes:
        body = {"delta": delta} if self.order.kind == "chat" else {"text": delta.get("content", "")}
        logprobs = None if scored is None else self._scored(at, scored)
        choice = {"index": at, **body, "logprobs": logprobs, "finish_reason": reason}
        if readings is not None:
            choice["lens"] = readings
        usage = {"usage": None} if self.order.usage else {}
        last = self._warnings() if self.done and not self.order.usage else {}
        return _event({**self._head(chunk=True), "choices": [choice], **usage, **last})

    def _scored(self, at: int, tokens: Sequence[ScoredToken]) -> dict[str, Any]:
        if self.order.kind == "chat":
            return {"content": [_chat_token(token) for token in tokens], "refusal": None}
        offsets = []
        for token in tokens:
            offsets.append(self._offsets[at])
            self._offsets[at] += len(_text(token.data))
        return {
            "tokens": [_text(token.data) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [_by_text(token.top) for token in tokens],
            "text_offset": offsets,
        }

    def _usage(self) -> dict[str, int]:
        written = sum(answer.end.n_tokens for answer in self.answers if answer.end is not None)
        read = self.begun.n_prompt
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    def _warnings(self) -> dict[str, list[str]]:
        return {"warnings": list(self.begun.warnings)} if self.begun.warnings else {}


def failure(error: LensError) -> bytes:
    """An error in the middle of a stream."""
    return _event(error_body(error))


def as_json(data: Any) -> bytes:
    """JSON in ASCII; what is not a number is null."""
    return json.dumps(finite(data), allow_nan=False, separators=(",", ":")).encode("ascii")


def _event(data: Mapping[str, Any]) -> bytes:
    return b"data: " + as_json(data) + b"\n\n"


def _chat_token(token: ScoredToken) -> dict[str, Any]:
    top = [{"token": _text(data), "logprob": value, "bytes": list(data)} for data, value in token.top]
    return {"token": _text(token.data), "logprob": token.logprob, "bytes": list(token.data), "top_logprobs": top}


def _by_text(top: Sequence[tuple[bytes, float]]) -> dict[str, float]:
    """Log-probabilities by their tokens' text; of tokens that read alike (parts of a character) the likeliest."""
    found: dict[str, float] = {}
    for data, value in top:
        found.setdefault(_text(data), value)
    return found


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
