"""Texts that can be read, and what is asked of one that an SAE or the logit lens has read.

Of a conversation its tokens in the template are read, which the worker is asked for; all else is pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log

import numpy as np
from textual.content import Content

from lens_tui.records import FloatArray
from lens_tui.records.measures import LogitLens
from lens_tui.records.wording import dotted, dotted_quote
from lens_tui.worker.events import Encoded, Event, PromptRead
from lens_tui.worker.jobs import ReadPrompt

from .format import BARS, N_LEVELS, bar, fit, fit_left, layer_kl_level, share_level
from .host import LensHost
from .session import AsRead, Session


@dataclass(frozen=True, slots=True)
class ReadingText:
    """A text to look at: the prompt as written, or a conversation or an arm's prompt and output as the model saw it."""

    name: str
    text: str = ""
    token_ids: tuple[int, ...] = ()

    @property
    def blank(self) -> bool:
        """Whether there is nothing to read."""
        return not self.text and not self.token_ids


def sources(session: Session) -> tuple[ReadingText, ...]:
    """The texts of a session: the prompt, then what each arm of the last run wrote.

    In a conversation the prompt is all of it, in its template; blank until that is known.
    """
    prompt = "" if session.chatting else session.prompt
    return (
        ReadingText("prompt", prompt, session.chat_ids),
        *(ReadingText(item.name, token_ids=item.token_ids) for item in session.written),
    )


def features_at(encoded: Encoded, token: int) -> list[tuple[int, float]]:
    """The features of one token, strongest first, as ``(id, activation)``."""
    if not 0 <= token < len(encoded.tokens):
        return []
    pairs = zip(encoded.ids[token].tolist(), encoded.values[token].tolist(), strict=True)
    return [(feature, value) for feature, value in pairs if feature >= 0 and value > 0]


def rough_activations(encoded: Encoded, feature: int) -> FloatArray:
    """A feature on every token as far as the top features tell: 0 where it is not among them."""
    found: FloatArray = np.where(encoded.ids == feature, encoded.values, 0).max(axis=1, initial=0.0).astype(np.float32)
    return found


def strongest_token(encoded: Encoded) -> int | None:
    """The token with the largest activation that is not special; ``None`` in a text of special tokens."""
    strength = np.where(np.asarray(encoded.special, bool), -1.0, encoded.values.max(axis=1, initial=0.0))
    if strength.size == 0 or strength.max() < 0:
        return None
    return int(strength.argmax())


def shades(values: FloatArray) -> list[int]:
    """Levels of activations as shares of the largest in the text."""
    top = float(values.max(initial=0.0))
    return [share_level(value, top) for value in values.tolist()]


def next_active(values: FloatArray, start: int, step: int) -> int | None:
    """The next token (``step`` 1), or the one before (-1), where a feature is active, going round."""
    count = len(values)
    for offset in range(1, count + 1):
        place = (start + step * offset) % count
        if values[place] > 0:
            return place
    return None


MEASURES = ("probability", "target", "KL")
"""What the shade of a cell says: the best token's probability, the followed token's, KL from the last layer."""

Span = str | tuple[str, str]


def cells(lens: LogitLens, measure: str) -> list[list[tuple[str, int]]]:
    """Text and level of each cell, ``[layer][token]``."""
    levels = _levels(lens, measure)
    return [
        [(lens.texts[token], level) for token, level in zip(row, some, strict=True)]
        for row, some in zip(lens.top_ids[:, :, 0].tolist(), levels, strict=True)
    ]


def details(lens: LogitLens, measure: str) -> list[list[str]]:
    """The number that the shade of each cell is of, ``[layer][token]``."""
    if measure == "KL":
        return [[f"{value:.2f} nat" for value in row] for row in lens.kl.tolist()]
    logprobs = lens.target_logprobs if measure == "target" else lens.top_logprobs[:, :, 0]
    return [[_percent(p) for p in row] for row in np.exp(logprobs).tolist()]


def _levels(lens: LogitLens, measure: str) -> list[list[int]]:
    if measure == "KL":
        return [[layer_kl_level(value) for value in row] for row in lens.kl.tolist()]
    logprobs = lens.target_logprobs if measure == "target" else lens.top_logprobs[:, :, 0]
    # A hundredth is nothing to see, and shading it would shade every cell.
    return [[share_level(p, 1.0) if p >= 0.01 else 0 for p in row] for row in np.exp(logprobs).tolist()]


