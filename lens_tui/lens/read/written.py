"""The activations of what a run writes, at one site: as it is written, or of a text that was written before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

import mlx.core as mx

from lens_tui.records import Intervention

from ..hooks.capture_result import CaptureResult
from ..hooks.passage import Passage
from ..hooks.program import Key, async_eval
from ..hooks.registry import Plan, Recorder, Registry, Run
from ..hooks.steering import captured, entries_of, origin_in

if TYPE_CHECKING:
    from ..model import LensModel
    from ..tokens import Prompt

Read = TypeVar("Read", bound=tuple[mx.array, ...])
EVERY = 8
"""Tokens of each row that are read together: an SAE's weights are gone through once for all of them."""


class Watch(Recorder, Generic[Read]):
    """Reads the tensor at a site for each token that a run writes, some tokens at a time, while it goes on.

    Put into the registry before the run is made and taken out after it. What it reads are the run's own activations,
    after all that acts at the site; the prompt's are not kept. A token is read once the forward after it has been
    built, so that no step is computed in parts.

    Args:
        registry: What is hooked.
        key: Layer and site.
        read: From ``(tokens, rows, width)`` to arrays of the same first two axes, lazy.
        every: How many tokens are read together.
    """

    whole = False

    def __init__(self, registry: Registry, key: Key, read: Callable[[mx.array], Read], every: int = EVERY) -> None:
        self.registry = registry
        self.places = (key,)
        self._read, self._every = read, every
        self._writing = False
        self._steps: list[mx.array] = []
        self._done = 1  # the first step is the prompt's last token
        self._ready: list[tuple[int, Read]] = []

    def begin(self, run: Run | None, starts: bool) -> None:
        """A forward begins; those before the first token is written are the prompt's."""
        self._writing = run is not None and run.writing

    def record(self, key: Key, tensor: mx.array) -> None:
        """The rows' activations of one more token; those before it may be read now."""
        if self._writing:
            if len(self._steps) - self._done >= self._every:
                self._launch()
            self._steps.append(tensor)

    def _launch(self) -> None:
        found = self._read(mx.concatenate([step.swapaxes(0, 1) for step in self._steps[self._done :]]))
        async_eval(*found)
        self._ready.append((self._done - 1, found))
        self._done = len(self._steps)

    def take(self) -> list[tuple[int, Read]]:
        """What has been read since the last call: the first token's place in the text, and the arrays."""
        ready, self._ready = self._ready, []
        return ready

    def rest(self) -> list[tuple[int, Read]]:
        """As :meth:`take`, with what was left to be read: at the end of a run."""
        if len(self._steps) > self._done:
            self._launch()
        return self.take()

    def activations(self, row: int, count: int) -> mx.array:
        """The first ``count`` written tokens of a row, ``(count, width)``."""
        return mx.concatenate([step[row] for step in self._steps[1 : 1 + count]])


def written_activations(
    model: LensModel,
    prompt: Prompt,
    token_ids: Sequence[int],
    interventions: Sequence[Intervention],
    layer: int,
    *,
    site: str = "resid_post",
    raw: bool = False,
) -> mx.array:
    """The activations of a text that was written under interventions, by one forward over prompt and text.

    Args:
        model: The model that wrote it.
        prompt: What it went on from: a text, chat messages or token ids.
        token_ids: What was written.
        interventions: What acted, from the first token of the prompt to the last one written.
        layer: Counted from 0.
        site: One of ``sites(layer)``.
        raw: The prompt went in without the chat template.

    Returns:
        ``(len(token_ids), width)``, evaluated, after what acts at the site.

    Raises:
        LensError: For a site that the model does not have, and for interventions that it refuses.
        NotFinite: With the layer from which on the activations are not finite.
    """
    registry, encoded = model.registry, model.tokens.prompt(prompt, raw=raw)
    ids = (*encoded.ids, *token_ids)
    start = len(encoded.ids)
    place = Passage(ids, start, 0, registry.bos, encoded.spans, encoded.thinking, encoded.inside)
    entries = entries_of(interventions, registry)
    key = registry.decoder.index(layer), site
    result = CaptureResult(registry, (key,), by_site=True)
    place.forward(registry, Plan((entries,), (result,)))
    return captured(result, lambda: origin_in(registry, place, entries))[key][0, start:]
