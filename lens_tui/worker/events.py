"""The events of jobs: what the worker says of its work, as plain data that is safe to show."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lens_tui.records import Arm, FloatArray, Intervention, SteeringVector
from lens_tui.records.attribution_graph import EdgeCheck
from lens_tui.records.cause_plan import GraphFound, PatchFound
from lens_tui.records.features import ContrastedFeature, FeatureFacts, FoundFeature
from lens_tui.records.prompt_set import PromptItem, SetCell
from lens_tui.records.run import MadeWith, Token
from lens_tui.records.steering_vector import TokenWeight as TokenWeight

if TYPE_CHECKING:
    from lens_tui.records import ModelInfo, SAEInfo
    from lens_tui.records.training import FitReport, TrainProgress


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a job."""

    job: int


@dataclass(frozen=True, slots=True)
class JobStarted(Event):
    """The worker took the job up, or up again after a run that it gave way to."""

    title: str


@dataclass(frozen=True, slots=True)
class Stopping(Event):
    """The user's stop of the job at work has been received: it ends with this step or piece of the prompt."""


@dataclass(frozen=True, slots=True)
class JobDone(Event):
    """The last event of every job that did not fail. ``stopped``: the user stopped it."""

    stopped: bool = False


@dataclass(frozen=True, slots=True)
class JobFailed(Event):
    """The last event of a job that failed: one sentence, what to do, and the traceback for the log."""

    message: str
    hint: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Progress(Event):
    """How far a stage is. ``total`` 0 means unknown; ``unit`` is ``bytes``, ``tokens``, ``layers`` or ``""``."""

    stage: str
    done: int = 0
    total: int = 0
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Notice(Event):
    """Something the user should know that does not end the job: one sentence, and what to do."""

    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class ModelLoaded(Event):
    """A model is ready. ``saes`` are SAEs known to fit it (not yet loaded)."""

    info: ModelInfo
    saes: tuple[SAEInfo, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelUnloaded(Event):
    """The model and its SAEs are gone and their memory is free."""


@dataclass(frozen=True, slots=True)
class SAELoaded(Event):
    """An SAE is ready to encode. Its ``info.id`` is what later jobs name it by."""

    info: SAEInfo


@dataclass(frozen=True, slots=True)
class SAEChecked(Event):
    """Whether the SAE of that id fits the model, measured on one short text."""

    sae: str
    report: FitReport


@dataclass(frozen=True, slots=True)
class Speed(Event):
    """Generated tokens a second, all arms together, and how many steps are done."""

    tokens_per_s: float
    steps: int
    max_steps: int


@dataclass(frozen=True, slots=True)
class VectorMade(Event):
    """A steering vector was made. ``residual_norm`` is the median ``||h||`` at its site, for scale hints.

    ``rest`` are those of further layers, where it is a set.
    """

    vector: SteeringVector
    residual_norm: float | None = None
    promoted: tuple[TokenWeight, ...] = ()
    suppressed: tuple[TokenWeight, ...] = ()
    rest: tuple[SteeringVector, ...] = ()


if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lens_tui.records.measures import AttentionPattern, DoseResponse, LogitAttribution, LogitLens, ScaleSearch
    from lens_tui.records.probe import ProbeReport
    from lens_tui.records.steering_vector import RankedLayer

    IntArray = NDArray[np.int32]
else:  # only ever an annotation
    IntArray = Any


@dataclass(frozen=True, slots=True)
class RunStarted(Event):
    """A comparison begins: the prompt as the model sees it, token by token.

    ``run`` is its number in the history, 0 where none is kept; ``made_with`` is what it rests on beside what was asked.
    """

    prompt_ids: tuple[int, ...]
    prompt_tokens: tuple[str, ...]
    arms: tuple[str, ...]
    run: int = 0
    made_with: MadeWith = field(default_factory=MadeWith)


@dataclass(frozen=True, slots=True)
class RunKept(Event):
    """A run that was not yet in the history as it began is there now, under this number."""

    run: int


@dataclass(frozen=True, slots=True)
class TokenEvent(Event):
    """The next generated token of an arm."""

    token: Token


@dataclass(frozen=True, slots=True)
class ArmDone(Event):
    """An arm ended: ``reason`` is ``stop`` (end of text), ``length`` or ``stopped`` (by the user).

    ``dose`` is the measured mean ``||delta h|| / ||h||`` at the steered sites of
    this arm, ``None`` for the baseline. ``readings`` are those of the run's monitors at its last token.
    """

    arm: int
    reason: str
    n_tokens: int
    dose: float | None = None
    readings: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Dialed(Event):
    """The interventions of a running arm were changed: its tokens from ``index`` on are made under these."""

    arm: int
    index: int
    interventions: tuple[Intervention, ...]


@dataclass(frozen=True, slots=True)
class DialRefused(Event):
    """A change of a running arm was refused, and the run continues as it was: one sentence, and what to do."""

    arm: int
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class SetStarted(Event):
    """A set of prompts begins. Its name and the ids of its prompts are safe to show; the texts are as they came."""

    name: str
    prompts: tuple[PromptItem, ...]
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SetPrompt(Event):
    """A prompt of the set is about to be written on: its place, and its tokens as the model sees them."""

    prompt: int
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SetTokenCame(Event):
    """The next token of a cell of a set; ``prompt`` and ``seed`` are places."""

    prompt: int
    seed: int
    token: Token


@dataclass(frozen=True, slots=True)
class SetCellDone(Event):
    """A cell of a set is measured, or was stopped."""

    cell: SetCell


@dataclass(frozen=True, slots=True)
class SetKept(Event):
    """What was written on a prompt from a seed is in the history, as the run of this number."""

    prompt: int
    seed: int
    run: int


@dataclass(frozen=True, slots=True)
class PromptRead(Event):
    """A prompt as the model reads it: ids, display forms, and the roles as ``(role, start, stop)``.

    ``spans`` is ``None`` of a prompt that is not a chat.
    """

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    spans: tuple[tuple[str, int, int], ...] | None = None


@dataclass(frozen=True, slots=True)
class Encoded(Event):
    """The top features of every token of a text under one SAE.

    ``ids`` and ``values`` have shape ``(n_tokens, k)``, strongest first; unused
    places hold id -1 and value 0. ``special`` marks BOS and other special tokens. ``dense`` are the SAE's dense
    features with the share of its index's tokens on which they are active; none where there is no index.
    """

    sae: str
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    special: tuple[bool, ...]
    ids: IntArray
    values: FloatArray
    l0: float = 0.0
    fvu: float = 0.0
    dense: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class FeatureActivations(Event):
    """One feature's activation on every token of the text last encoded, shape ``(n_tokens,)``."""

    sae: str
    feature: int
    values: FloatArray


@dataclass(frozen=True, slots=True)
class FeaturePage(Event):
    """What is known of a feature, and its unit decoder direction, ready for the vector bench."""

    sae: str
    feature: int
    facts: FeatureFacts
    vector: SteeringVector


@dataclass(frozen=True, slots=True)
class LabelSet(Event):
    """Your label of a feature was written down; ``label`` is empty if it was taken away."""

    sae: str
    feature: int
    label: str


@dataclass(frozen=True, slots=True)
class FeaturesFound(Event):
    """The features that words lead to, best first, each once. ``indexed``: promoted tokens could be searched too."""

    sae: str
    words: str
    found: tuple[FoundFeature, ...]
    indexed: bool


@dataclass(frozen=True, slots=True)
class Contrasted(Event):
    """The features that tell texts A from texts B, best on the held-out half first; how many texts there were."""

    sae: str
    found: tuple[ContrastedFeature, ...]
    texts_a: int
    texts_b: int


@dataclass(frozen=True, slots=True)
class ArmFeatures(Event):
    """The top features of tokens that an arm of a run wrote, from ``start`` on, under what steered it.

    ``ids`` and ``values`` have shape ``(n, k)``, strongest first; unused places hold id -1 and value 0. ``names`` are
    ``(feature, name, whether that is a label)`` of features not named before in this job, ``dense`` as of Encoded.
    """

    sae: str
    arm: int
    start: int
    ids: IntArray
    values: FloatArray
    names: tuple[tuple[int, str, bool], ...] = ()
    dense: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class ArmActivation(Event):
    """One feature's activation on every token that an arm of a run wrote, ``(n,)``, under what steered it."""

    sae: str
    feature: int
    arm: int
    values: FloatArray


@dataclass(frozen=True, slots=True)
class FeaturesExported(Event):
    """A list of features was written to this file."""

    path: str
    count: int


@dataclass(frozen=True, slots=True)
class LensRead(Event):
    """What every layer would predict at every token of a text; its ``texts`` are safe to show."""

    lens: LogitLens
    beside: LogitLens | None = None


@dataclass(frozen=True, slots=True)
class PartsRead(Event):
    """What adds to a token's logit at one position, by layer, part and head."""

    parts: LogitAttribution


@dataclass(frozen=True, slots=True)
class PatternRead(Event):
    """Where the heads of one layer look."""

    pattern: AttentionPattern


@dataclass(frozen=True, slots=True)
class Patched(Event):
    """What patches found; NaN where they are under way (``whole`` is false). Its texts are safe to show.

    ``unkept`` says why a whole one is not kept.
    """

    found: PatchFound
    whole: bool = True
    unkept: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class GraphMade(Event):
    """An attribution graph was made, read, or pruned anew. Its texts are as they are: make them safe to show.

    ``unkept`` says why one that was made is not kept.
    """

    found: GraphFound
    unkept: str = ""


@dataclass(frozen=True, slots=True)
class GraphWritten(Event):
    """A graph is in a file."""

    path: str


@dataclass(frozen=True, slots=True, eq=False)
class NodeChecked(Event):
    """What a node of a graph does when it is changed, beside what the graph says."""

    found: GraphFound
    check: EdgeCheck


@dataclass(frozen=True, slots=True)
class LayersRanked(Event):
    """A vector for each layer, the layer first that tells held-out pairs apart best; ``n_pairs`` there were."""

    layers: tuple[RankedLayer, ...]
    n_pairs: int


@dataclass(frozen=True, slots=True)
class ProbesTrained(Event):
    """A probe for each layer that was asked for, in order of layers."""

    report: ProbeReport


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


@dataclass(frozen=True, slots=True)
class NeighboursRead(Event):
    """Features like ``feature``, each as ``(feature, value)``, most alike first.

    ``near`` by the cosine of their decoder directions; ``together`` by the
    Jaccard index of the tokens they are active on, over the whole corpus: ``None`` unless there is a full index.
    """

    sae: str
    feature: int
    near: tuple[tuple[int, float], ...]
    together: tuple[tuple[int, float], ...] | None


@dataclass(frozen=True, slots=True)
class TextIndexed(Event):
    """The indexes of some SAEs, by their ids, are in these folders: the pages of their features can be read again."""

    saes: tuple[str, ...]
    folders: tuple[str, ...]
    n_tokens: int


@dataclass(frozen=True, slots=True)
class TrainingAt(Event):
    """How far the training of a layer is, with the figures of its last batch."""

    layer: int
    progress: TrainProgress


@dataclass(frozen=True, slots=True)
class SAETrained(Event):
    """What was trained is in these folders, one a layer; ``sentence`` is how good it is, safe to show."""

    folders: tuple[str, ...]
    sentence: str