def rank_level(rank: int, size: int) -> int:
    """The level of a rank (0 is best) on a logarithmic scale: full for the best, 0 at the last of ``size``."""
    if rank <= 0:
        return N_LEVELS - 1
    return max(0, round((N_LEVELS - 1) * (1 - log(rank + 1) / log(max(size, 3)))))


def cell_lines(lens: LogitLens, row: int, column: int, width: int, vocabulary: int) -> list[Content]:
    """The best tokens of a cell with bars, then the followed token through the layers."""
    texts = lens.texts
    lines = [
        Content.styled("best next tokens", "$muted"),
        *(
            _chance(texts[int(token)], float(value), width)
            for token, value in zip(lens.top_ids[row, column], lens.top_logprobs[row, column], strict=True)
        ),
        Content(""),
    ]
    followed = int(lens.target_ids[column])
    rank, logprob = int(lens.target_ranks[row, column]), float(lens.target_logprobs[row, column])
    facts = f"rank {rank}{' (0 is best)' if width >= 28 else ''}   p {_percent(exp(logprob))}"
    last = "KL from the last layer " if width >= 33 else "KL from last "
    lines += [
        Content.assemble(("followed ", "$muted"), fit(dotted_quote(texts[followed]), max(4, width - 10)).rstrip()),
        Content(facts),
        *_through(lens, row, column, width, vocabulary),
        Content(""),
        Content.assemble(("entropy ", "$muted"), f"{lens.entropy[row, column]:.2f} nats"),
        Content.assemble((last, "$muted"), f"{lens.kl[row, column]:.2f} nats"),
    ]
    return lines


def beside_lines(lens: LogitLens, plain: LogitLens, row: int, column: int) -> list[Content]:
    """What the logit lens has in the same cell, and how often each lens says what the model says at that layer."""
    best = int(plain.top_ids[row, column, 0])
    return [
        Content(""),
        Content.assemble(
            ("logit lens ", "$muted"), f"{dotted_quote(plain.texts[best])} KL {plain.kl[row, column]:.2f}"
        ),
        Content.assemble(("says what the model says, this layer ", "$muted")),
        Content(f"{lens.agreement[row]:.0%} of tokens (logit lens {plain.agreement[row]:.0%})"),
    ]


def _through(lens: LogitLens, row: int, column: int, width: int, vocabulary: int) -> list[Content]:
    ranks = [rank_level(rank, vocabulary) for rank in lens.target_ranks[:, column].tolist()]
    chances = [share_level(p, 1.0) for p in np.exp(lens.target_logprobs[:, column]).tolist()]
    room = max(4, width - 8)
    return [_strip(name, levels, row, room) for name, levels in (("rank", ranks), ("p", chances))]


def _strip(name: str, levels: list[int], row: int, room: int) -> Content:
    """A bar for each layer, the one under the cursor marked; of more layers than room every n-th."""
    step = -(-len(levels) // room)
    parts: list[Span] = [(f"{name:<5}", "$muted")]
    for start in range(0, len(levels), step):
        here = start <= row < start + step
        parts.append((BARS[levels[row] if here else levels[start]], "bold $accent" if here else "$heat-5"))
    return Content.assemble(*parts)


def _chance(text: str, logprob: float, width: int) -> Content:
    name = min(14, max(6, width // 2))
    room = max(0, width - name - 6)
    p = exp(logprob)
    return Content.assemble(
        fit(dotted(text), name), " ", (fit(bar(p, room), room), "$heat-5"), fit_left(_percent(p), 5)
    )


def _percent(p: float) -> str:
    return f"{p:.3f}".lstrip("0") if p < 0.9995 else "1.00"


READING = "reading …"
"""What stands in place of a text until the first of it is there."""


def know_chat(lens: LensHost) -> bool:
    """Have the tokens of the session's conversation in the session, unless they are there or there is none.

    Returns:
        Whether they have yet to come; the session changes when they do.
    """
    session = lens.store.session
    if not session.chatting or session.chat_ids or not (session.prompt or session.turns):
        return False
    model, question = session.model, session.question

    def take(event: Event) -> bool | None:
        if isinstance(event, PromptRead):
            lens.store.update(as_read=AsRead(model, question, event.token_ids))
        return None

    lens.submit(ReadPrompt(*question), "chat-ids", take)
    return True
