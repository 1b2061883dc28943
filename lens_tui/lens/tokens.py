"""Text to token ids and back: prompts through the chat template, display forms, streaming text.

And where in a rendered conversation the messages' own contents are: what is left is the template's.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import groupby
from types import FrameType
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError
from lens_tui.records.sanitise import one_line, sanitise_token

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


Message = Mapping[str, str]
Prompt = str | Sequence[int] | Sequence[Message]
Span = tuple[str, int, int]


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids of a prompt, and the spans of its chat roles where it went through a template.

    ``thinking`` are the ids of the markers that thinking stands between, if the
    model has single-token ones; ``inside`` whether the prompt ends between them. Among ``spans`` are those of
    ``thinking``, and as ``template`` the tokens that hold nothing of a message's content. ``stop`` are texts that end
    an answer where none of the model's own stops does: what the template puts behind it.
    """

    ids: tuple[int, ...]
    spans: tuple[Span, ...] | None = None
    thinking: tuple[int, int] | None = None
    inside: bool = False
    stop: tuple[str, ...] = ()


class Detokenizer(Protocol):
    """mlx-lm's streaming detokenizer."""

    def add_token(self, token: int) -> None:
        """Consume one token id."""

    def finalize(self) -> None:
        """Flush what is held back."""

    @property
    def last_segment(self) -> str:
        """The readable text since the last time."""
        ...


