"""What the app asks of the worker: frozen records, no code.

What each job does is written in ``lens_tui.worker.handlers``, which is imported
on the MLX thread only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from lens_tui.records import Arm, Intervention, Sampling, SteeringVector
from lens_tui.records.attribution_graph import AttributionGraph
from lens_tui.records.cause_plan import GraphFound, GraphPlan, PatchPlan
from lens_tui.records.chat import Turn
from lens_tui.records.gates import Watched
from lens_tui.records.info import Dequantize
from lens_tui.records.prompt_set import PromptItem


@dataclass(frozen=True, slots=True)
class Job:
    """A piece of work for the MLX thread.

    One that ``overtakes`` runs before all that wait but those that keep their ``place``, as what changes the model
    does, and one that ``gives_way`` pauses for it between two forwards.
    """

    overtakes: ClassVar[bool] = False
    gives_way: ClassVar[bool] = False
    place: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class LoadModel(Job):
    """Load a model by ``"demo"``, a folder or a hub id. Events: Progress, ModelUnloaded, ModelLoaded.

    A hub id that is not in the cache is downloaded. The weights of the model before are given back ahead of reading
    those of the new one, and are read again if it turns out to be of no use.
    ``force`` loads a model that is larger than the machine's memory. ``dequantize`` says whether its weights are held
    in float32, as of ``LensModel``.
    """

    place: ClassVar[bool] = True
    model: str
    force: bool = False
    dequantize: Dequantize = "auto"


@dataclass(frozen=True, slots=True)
class UnloadModel(Job):
    """Free the model, its SAEs and MLX's cache of buffers. Events: ModelUnloaded."""

    place: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class LoadSAE(Job):
    """Load an SAE from a path or a bundled name, ``PATH@LAYER:SITE`` where its files do not say what they read.

    Events: Progress, SAELoaded, SAEChecked, Notice.

    Once it is ready it is measured on the tensors it could be for, over one short text (``check``; a bundled SAE on
    the bundled model is not measured again). If it does not fit, a Notice says so.
    """

    gives_way: ClassVar[bool] = True
    path: str
    check: bool = True


@dataclass(frozen=True, slots=True)
class Compare(Job):
    """Generate every arm in lock step. Events: Progress, RunStarted, TokenEvent, Speed, ArmDone.

    ``raw``: the prompt goes in as it is, even if the model has a chat template. ``turns``: the conversation that is
    answered in place of the prompt, which is then what it is called by.
    ``top``: how many candidates each token event carries. ``changes`` are made while it writes, as in a kept run that
    is run again: the arm, the first token under the change, and what acts from there on. ``sae``: the SAE whose
    features are read from what is written, from the arms' own activations (ArmFeatures); none if empty.
    ``monitors`` read every token: each TokenEvent has what they read before it, ArmDone what they read at the last one.
    """

    overtakes: ClassVar[bool] = True
    prompt: str
    arms: tuple[Arm, ...]
    sampling: Sampling = field(default_factory=Sampling)
    raw: bool = False
    top: int = 5
    changes: tuple[tuple[int, int, tuple[Intervention, ...]], ...] = ()
    sae: str = ""
    turns: tuple[Turn, ...] = ()
    monitors: tuple[Watched, ...] = ()


@dataclass(frozen=True, slots=True)
class ReadPrompt(Job):
    """The tokens that a prompt, or the conversation of ``turns``, goes in as, and whose they are. Events: PromptRead.

    ``raw`` as of :class:`Compare`.
    """

    overtakes: ClassVar[bool] = True
    prompt: str
    turns: tuple[Turn, ...] = ()
    raw: bool = False


@dataclass(frozen=True, slots=True)
class ComparePrompts(Job):
    """Every arm on every prompt of a set, from every seed, as ``tasks.prompt_sets`` does it.

    ``path`` is a file of prompts, or ``"bundled"``, read in place of ``prompts``; of either the ``first`` so many. A
    ``feature`` of ``sae`` is read back from what is written. ``raw`` as of :class:`Compare`.
    Events: Progress, SetStarted, SetPrompt, SetTokenCame, SetCellDone, SetKept, Notice.
    """

    gives_way: ClassVar[bool] = True
    arms: tuple[Arm, ...]
    prompts: tuple[PromptItem, ...] = ()
    path: str = ""
    first: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    seeds: tuple[int, ...] = ()
    sae: str = ""
    feature: int = 0
    top: int = 5
    raw: bool = False


