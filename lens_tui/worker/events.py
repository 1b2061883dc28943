"""What the worker tells the app: frozen records, safe to show, holding no MLX array.

Every string in an event has been through ``records.sanitise``, but for the text that
a token adds: that is exact, and whoever shows it makes it safe. Every event
names the job it belongs to, so that events of a job that was stopped can be
dropped by the reader.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lens_tui.records import FloatArray, Intervention, SteeringVector
from lens_tui.records.run import Candidate as Candidate
from lens_tui.records.run import TokenWeight as TokenWeight
from lens_tui.worker.base_events import Event as Event
from lens_tui.worker.base_events import JobDone as JobDone
from lens_tui.worker.base_events import JobFailed as JobFailed
from lens_tui.worker.base_events import JobStarted as JobStarted
from lens_tui.worker.base_events import ModelLoaded as ModelLoaded
from lens_tui.worker.base_events import ModelUnloaded as ModelUnloaded
from lens_tui.worker.base_events import Notice as Notice
from lens_tui.worker.base_events import Progress as Progress
from lens_tui.worker.base_events import SAEChecked as SAEChecked
from lens_tui.worker.base_events import SAELoaded as SAELoaded
from lens_tui.worker.base_events import Speed as Speed
from lens_tui.worker.base_events import VectorMade as VectorMade

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lens_tui.records.measures import DoseResponse, ScaleSearch
    from lens_tui.records.readouts import LogitLens
    from lens_tui.worker.making import RankedLayer

    IntArray = NDArray[np.int32]
else:  # only ever an annotation
    IntArray = Any


@dataclass(frozen=True, slots=True)
class RunStarted(Event):
    """A comparison begins: the prompt as the model sees it, token by token.

    ``run`` is its number in the history, 0 where none is kept.
    """

    prompt_ids: tuple[int, ...]
    prompt_tokens: tuple[str, ...]
    arms: tuple[str, ...]
    run: int = 0


@dataclass(frozen=True, slots=True)
class RunKept(Event):
    """A run that was not yet in the history as it began is there now, under this number."""

    run: int


@dataclass(frozen=True, slots=True)
class TokenEvent(Event):
    """One generated token of one arm.

    ``index`` counts generated tokens of the arm from 0. ``text`` is what the
    token adds to the readable text (empty while the bytes of a character are
    incomplete); ``token`` is the token's own display form. ``logprob`` is in
    nats under the arm's own (steered) distribution at temperature 1. ``kl`` is
    D(arm || plain) of the next token in nats, ``reverse_kl`` D(plain || arm) and
    ``plain_logprob`` the plain model's log-probability of this token, both models
    reading the arm's own text: 0, 0 and ``logprob`` where nothing acts, ``None`` where
    it was not measured. ``scales`` lists ``(id, scale)``
    of the arm's interventions as they stood when this token was computed.
    """

    arm: int
    index: int
    token_id: int
    token: str
    text: str
    logprob: float
    kl: float | None
    top: tuple[Candidate, ...] = ()
    scales: tuple[tuple[str, float], ...] = ()
    reverse_kl: float | None = None
    plain_logprob: float | None = None


@dataclass(frozen=True, slots=True)
class ArmDone(Event):
    """An arm ended: ``reason`` is ``stop`` (end of text), ``length`` or ``stopped`` (by the user).

    ``dose`` is the measured mean ``||delta h|| / ||h||`` at the steered sites of
    this arm, ``None`` for the baseline.
    """

    arm: int
    reason: str
    n_tokens: int
    dose: float | None = None


@dataclass(frozen=True, slots=True)
class Dialed(Event):
    """The interventions of a running arm were changed: its tokens from ``index`` on are made under these."""

    arm: int
    index: int
    interventions: tuple[Intervention, ...]


@dataclass(frozen=True, slots=True)
class DialRefused(Event):
    """A change of a running arm was refused, and the run goes on as it was: one sentence, and what to do."""

    arm: int
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Encoded(Event):
    """The top features of every token of a text under one SAE.

    ``ids`` and ``values`` have shape ``(n_tokens, k)``, strongest first; unused
    places hold id -1 and value 0. ``special`` marks BOS and other special tokens.
    """

    sae: str
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    special: tuple[bool, ...]
    ids: IntArray
    values: FloatArray
    l0: float = 0.0
    fvu: float = 0.0


@dataclass(frozen=True, slots=True)
class FeatureActivations(Event):
    """One feature's activation on every token of the text last encoded, shape ``(n_tokens,)``."""

    sae: str
    feature: int
    values: FloatArray


@dataclass(frozen=True, slots=True)
class FeaturePage(Event):
    """What is known of a feature.

    ``promoted`` and ``suppressed`` are the unembedding of its decoder direction
    through the final norm's gain, strongest first. ``vector`` is its unit
    decoder direction, ready for the vector bench. ``extras`` holds what an
    index adds (label, density, histogram, examples), as plain data.
    """

    sae: str
    feature: int
    promoted: tuple[TokenWeight, ...]
    suppressed: tuple[TokenWeight, ...]
    vector: SteeringVector
    extras: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LabelSet(Event):
    """Your label of a feature was written down; ``label`` is empty if it was taken away."""

    sae: str
    feature: int
    label: str


@dataclass(frozen=True, slots=True)
class FoundFeature:
    """A feature that was looked for: what it is called and why it was found (``label`` or ``promotes ‘sea’``)."""

    feature: int
    name: str
    why: str


@dataclass(frozen=True, slots=True)
class FeaturesFound(Event):
    """The features that words lead to, best first, each once. ``indexed``: promoted tokens could be searched too."""

    sae: str
    words: str
    found: tuple[FoundFeature, ...]
    indexed: bool


@dataclass(frozen=True, slots=True)
class LensRead(Event):
    """What every layer would predict at every token of a text; its ``texts`` are safe to show."""

    lens: LogitLens


@dataclass(frozen=True, slots=True)
class LayersRanked(Event):
    """A vector for each layer, the layer first that tells held-out pairs apart best; ``n_pairs`` there were."""

    layers: tuple[RankedLayer, ...]
    n_pairs: int


@dataclass(frozen=True, slots=True)
class DoseMeasured(Event):
    """A dose-response as far as it is: ``done`` scales of ``total``. Its texts are safe to show."""

    response: DoseResponse
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class ScalesTried(Event):
    """What a search has tried so far: ``(scale, value)``, scales ascending, values not finite where it overflowed."""

    tried: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class ScaleFound(Event):
    """A search ended."""

    search: ScaleSearch


def last_of(events: Sequence[Event], kind: type[Event]) -> Event | None:
    """The last event of a kind, or ``None``: drains often care only for the newest."""
    return next((event for event in reversed(events) if isinstance(event, kind)), None)