class Tokens:
    """A tokenizer as this library uses it; ``tokenizer`` may be ``None`` for a model that is given ids only."""

    def __init__(self, tokenizer: Any | None, vocab_size: int) -> None:
        self.tokenizer = _wrapped(tokenizer)
        self.vocab_size = vocab_size
        self._display = cache(self._display_of)

    @cached_property
    def hidden(self) -> NDArray[np.bool_] | None:
        """Which ids of the model's vocabulary stand for no token of the tokenizer; ``None`` where all do.

        They are rows that the embedding is padded with, and are never chosen nor shown.
        """
        if self.tokenizer is None or not hasattr(self.tokenizer, "get_vocab"):  # or one that does not say
            return None
        mask = np.ones(self.vocab_size, bool)
        ids = np.fromiter(self.tokenizer.get_vocab().values(), np.int64)
        mask[ids[(ids >= 0) & (ids < self.vocab_size)]] = False
        return mask if mask.any() and not mask.all() else None

    @property
    def bos(self) -> int | None:
        """The id of BOS, if the tokenizer has one."""
        found = getattr(self.tokenizer, "bos_token_id", None)
        return found if isinstance(found, int) else None

    @property
    def stops(self) -> frozenset[int]:
        """Token ids that end a generation."""
        return frozenset(self.tokenizer.eos_token_ids) if self.tokenizer is not None else frozenset()

    @property
    def has_chat_template(self) -> bool:
        """Whether prompts go through a chat template unless ``raw`` is asked for."""
        return self.takes_chat and self._template_name is None

    @property
    def takes_chat(self) -> bool:
        """Whether chat messages can be given: there is a template, be it one that is only for them."""
        return self.tokenizer is not None and bool(self.tokenizer.has_chat_template)

    @cached_property
    def _template_name(self) -> str | None:
        """The template's name where there are several and none is the default: texts then go in as they are."""
        several = getattr(self.tokenizer, "chat_template", None)
        return next(iter(several)) if isinstance(several, Mapping) and several and "default" not in several else None

    @cached_property
    def chat_stop(self) -> tuple[str, ...]:
        """The text that ends an answer in a template that sets turns apart by plain text; else nothing."""
        between = between_turns(lambda messages: self._text(messages, reply=False)).rstrip(" ")
        special = {*getattr(self.tokenizer, "all_special_tokens", ()), *self._added()}
        return (between,) if between.strip() and not any(name in between for name in special) else ()

    def _added(self) -> Iterable[str]:
        added: Any = getattr(self.tokenizer, "get_added_vocab", None)
        return added() if added is not None else ()

    def special_ids(self) -> frozenset[int]:
        """BOS, end of text and the tokenizer's other special tokens."""
        ids = getattr(self.tokenizer, "all_special_ids", None) or []
        return frozenset(ids) | self.stops | ({self.bos} if self.bos is not None else frozenset())

    def content(self, ids: Sequence[int]) -> NDArray[np.bool_]:
        """Which tokens of a text means are taken over, ``(tokens,)``: not special, and not the first.

        The first position is an attention sink (Xiao et al. 2023, 2309.17453): where no special token stands there,
        the first word's activation has a hundred times the length of all others (Sun et al. 2024, 2402.17762), and
        would be the mean. Of a text that has nothing else, all tokens.
        """
        content = ~np.isin(np.asarray(ids), np.asarray(sorted(self.special_ids()), np.int64))
        content[:1] = False
        return content if content.any() else np.ones(len(ids), dtype=bool)

    def encode(self, text: str) -> tuple[int, ...]:
        """A text as token ids, with the special tokens that the tokenizer puts in front, BOS never twice."""
        if self.tokenizer is None:
            raise LensError(
                "This model was given without a tokenizer.", "Give token ids, or from_model(model, tokenizer)."
            )
        said = whole(text)
        try:
            ids = self.tokenizer.encode(said)
        except Exception as error:  # a tokenizer's files may say anything, and it may find out only now
            reason = one_line(f"{type(error).__name__}: {error}", 120).rstrip(".")
            raise LensError(f"The model's tokenizer cannot take this text ({reason}).", "Check its files.") from error
        return self._one_bos([int(token) for token in ids])

    def prompt(self, prompt: Prompt, *, raw: bool = False) -> EncodedPrompt:
        """A prompt as token ids.

        A text becomes one user message if the tokenizer has a chat template and
        ``raw`` is false; chat messages always go through it; token ids are taken
        as they are.
        """
        if isinstance(prompt, str):
            if raw or not self.has_chat_template:
                return EncodedPrompt(self.encode(prompt))
            return self._chat([{"role": "user", "content": prompt}])
        if isinstance(prompt, (list, tuple)) and prompt and isinstance(prompt[0], Mapping):
            if not self.takes_chat:
                raise LensError(
                    "This model has no chat template: none of its files has one.", "Give the prompt as text."
                )
            return self._chat(cast("Sequence[Message]", prompt))
        ids = id_table(prompt)
        if ids.ndim != 1:
            raise LensError(f"A prompt is one list of token ids, not an array of {ids.shape}.", "Give one row of it.")
        return EncodedPrompt(self.check(ids.tolist()))

    def check(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Token ids, checked against the vocabulary: MLX does not check, and reads foreign memory."""
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise LensError(
                    f"There is no token {token}: the vocabulary has {self.vocab_size}.", "Check the token ids."
                )
        if not ids:
            raise LensError("The prompt is empty.", "Give at least one token.")
        return tuple(ids)

    def display(self, token: int) -> str:
        """A token's own display form, safe to show: ``⟨f0 9f⟩`` for bytes that are not whole characters."""
        return self._display(token)

    def bytes_of(self, token: int) -> bytes:
        """The bytes that a token stands for, with its leading space; none without a tokenizer."""
        return b"" if self.tokenizer is None else _bytes_of(self.tokenizer, token)

    def detokenizer(self, after: int) -> Detokenizer:
        """A fresh streaming detokenizer for what comes after the token ``after``.

        It has seen that token, or it would take the space off the first word as
        if the text began there.
        """
        if self.tokenizer is None:
            return _NoText()
        detokenizer: Detokenizer = self.tokenizer.detokenizer
        detokenizer.add_token(after)
        detokenizer.finalize()
        _ = detokenizer.last_segment
        return detokenizer

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids as text, exactly as the tokenizer gives it."""
        return "" if self.tokenizer is None else str(self.tokenizer.decode(list(ids)))

    def _one_bos(self, ids: Sequence[int]) -> tuple[int, ...]:
        while len(ids) > 1 and self.bos is not None and ids[0] == ids[1] == self.bos:
            ids = ids[1:]
        return self.check(ids)

    def _render(self, messages: Sequence[Message], *, reply: bool) -> tuple[int, ...]:
        return self._one_bos([int(token) for token in self._apply(messages, tokenize=True, reply=reply)])

    def _text(self, messages: Sequence[Message], *, reply: bool) -> str:
        return str(self._apply(messages, tokenize=False, reply=reply))

    def _apply(self, messages: Sequence[Message], *, tokenize: bool, reply: bool) -> Any:
        assert self.tokenizer is not None
        named = {"chat_template": self._template_name} if self._template_name is not None else {}
        with _bounded():
            return self.tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=tokenize, add_generation_prompt=reply, **named
            )

    def _chat(self, messages: Sequence[Message]) -> EncodedPrompt:
        for message in messages:
            whole(str(message.get("content", "")))
        try:
            ids = self._render(messages, reply=True)
        except LensError:
            raise
        except Exception as error:
            raise LensError(
                f"The chat template does not take this prompt ({one_line(str(error), 200).rstrip('.')}).",
                "Change the roles, or use raw=True.",
            ) from error
        markers = self._markers()
        thoughts, inside = _thoughts(ids, markers)
        own = self._templates(messages, ids, [(start, stop) for _, start, stop in thoughts])
        return EncodedPrompt(ids, (*self._spans(messages, ids), *thoughts, *own), markers, inside, self.chat_stop)

    def _templates(
        self, messages: Sequence[Message], ids: tuple[int, ...], thinking: list[tuple[int, int]]
    ) -> list[Span]:
        """The spans that the template put around the contents; none where that cannot be told."""
        try:
            text, contents = contents_in(messages, lambda some: self._text(some, reply=True))
        except Exception:  # a template that gives ids and no text
            return []
        fast = getattr(self.tokenizer, "_tokenizer", self.tokenizer)
        reach = characters_of(fast, text, ids) if contents is not None else None
        if reach is None or contents is None:
            return []
        return [("template", start, stop) for start, stop in template_tokens(reach, contents, thinking)]

    def _markers(self) -> tuple[int, int] | None:
        start, end = (getattr(self.tokenizer, name, None) for name in ("think_start_tokens", "think_end_tokens"))
        return (start[0], end[0]) if start and end and len(start) == len(end) == 1 else None

    def _spans(self, messages: Sequence[Message], ids: tuple[int, ...]) -> tuple[Span, ...]:
        """Each message's tokens, from rendering the conversation message by message.

        A message begins where the rendering of those before it ends. Templates
        that rewrite earlier messages are followed only as far as they agree.
        """
        spans: list[Span] = []
        start = 0
        for count in range(1, len(messages) + 1):
            end = _agreement(self._prefix(messages[:count]), ids)
            if end > start:
                spans.append((str(messages[count - 1].get("role", "")), start, end))
                start = end
        if start < len(ids):
            spans.append(("assistant", start, len(ids)))
        return tuple(spans)

    def _prefix(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The first messages rendered; with an empty user turn behind them if the template wants one."""
        for tail in ([], [{"role": "user", "content": ""}]):
            try:
                return self._render([*messages, *tail], reply=False)
            except _EndlessError:
                raise
            except Exception:  # whatever a template raises for a conversation it does not take
                continue
        return ()

    def _display_of(self, token: int) -> str:
        known = self.tokenizer is not None and 0 <= token < self.vocab_size
        if not known or (self.hidden is not None and self.hidden[token]):
            return f"⟨{token}⟩"
        data = _bytes_of(self.tokenizer, token)
        try:
            return sanitise_token(data.decode("utf-8"))
        except UnicodeDecodeError:
            return f"⟨{data.hex(' ')}⟩"


def whole(text: str) -> str:
    """``text``, which must be one that can be written as UTF-8. Raises :class:`LensError` for a lone surrogate.

    Python makes them of bytes that are no UTF-8 (arguments, names of files, ``errors="surrogateescape"``).
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise LensError(
            f"The text is not UTF-8: character {error.start} is a lone surrogate, U+{ord(text[error.start]):04X}.",
            "Read it in the encoding that it is written in.",
        ) from None
    return text


def id_table(ids: Any) -> NDArray[np.int64]:
    """Token ids in any container, of Python, numpy or MLX, as an array of whole numbers.

    Raises :class:`LensError` for texts where ids are taken, rows of unequal length, and what is not a whole number.
    """
    listed = ids.tolist() if hasattr(ids, "tolist") else ids
    if isinstance(listed, (str, bytes, Mapping)) or not isinstance(listed, Iterable):
        raise LensError(f"Token ids cannot be {type(ids).__name__}.", "Give a text, or a list of whole numbers.")
    rows = [item.tolist() if hasattr(item, "tolist") else item for item in listed]
    if any(isinstance(row, str) for row in rows):
        raise LensError(
            "This takes one text, not a list of texts.", "Give them one after the other; stream_batch takes several."
        )
    if len({len(row) if isinstance(row, (list, tuple)) else -1 for row in rows}) > 1:
        raise LensError(
            "The rows of token ids differ in length.", "Run them one after the other; stream_batch takes any."
        )
    try:
        found = np.asarray(rows) if rows and rows != [[]] else np.zeros(np.shape(rows), np.int64)
    except ValueError:  # uneven further down
        found = np.zeros(1)
    if found.dtype.kind not in "iu":
        raise LensError("Token ids are whole numbers, and these are not.", "Give integers.")
    return found.astype(np.int64)


MAX_TEMPLATE_LINES = 2_000_000
"""Lines of Python that a chat template may take for one conversation; one of a thousand messages takes some 100,000."""


class _EndlessError(LensError):
    """A chat template that does not come to an end."""


@contextmanager
def _bounded() -> Iterator[None]:
    """End a chat template that loops: it is a program that came with the model's files."""
    before = sys.gettrace()
    lines = 0

    def line(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal lines
        lines += 1
        if lines > MAX_TEMPLATE_LINES:
            raise _EndlessError("The model's chat template does not terminate.", "Use raw=True.")
        return line

    sys.settrace(line)
    try:
        yield
    finally:
        sys.settrace(before)


class _NoText:
    last_segment = ""

    def add_token(self, token: int) -> None:
        """Nothing is known of the token's text."""

    def finalize(self) -> None:
        """Nothing is held back."""


def _wrapped(tokenizer: Any | None) -> Any | None:
    if tokenizer is None or hasattr(type(tokenizer), "detokenizer"):
        return tokenizer
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    return TokenizerWrapper(tokenizer)


def _thoughts(ids: Sequence[int], markers: tuple[int, int] | None) -> tuple[list[Span], bool]:
    """Spans between thinking markers, and whether the last one is still open."""
    spans: list[Span] = []
    start: int | None = None
    for at, token in enumerate(ids):
        if markers and token == markers[0]:
            start = at + 1
        elif markers and token == markers[1] and start is not None:
            spans.append(("thinking", start, at))
            start = None
    if start is not None:
        spans.append(("thinking", start, len(ids)))
    return spans, start is not None


def _agreement(part: Sequence[int], whole: Sequence[int]) -> int:
    length = 0
    for left, right in zip(part, whole, strict=False):
        if left != right:
            break
        length += 1
    return length


def _bytes_of(tokenizer: Any, token: int) -> bytes:
    """The bytes a token stands for, with its leading space."""
    from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer, SPMStreamingDetokenizer

    piece = tokenizer.convert_ids_to_tokens(token)
    if piece is None:
        return f"⟨{token}⟩".encode()
    kind = tokenizer.detokenizer
    if isinstance(kind, BPEStreamingDetokenizer):
        table = _byte_table()
        if all(char in table for char in piece):
            return bytes(table[char] for char in piece)
    elif isinstance(kind, SPMStreamingDetokenizer):
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return str(piece).replace("\u2581", " ").encode("utf-8", "surrogatepass")
    else:
        return str(tokenizer.decode([token])).encode("utf-8", "surrogatepass")
    return str(piece).encode("utf-8", "surrogatepass")


@cache
def _byte_table() -> dict[str, int]:
    """Byte-level BPE's alphabet (GPT-2): printable bytes stand for themselves, the rest from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in plain}
    rest = [byte for byte in range(256) if byte not in plain]
    table.update({chr(0x100 + index): byte for index, byte in enumerate(rest)})
    return table