@dataclass(frozen=True, slots=True)
class Encode(Job):
    """Encode a text with a loaded SAE, unsteered. Events: Encoded. ``token_ids`` wins over ``text``."""

    gives_way: ClassVar[bool] = True
    sae: str
    text: str = ""
    token_ids: tuple[int, ...] = ()
    top_k: int = 16


@dataclass(frozen=True, slots=True)
class ReadWritten(Job):
    """The features of what the arms of a run wrote. Events: ArmFeatures, or with a ``feature`` ArmActivation.

    ``run`` is the id of the ``Compare`` that wrote it: what it kept of its own activations is used. Else each arm's
    text is read under the interventions that stand with its token ids in ``arms``.
    """

    gives_way: ClassVar[bool] = True
    sae: str
    run: int
    prompt: str
    arms: tuple[tuple[tuple[Intervention, ...], tuple[int, ...]], ...]
    raw: bool = False
    feature: int = -1
    turns: tuple[Turn, ...] = ()


@dataclass(frozen=True, slots=True)
class ReadFeature(Job):
    """One feature over the text last encoded, and its page. Events: FeatureActivations, FeaturePage."""

    sae: str
    feature: int
    top_tokens: int = 10


LENS_TOKENS = 1024
"""How long a text the logit lens reads for a screen; the library reads any."""
TOO_LONG = f"The text has {{}} tokens; the lens reads up to {LENS_TOKENS}.", "Choose a shorter text."
"""What is wrong with a longer one, of which the number of tokens is to be filled in, and what to do."""


@dataclass(frozen=True, slots=True)
class ReadLens(Job):
    """The logit lens over a text, under an arm's interventions if one is given. Events: LensRead.

    ``token_ids`` wins over ``text``. ``target`` is the token to follow, its id or a text of one token; blank: the one
    that comes next. ``jacobian``: read it through the model's Jacobian lens.
    """

    gives_way: ClassVar[bool] = True
    text: str = ""
    token_ids: tuple[int, ...] = ()
    arm: Arm | None = None
    target: int | str = ""
    top_k: int = 10
    jacobian: bool = False


@dataclass(frozen=True, slots=True)
class ReadParts(Job):
    """What each layer's attention, its heads and its MLP add to a token's logit, at one position. Events: PartsRead.

    ``token_ids``, ``text`` and ``arm`` as of ReadLens. ``target`` is the token's id.
    """

    gives_way: ClassVar[bool] = True
    text: str = ""
    token_ids: tuple[int, ...] = ()
    arm: Arm | None = None
    target: int = 0
    position: int = -1


@dataclass(frozen=True, slots=True)
class ReadPattern(Job):
    """How much each head of a layer looks from each token to each one. Events: PatternRead.

    ``token_ids``, ``text`` and ``arm`` as of ReadLens.
    """

    gives_way: ClassVar[bool] = True
    text: str = ""
    token_ids: tuple[int, ...] = ()
    arm: Arm | None = None
    layer: int = 0


@dataclass(frozen=True, slots=True)
class Patch(Job):
    """Answer a question of cause, by ``tasks.causes.answer``. Events: Progress, Patched (first as far as it is)."""

    gives_way: ClassVar[bool] = True
    plan: PatchPlan


@dataclass(frozen=True, slots=True)
class VectorFromPatch(Job):
    """The clean activation less the corrupted one at a layer and column of a plan's grid. Events: VectorMade."""

    plan: PatchPlan
    layer: int
    column: int
    name: str


@dataclass(frozen=True, slots=True)
class MakeGraph(Job):
    """Make an attribution graph, by ``tasks.graphs``. ``kept`` is the number under which it is kept
    already. Events: Progress, GraphMade."""

    gives_way: ClassVar[bool] = True
    plan: GraphPlan
    kept: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class PruneGraph(Job):
    """The same graph, pruned as another plan says. Events: GraphMade."""

    found: GraphFound
    plan: GraphPlan


