"""SAEs in the making and in use: how activations get to them, settings and reports of training, how well they fit.

``lens`` makes activations, ``sae`` learns from them or indexes them, and neither knows the other: what they share is in
the protocols here. Arrays are whatever the maker uses (MLX, or NumPy in a test); nothing here looks into them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .errors import LensError
from .read_files import AGAIN, explained, parse_json
from .sanitise import one_line

Place = tuple[int, str]
"""A layer and a site, e.g. ``(4, "resid_post")``."""


@dataclass(frozen=True, slots=True)
class ActivationBlock:
    """Some token positions of a text and what the model held there.

    ``index`` is the block's number in its source: block ``i`` is the same rows,
    in the same order, whenever and wherever it is asked for. ``token_ids``,
    ``documents``, ``offsets`` and ``special`` have shape ``(n,)``: the token,
    the corpus number of its document, its place among the tokens of that document
    (-1 for tokens that belong to none: BOS, separators) and whether it is left out
    by convention (BOS, other special tokens, the positions that every window
    skips). ``values`` maps a place to an array ``(n, d)`` in the model's dtype.
    """

    index: int
    token_ids: NDArray[np.int32]
    documents: NDArray[np.int32]
    offsets: NDArray[np.int32]
    special: NDArray[np.bool_]
    values: dict[Place, Any]


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What a source is, for the record: enough to know whether two sources are the same one.

    ``context`` is the window length in tokens, ``bos`` whether each window begins
    with BOS, ``skipped`` how many positions at the start of a window are special.
    ``n_tokens`` counts the tokens that are not special in one pass.
    """

    model_name: str
    corpus_sha256: str
    n_documents: int
    n_tokens: int
    context: int
    bos: bool
    skipped: int
    packed: bool
    seed: int
    extra: tuple[tuple[str, str], ...] = ()


Splice = Callable[[Any], Any]
"""Takes the activations ``(n, d)`` of a place, gives what the model is to continue with."""


@runtime_checkable
class ActivationSource(Protocol):
    """Blocks of activations by number, and the model's loss with something spliced in."""

    @property
    def places(self) -> tuple[Place, ...]:
        """What each block carries."""
        ...

    @property
    def facts(self) -> SourceFacts:
        """What this source is."""
        ...

    def d_model(self, place: Place) -> int:
        """The width of the activations at a place."""
        ...

    @property
    def n_blocks(self) -> int:
        """Blocks in one pass over the corpus. Block ``n_blocks`` begins the second pass, in another order."""
        ...

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[ActivationBlock]:
        """Blocks ``start``, ``start + 1``, ... without end (or up to ``stop``)."""
        ...

    def loss_with(self, place: Place, splice: Splice | None, blocks: int, *, read: Place | None = None) -> float:
        """Mean cross-entropy (nats a token) over the first ``blocks`` blocks.

        ``splice`` replaces the activations of the positions that are not special;
        ``None`` leaves the model as it is. It is given what stands at ``place``, or at ``read``, which comes before it.
        """
        ...


