"""What a run writes, as its site has it: its activations and its features.

They are read while it is written, from the run's own activations, or of a text kept from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.lens.hooks.capture_result import CaptureResult
from lens_tui.lens.hooks.passage import Passage
from lens_tui.lens.hooks.program import Key, async_eval
from lens_tui.lens.hooks.registry import Plan, Recorder, Registry, Run
from lens_tui.lens.hooks.steering import captured, entries_of, origin_in
from lens_tui.records import FloatArray, Intervention, LensError, SAEInfo
from lens_tui.sae.index.index_reader import describe

from .knowledge import index_of, label_texts

if TYPE_CHECKING:
    from lens_tui.lens.model import LensModel
    from lens_tui.lens.tokens import Prompt
    from lens_tui.sae.load_sae import SAE


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


TOP = 16
"""Features of each token that are kept, strongest first."""


def place_of(info: SAEInfo) -> tuple[int, str]:
    """The layer and site that an SAE reads. Raises :class:`LensError` where its files do not say."""
    if info.layer < 0 or not info.site:
        raise LensError(
            f"It is not known which layer and site the SAE {info.name} reads.", "Load it with its layer and site."
        )
    return info.layer, info.site


@contextmanager
def watching(model: LensModel, sae: SAE, k: int = TOP) -> Iterator[Watch[tuple[mx.array, mx.array]]]:
    """Reads the ``k`` top features of every token that a run made inside writes: ids and values ``(n, rows, k)``."""
    watch = Watch(model.registry, place_of(sae.info), lambda hidden: sae.top_k(hidden, min(k, sae.d_sae)))
    model.registry.put(watch)
    try:
        yield watch
    finally:
        model.registry.take(watch)


def counted(model: LensModel, sae: SAE, ids: Sequence[int]) -> NDArray[np.bool_]:
    """Which tokens an SAE says something of: not the special ones, where it saw none of them in training."""
    specials = model.tokens.special_ids()
    return np.array([sae.info.bos or token not in specials for token in ids], bool)


def top_features(
    model: LensModel, sae: SAE, ids: Sequence[int], activations: mx.array, k: int = TOP
) -> tuple[NDArray[np.int32], FloatArray]:
    """The top features of tokens by their activations ``(n, width)``: ids and values ``(n, k)``, unused -1 and 0."""
    found, values = sae.top_k(activations, min(k, sae.d_sae))
    return silenced(model, sae, ids, np.array(found), np.array(values))


def silenced(
    model: LensModel, sae: SAE, ids: Sequence[int], found: NDArray[Any], values: NDArray[Any]
) -> tuple[NDArray[np.int32], FloatArray]:
    """Top features with nothing at tokens that do not count."""
    kept = counted(model, sae, ids)[:, None]
    return np.where(kept, found, -1).astype(np.int32), np.where(kept, values, 0).astype(np.float32)


def features_read(
    model: LensModel, sae: SAE, watch: Watch[Any], texts: Sequence[Sequence[int]]
) -> list[list[list[dict[str, Any]]]]:
    """What a watch has read of a run that has ended: for each arm and token its features, strongest first, as data."""
    batches = [(start, np.array(ids), np.array(values)) for start, (ids, values) in watch.rest()]
    arms: list[list[list[dict[str, Any]]]] = []
    for arm, text in enumerate(texts):
        rows: list[list[dict[str, Any]]] = []
        for start, ids, values in batches:
            tokens = text[start : start + len(ids)]
            of_arm = ids[: len(tokens), arm], values[: len(tokens), arm]
            for found, strengths in zip(*silenced(model, sae, tokens, *of_arm), strict=True):
                pairs = zip(found.tolist(), strengths.tolist(), strict=True)
                rows.append([{"id": f, "activation": value} for f, value in pairs if f >= 0 and value > 0])
        arms.append(rows)
    return arms


def feature_values(model: LensModel, sae: SAE, ids: Sequence[int], activations: mx.array, feature: int) -> FloatArray:
    """One feature's activation on tokens, ``(n,)``, from the activations of its site ``(n, width)``."""
    values = np.array(sae.encode_features(activations, [feature])[:, 0], np.float32)
    return np.where(counted(model, sae, ids), values, np.float32(0.0)).astype(np.float32)


def feature_names(model: LensModel, info: SAEInfo, features: Sequence[int]) -> tuple[tuple[int, str, bool], ...]:
    """What features are called, each with whether that is a label; else what the index describes it by, if anything."""
    labels, index = label_texts(info, features), index_of(info)
    described = {
        feature: describe(index, feature, model.tokens.display).text
        for feature in features
        if index is not None and feature not in labels and feature < index.width
    }
    return tuple((f, labels.get(f) or described.get(f, ""), f in labels) for f in features)