@dataclass(frozen=True, slots=True, eq=False)
class KeepGraph(Job):
    """Keep the pins and groups of a graph, where it is kept. No events."""

    found: GraphFound


@dataclass(frozen=True, slots=True)
class ReadGraph(Job):
    """Read a graph's JSON, as this program, Neuronpedia or circuit-tracer wrote it. Events: GraphMade."""

    path: str


@dataclass(frozen=True, slots=True, eq=False)
class WriteGraph(Job):
    """Write a graph as they read it. Events: GraphWritten."""

    graph: AttributionGraph
    path: str


@dataclass(frozen=True, slots=True, eq=False)
class CheckNode(Job):
    """Multiply what a node adds by ``factor`` and measure what that does to ``targets``. Events: NodeChecked.

    Without targets those it acts on most are looked at. A graph that is no more at hand is made once more.
    """

    gives_way: ClassVar[bool] = True
    found: GraphFound
    node: str
    targets: tuple[str, ...] = ()
    factor: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class VectorFromNode(Job):
    """What a node of a graph adds to the residual stream. Events: VectorMade."""

    found: GraphFound
    node: str
    name: str


@dataclass(frozen=True, slots=True)
class SetLabel(Job):
    """Give a feature your label; blank text takes it away, the one before stays in the history. Events: LabelSet."""

    sae: str
    feature: int
    text: str


@dataclass(frozen=True, slots=True)
class FindFeatures(Job):
    """Features by words: in labels, then among the tokens they promote (that needs an index). Events: FeaturesFound."""

    sae: str
    words: str
    top_k: int = 50


@dataclass(frozen=True, slots=True)
class ContrastTexts(Job):
    """The features that tell texts ``a`` from ``b``, as of ``tasks.feature_page.contrast_texts``. Events: Contrasted.

    A side that names a file in ``path_a`` or ``path_b`` has the file's texts instead.
    """

    gives_way: ClassVar[bool] = True
    sae: str
    a: tuple[str, ...] = ()
    b: tuple[str, ...] = ()
    path_a: str = ""
    path_b: str = ""
    measure: str = "auc"
    over: str = "max"
    both_sides: bool = False
    top_k: int = 20
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ExportFeatures(Job):
    """Write features with their labels to a file, JSON or CSV by its ending. Events: FeaturesExported."""

    sae: str
    name: str
    features: tuple[int, ...]
    path: str


@dataclass(frozen=True, slots=True)
class VectorFromFeature(Job):
    """A feature's decoder direction as a steering vector. Events: VectorMade."""

    sae: str
    feature: int


@dataclass(frozen=True, slots=True)
class VectorFromPrompts(Job):
    """A direction of ``resid_post`` from contrasting texts, by one of ``lens.vectors_fit.METHODS``.

    ``path`` is a file of pairs, read in place of the texts (``records.pairs``). Events: for one ``layer`` VectorMade;
    for all (``None``) LayersRanked, and the vector that is chosen of it comes with a VectorGiven.
    Activations are those of the last token of each text, or the mean over all its tokens but special ones with
    ``over="all"``. Unless ``raw``, texts go through the chat template.
    """

    gives_way: ClassVar[bool] = True
    name: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    layer: int | None
    over: str = "all"
    method: str = "mean_difference"
    raw: bool = True
    path: str = ""


@dataclass(frozen=True, slots=True)
class TrainProbes(Job):
    """A probe at each of some layers (``None``: all) of ``resid_post``, with what it does on examples held out.

    Texts of ``positive`` have label 1, those of ``negative`` 0; a first with a first are held out together where there
    are as many of each. ``path`` is a file of labelled texts, read in their place. ``kind``, ``over`` and ``raw`` are
    those of ``train_probes``. Events: Progress, ProbesTrained.
    """

    gives_way: ClassVar[bool] = True
    name: str
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    path: str = ""
    kind: str = "logistic"
    layers: tuple[int, ...] | None = None
    over: str = "last"
    raw: bool = True