Architecture = Literal["topk", "batchtopk", "jumprelu"]
Kind = Literal["sae", "transcoder"]
Normalization = Literal["centered", "norm", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How to train an SAE or a transcoder. Losses and thresholds are in normalised units (see ``normalize``).

    ``kind``: an ``sae`` gives what it reads; a ``transcoder`` (Dunefsky et al. 2024, arXiv:2406.11944) reads an MLP's
    input and gives its output, with ``skip`` by a linear map beside the latents (Paulo et al. 2025, arXiv:2501.18823).

    ``architecture``: ``topk`` keeps the ``k`` largest latents of each token (Gao et
    al. 2024, arXiv:2406.04093), ``batchtopk`` the ``k * batch`` largest of a batch
    (Bussmann et al. 2024, arXiv:2412.06410), ``jumprelu`` learns a threshold a latent by
    straight-through estimators (Rajamanoharan et al. 2024, arXiv:2407.14435) with
    the penalty ``l0_coefficient * (L0 / k - 1)^2`` or, where ``l0_linear``,
    ``l0_coefficient * L0 / k``; the thresholds start at ``initial_threshold`` (0: where L0 begins at ``2 k``) and learn
    from pre-activations within half a ``bandwidth`` of them. All three are saved as JumpReLU SAEs; for the first two
    one threshold is calibrated at the end so that the mean L0 is ``k``.

    ``normalize``: ``centered`` subtracts the starting ``b_dec`` and scales the mean norm of the
    rest to ``sqrt(d_model)``; ``norm`` only scales the mean norm to ``sqrt(d_model)``;
    either is folded into the weights at the end, so that the SAE takes raw activations.

    ``matryoshka`` lists prefix widths below ``width``: the loss is the mean of the
    reconstruction losses of each prefix and of the whole (Bussmann et al. 2025, arXiv:2503.17547).

    A latent is dead when it has not fired for ``dead_after`` tokens; ``aux_coefficient``
    weighs the loss by which the dead latents explain the residual error (AuxK, Gao et al.
    2024): the ``aux_slots`` longest dead ones take part (0: ``min(width, 512)``), each token uses its ``aux_k``
    largest (0: half of ``d_model``).
    """

    width: int
    k: int = 32
    kind: Kind = "sae"
    skip: bool = False
    architecture: Architecture = "batchtopk"
    tokens: int = 50_000_000
    batch: int = 4096
    learning_rate: float = 4e-4
    warmup: float = 0.02
    decay: float = 0.3
    betas: tuple[float, float] = (0.9, 0.999)
    normalize: Normalization = "centered"
    matryoshka: tuple[int, ...] = ()
    aux_coefficient: float = 1 / 32
    aux_k: int = 0
    aux_slots: int = 0
    dead_after: int = 1_000_000
    l0_coefficient: float = 1.0
    l0_linear: bool = False
    l0_warmup: float = 0.1
    bandwidth: float = 0.5
    initial_threshold: float = 0.0
    calibration_tokens: int = 65_536
    pool_tokens: int = 262_144
    evaluation_tokens: int = 65_536
    evaluate_every: int = 0
    compute: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        problem = _problem(self)
        if problem:
            raise LensError(*problem)

    @property
    def steps(self) -> int:
        """Optimiser steps: ``tokens`` in whole batches, at least one."""
        return max(1, self.tokens // self.batch)

    def to_json(self) -> str:
        """One line of JSON that ``from_json`` reads back."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> TrainConfig:
        """Raises ``LensError`` for unknown keys, so that a setting of another version is not lost silently."""
        what = "Training settings"
        values: Any = parse_json(text, what)
        if not isinstance(values, dict):
            raise LensError(f"{what} are an object with names, not {type(values).__name__}.", AGAIN)
        unknown = sorted(set(values) - {item.name for item in fields(cls)})
        if unknown:
            listed = one_line(", ".join(unknown), 200)
            raise LensError(f"Unknown training settings: {listed}.", "They may be from another version.")
        with explained(what):
            for name in ("betas", "matryoshka"):
                if name in values:
                    values[name] = tuple(values[name])
            return cls(**values)


def _problem(c: TrainConfig) -> tuple[str, str] | None:
    if c.architecture not in get_args(Architecture):
        return f"There is no SAE architecture {c.architecture!r} to train.", "Choose topk, batchtopk or jumprelu."
    if c.kind not in get_args(Kind):
        return f"There is no kind {c.kind!r} to train.", "Choose sae or transcoder."
    if c.skip and c.kind != "transcoder":
        return "A skip connection belongs to a transcoder.", "Leave skip out, or train a transcoder."
    if c.normalize not in get_args(Normalization):
        return f"There is no normalisation {c.normalize!r}.", "Choose centered, norm or none."
    if c.compute not in ("float32", "bfloat16"):
        return f"Training cannot compute in {c.compute!r}.", "Choose float32 or bfloat16."
    if min(c.width, c.k, c.tokens, c.batch, c.calibration_tokens, c.pool_tokens, c.evaluation_tokens) < 1:
        return "width, k, tokens, batch and the token counts must be at least 1.", "Check the training settings."
    if c.k > c.width:
        return f"k is {c.k} but the SAE is only {c.width} wide.", "Choose k below the width, 20 to 100 is usual."
    if not (0 < c.learning_rate < 1 and 0 <= c.warmup <= 1 and 0 <= c.decay <= 1 and 0 <= c.l0_warmup <= 1):
        return "learning_rate, warmup, decay or l0_warmup is out of range.", "All are shares between 0 and 1."
    if c.bandwidth <= 0 or min(c.initial_threshold, c.aux_coefficient, c.l0_coefficient) < 0:
        return "bandwidth must be positive, initial_threshold and coefficients not negative.", "Check the settings."
    if list(c.matryoshka) != sorted(set(c.matryoshka)) or any(not 0 < m < c.width for m in c.matryoshka):
        return f"The prefixes {c.matryoshka} do not rise from 1 to below the width {c.width}.", "E.g. (512, 2048)."
    if min(c.evaluate_every, c.dead_after, c.aux_k, c.aux_slots) < 0:
        return "evaluate_every, dead_after, aux_k and aux_slots cannot be negative.", "0 stands for the default."
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """How good an SAE is on ``n_tokens`` positions it was not trained on.

    ``l0``: mean number of latents that fire. ``fvu``: ``sum |x - x_hat|^2 / sum |x - mean x|^2`` in raw
    units, of a transcoder with the MLP's output for ``x``. ``loss_clean``, ``loss_spliced``, ``loss_zero``: the model's
    cross-entropy (nats a token)
    as it is, with the reconstruction in place of the activations, with zeros in
    their place; ``None`` where it was not measured. ``dead``: share of latents that did not fire on these tokens;
    ``dense``: share that fired on more than 10 % of them. ``density_counts`` is a histogram of ``log10``
    of the firing rate between ``density_edges`` (latents that never fired are in none of its bins).
    """

    step: int
    n_tokens: int
    l0: float
    fvu: float
    dead: float
    dense: float
    density_edges: tuple[float, ...]
    density_counts: tuple[int, ...]
    loss_clean: float | None = None
    loss_spliced: float | None = None
    loss_zero: float | None = None

    @property
    def loss_recovered(self) -> float | None:
        """``(loss_zero - loss_spliced) / (loss_zero - loss_clean)``, 1.0 when nothing is lost."""
        if self.loss_clean is None or self.loss_spliced is None or self.loss_zero is None:
            return None
        gap = self.loss_zero - self.loss_clean
        return (self.loss_zero - self.loss_spliced) / gap if gap else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainProgress:
    """Where a training run is. ``fvu`` and ``l0`` are of the last batch in training mode; ``seconds_left`` a guess.

    ``stage`` is ``read`` (the text), ``prepare``, ``fill``, ``train``, ``evaluate`` or ``save``. While activations are
    taken from the model, for the sample that sizes are set by (``prepare``) and for the pool that batches are drawn
    from (``fill``), ``taken`` of ``wanted`` positions are there.
    """

    stage: str
    step: int
    steps: int
    tokens: int
    tokens_per_s: float = 0.0
    seconds_left: float | None = None
    fvu: float | None = None
    l0: float | None = None
    dead: float | None = None
    evaluation: Evaluation | None = None
    taken: int = 0
    wanted: int = 0

    @property
    def qualities(self) -> tuple[str, ...]:
        """What is known of the last batch, in words: ``FVU 0.123``, ``L0 12.3``, ``dead 4.5%``."""
        known = (
            None if self.fvu is None else f"FVU {self.fvu:.3f}",
            None if self.l0 is None else f"L0 {self.l0:.1f}",
            None if self.dead is None else f"dead {self.dead:.1%}",
        )
        return tuple(filter(None, known))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainReport:
    """What a training run made. ``stopped``: it was stopped before its end and can be resumed; nothing was exported.

    A transcoder reads ``site`` and gives ``site_out``, both of ``layer``; for an SAE ``site_out`` is ``""``.
    """

    config: TrainConfig
    layer: int
    site: str
    d_model: int
    model_name: str
    corpus_sha256: str
    bos_included: bool
    step: int
    tokens: int
    seconds: float
    stopped: bool
    final: Evaluation | None = None
    history: tuple[Evaluation, ...] = field(default=())
    folder: str = ""
    site_out: str = ""


def read_layers(text: str, n_layers: int) -> tuple[int, ...]:
    """``4``, ``-1``, ``0-3,6`` or ``all`` as layers from 0, rising. Raises :class:`LensError` for anything else."""
    if text.strip() == "all":
        return tuple(range(n_layers))
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(-?\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", part)
        if match is None:
            raise LensError(f"The layers {text!r} cannot be read.", "Write 4, -1, 0-3,6 or all.")
        low = int(match[1])
        found.update(range(low, int(match[2]) + 1) if match[2] else [low])
    wrong = [layer for layer in found if not -n_layers <= layer < n_layers]
    if wrong or not found:
        raise LensError(f"There is no layer {wrong[0] if wrong else text!r}.", f"Layers are 0 to {n_layers - 1}.")
    return tuple(sorted({layer % n_layers for layer in found}))


Verdict = Literal["fits", "fits better elsewhere", "does not fit", "not declared"]


@dataclass(frozen=True, slots=True)
class SiteFit:
    """An SAE measured on one tensor: mean active latents a token, and the share of variance it leaves unexplained.

    ``fvu`` is ``None`` where it cannot be had (a transcoder without its target, tokens that do not vary).
    """

    place: Place
    n_tokens: int
    l0: float
    fvu: float | None


@dataclass(frozen=True, slots=True)
class FitReport:
    """The verdict on an SAE, with what it rests on.

    ``rows`` are the tensors that were tried, the declared one first; ``better`` is the one it fits better, or, if it
    declares none, the one it fits best. ``sentence`` says it all in one sentence.
    """

    verdict: Verdict
    sentence: str
    rows: tuple[SiteFit, ...]
    declared: Place | None = None
    declared_l0: float | None = None
    declared_fvu: float | None = None
    better: Place | None = None

    @property
    def fits(self) -> bool:
        """Whether it may be used where it says it belongs."""
        return self.verdict == "fits"
