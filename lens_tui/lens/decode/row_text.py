"""What a row has written: the text of its tokens, and what ends it."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from lens_tui.records import LensError, Sampling

from ..tokens import Detokenizer, Tokens


def mlx_lm_generate() -> Any:
    """The module ``mlx_lm.generate``, which the function of that name hides."""
    return import_module("mlx_lm.generate")


@dataclass(eq=False)
class Stops:
    """Texts that end a row; what may be the beginning of one is held back until it is known not to be.

    The texts are looked for in what is written, however it is cut into tokens.
    """

    texts: tuple[str, ...]
    _state: Any = None

    def __post_init__(self) -> None:
        if self.texts:
            machine = mlx_lm_generate().TextStateMachine
            self._state = machine({"normal": [(text, None) for text in self.texts]}).make_state()

    def feed(self, text: str, last: bool) -> tuple[str, bool]:
        """What may be shown of the text so far that was not yet, and whether a stop text is complete."""
        if not self.texts:
            return text, False
        machine = mlx_lm_generate().TextStateMachine
        self._state, segments = machine.split(self._state, text)
        certain = segments[0][1]
        if self._state[0] is None:
            return certain, True
        if last:
            self._state, rest, _ = machine.flush(self._state)
            certain += rest
        return certain, False


@dataclass(eq=False, kw_only=True)
class Writing:
    """What a row has written so far: the state that turns its token ids into text and ends it, not a token itself.

    ``reason`` is ``""`` while it runs.
    """

    detokenizer: Detokenizer
    stops: Stops
    stop_ids: frozenset[int]
    max_tokens: int
    ids: list[int] = field(default_factory=list)
    text: str = ""
    reason: str = ""

    def write(self, token: int) -> str:
        """Add a token; returns what it adds to the text. ``reason`` is set if it was the last one.

        A token that ends the row adds only what the detokenizer held back.
        """
        self.ids.append(token)
        stop = token in self.stop_ids
        last = stop or len(self.ids) >= self.max_tokens
        if not stop:
            self.detokenizer.add_token(token)
        if last:
            self.detokenizer.finalize()
        text, stopped = self.stops.feed(self.detokenizer.last_segment, last)
        self.text += text
        if last or stopped:
            self.reason = "stop" if stop or stopped else "length"
        return text


def writing_options(tokens: Tokens, sampling: Sampling, last_prompt_id: int) -> dict[str, Any]:
    """What a :class:`Writing` is made of. Raises :class:`LensError` for stops that this model cannot have."""
    if sampling.stop and tokens.tokenizer is None:
        raise LensError("This model was given without a tokenizer, so it makes no text to stop at.", "Use stop_ids.")
    own = frozenset(tokens.check(sampling.stop_ids)) if sampling.stop_ids else frozenset()
    return {
        "detokenizer": tokens.detokenizer(last_prompt_id),
        "stops": Stops(sampling.stop),
        "stop_ids": tokens.stops | own,
        "max_tokens": sampling.max_tokens,
    }