@dataclass(frozen=True, slots=True)
class VectorFromToken(Job):
    """A token's row of the unembedding (``jacobian``: through the model's Jacobian lens) or its embedding.

    ``token`` is its text or ``id:17``. Events: VectorMade.
    """

    token: str
    layer: int
    kind: str = "unembedding"
    name: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class VectorFromVectors(Job):
    """A weighted sum, each vector at length 1 (``unit``) or its own; or, ``less``, the first without the others.

    Events: VectorMade.
    """

    name: str
    terms: tuple[tuple[float, SteeringVector], ...]
    less: bool = False
    unit: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class VectorGiven(Job):
    """Say of a vector that is there what it promotes and what its scales are read against. Events: VectorMade."""

    gives_way: ClassVar[bool] = True
    vector: SteeringVector


@dataclass(frozen=True, slots=True)
class VectorFromFile(Job):
    """A steering vector from a file of any known format. Events: VectorMade.

    ``layer`` says which of several, or what the file leaves open. Without it a file or folder of one vector for each of
    several layers is a set.
    """

    path: str
    layer: int | None = None


@dataclass(frozen=True, slots=True)
class BareVectors(Job):
    """The vectors of a bench at once, each as it is: a run needs no more, and a VectorGiven says the rest of each.

    Events: VectorMade, one for each in this order, without residual norms and tokens.
    """

    of: tuple[VectorFromFeature | VectorFromFile, ...]


@dataclass(frozen=True, slots=True)
class RandomVector(Job):
    """A random unit direction, the control every effect is held against. Events: VectorMade."""

    name: str
    layer: int
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class MeasureDose(Job):
    """A dose-response: what a steering does and costs at each scale. Events: Progress, DoseMeasured.

    ``n_texts`` are for the loss, 0: 16. ``questions`` is a file of questions with two answers, asked at every scale.
    ``interventions`` have a scale or value of 1, so that ``scales`` are absolute. ``controls`` random directions stand
    beside each scale. With an ``sae`` its ``feature`` is read back from what is written.
    """

    gives_way: ClassVar[bool] = True
    prompt: str
    interventions: tuple[Intervention, ...]
    scales: tuple[float, ...]
    controls: int = 1
    sae: str = ""
    feature: int = 0
    max_tokens: int = 60
    n_texts: int = 0
    seed: int = 0
    questions: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class FindScale(Job):
    """The scale at which ``quantity`` (``records.measures.QUANTITIES``) reaches ``target``.

    ``interventions`` have a scale of 1, or of -1 to search the other way; ``questions`` is a file of them, for
    ``behaviour``. Events: Progress, ScalesTried, ScaleFound.
    """

    gives_way: ClassVar[bool] = True
    interventions: tuple[Intervention, ...]
    quantity: str = "delta_loss"
    target: float | None = None
    questions: str = ""


@dataclass(frozen=True, slots=True)
class ReadNeighbours(Job):
    """The features nearest to one by decoder direction, and those active on the same tokens. Events: NeighboursRead."""

    gives_way: ClassVar[bool] = True
    sae: str
    feature: int
    top_k: int = 8


@dataclass(frozen=True, slots=True)
class IndexText(Job):
    """Index a text (a file, a folder or ``bundled``) for some SAEs, as of ``tasks.index.index_text``.

    ``full`` keeps every activation. Asked for again after a stop, it goes on. Events: Progress, TextIndexed.
    """

    gives_way: ClassVar[bool] = True
    saes: tuple[str, ...]
    text: str
    full: bool = False
    max_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TrainSAE(Job):
    """Train an SAE, or transcoders of the MLPs of ``layers``, on a text, as of ``tasks.train`` and its settings.

    ``width`` 0 is 16 times the width of what is read. Asked for again after a stop, it goes on. Events: Progress,
    TrainingAt, SAETrained.
    """

    gives_way: ClassVar[bool] = True
    text: str
    layers: tuple[int, ...]
    kind: str = "sae"
    skip: bool = False
    site: str = "resid_post"
    architecture: str = "batchtopk"
    width: int = 0
    k: int = 32
    tokens: int = 50_000_000
