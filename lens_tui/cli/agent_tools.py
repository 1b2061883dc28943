"""What an agent's tools compute: the verbs' own functions over a model that stays open, with controls beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NotRequired

import numpy as np
from typing_extensions import TypedDict  # pydantic makes schemas of this one alone before Python 3.12

from lens_tui import demo
from lens_tui.records import Arm, ArmEnd, Intervention, LensError, Sampling, Token
from lens_tui.records.arm_syntax import parse_arm
from lens_tui.records.cause_plan import read_token
from lens_tui.records.glossary import find
from lens_tui.records.interventions import acting_words
from lens_tui.records.patch_grid import PromptPair
from lens_tui.records.probe import save_probe
from lens_tui.records.run import figures, first_difference
from lens_tui.records.vector_formats import save_vectors
from lens_tui.tasks.causes import grid_record
from lens_tui.tasks.knowledge import index_of

from .agent_desk import Work, limited
from .compare_verbs import measured
from .feature_verbs import feature_number
from .read_verbs import read, record
from .steer_verbs import dose_record, vector_record

if TYPE_CHECKING:
    from lens_tui.lens.decode.compare import Comparison

_TOKENS, _PROMPTS, _RANDOM = 1024, 64, 16


class ModelFacts(TypedDict):
    """The open model and what can be named of it."""

    model: str
    architecture: str
    n_layers: int
    d_model: int
    n_parameters: int
    takes_chat: bool
    device: str
    sites: list[str]
    vectors: list[dict[str, Any]]
    sae: dict[str, Any] | None


class ArmResult(TypedDict):
    """One arm of a comparison. ``kind`` is baseline, steering, flipped (its sign turned) or random (its length)."""

    name: str
    kind: str
    does: list[str]
    text: str
    mean_kl: float | None
    mean_reverse_kl: float | None
    perplexity: float | None
    plain_perplexity: float | None
    dose: float | None
    parts_at: int | None


class CompareResult(TypedDict):
    """Arms in the order baseline, steering, its controls; what the KL of the steering is worth beside these."""

    model: str
    prompt: str
    arms: list[ArmResult]
    kl_over_random: float | None
    note: str
    warnings: NotRequired[list[str]]


class TextWritten(TypedDict):
    """What was written to a prompt."""

    prompt: str
    text: str
    reason: str
    n_tokens: int


class GenerateResult(TypedDict):
    """Texts in the order of their prompts."""

    model: str
    does: list[str]
    texts: list[TextWritten]
    warnings: NotRequired[list[str]]


class LossResult(TypedDict):
    """Mean next-token loss in nats, plain, steered and for the controls of the steering."""

    model: str
    n_tokens: int
    loss: float
    steered_loss: float | None
    delta: float | None
    flipped_delta: float | None
    random_deltas: list[float]
    note: str
    warnings: NotRequired[list[str]]


class CaptureInfo(TypedDict):
    """What the activations of a text are like at a layer and site: numbers, no tensors."""

    layer: int
    site: str
    tokens: int
    width: int
    mean_norm: float
    max_norm: float
    loudest_token: str
    mean_cosine: float


def model_facts(work: Work) -> ModelFacts:
    """What there is to ask about."""
    info, lens = work.lens.info, work.lens
    vectors = [{"name": v.name, "layer": v.layer, "works_at": v.scale, "says": v.says} for v in demo.vectors()]
    sae: dict[str, Any] | None = None
    try:
        found = work.sae_info
        sae = {"name": found.name, "layer": found.layer, "site": found.site, "features": found.width}
    except LensError:
        pass  # none is named
    return ModelFacts(
        model=info.name,
        architecture=info.architecture,
        n_layers=info.n_layers,
        d_model=info.d_model,
        n_parameters=info.n_parameters,
        takes_chat=info.takes_chat,
        device=info.device,
        sites=list(lens.sites(0)),
        vectors=vectors if work.model == demo.NAME else [],
        sae=sae,
    )


def steering_of(work: Work, arm: str) -> tuple[Intervention, ...]:
    """The records of an arm as it is written; none for an empty one."""
    return work.vectors.arm(parse_arm(arm)).interventions if arm.strip() else ()


def compared(
    work: Work, prompt: str, arm: str, sampling: Sampling, *, controls: bool, n_random: int, raw: bool
) -> CompareResult:
    """The plain model, the steering, and beside them its sign turned and random directions of its length."""
    limited(sampling.max_tokens, "max_tokens", _TOKENS)
    records = steering_of(work, arm)
    if not records:
        raise LensError("There is no steering to compare.", "Give an arm, such as verse*8.")
    kinds, note = ["baseline", "steering"], "Controls were switched off: nothing says what any push would have done."
    named = [Arm("baseline"), Arm(arm, records)]
    if controls:
        more, note = _controls(records, limited(n_random, "n_random", _RANDOM), sampling.seed)
        kinds += [kind for kind, _ in more]
        named += [Arm(f"{kind} {at}", plan) for at, (kind, plan) in enumerate(more)]

    run = work.lens.compare(prompt, named, sampling, raw=raw, progress=lambda *_: work.say(0, 1, "reading"))
    tokens, ends = _followed(work, run, sampling.max_tokens)
    arms = [
        _arm(kind, one, tokens[at], ends[at], first_difference(tokens[at], tokens[0]) if at else None)
        for at, (kind, one) in enumerate(zip(kinds, named, strict=True))
    ]
    drawn = [one["mean_kl"] for one in arms if one["kind"] == "random" and one["mean_kl"] is not None]
    mine = arms[1]["mean_kl"]
    ratio = mine / (sum(drawn) / len(drawn)) if drawn and mine is not None and sum(drawn) > 0 else None
    return CompareResult(model=work.lens.info.name, prompt=prompt, arms=arms, kl_over_random=ratio, note=note)


def _followed(work: Work, run: Comparison, most: int) -> tuple[list[list[Token]], dict[int, ArmEnd]]:
    """Tokens and ends of every arm; how far they are is said at each step."""
    tokens: list[list[Token]] = [[] for _ in run.arms]
    ends: dict[int, ArmEnd] = {}
    try:
        for event in run:
            if isinstance(event, ArmEnd):
                ends[event.arm] = event
                continue
            tokens[event.arm].append(event)
            work.say(max(map(len, tokens)), most, "writing")
    finally:
        run.close()
    return tokens, ends


def _arm(kind: str, arm: Arm, tokens: Sequence[Token], end: ArmEnd, parts_at: int | None) -> ArmResult:
    found = figures(tokens)
    return ArmResult(
        name=arm.name,
        kind=kind,
        does=acting_words(arm.interventions),
        text=end.text,
        mean_kl=found["mean_kl"],
        mean_reverse_kl=found["mean_reverse_kl"],
        perplexity=found["perplexity"],
        plain_perplexity=found["plain_perplexity"],
        dose=end.dose,
        parts_at=parts_at,
    )


def _controls(
    records: Sequence[Intervention], k: int, seed: int
) -> tuple[list[tuple[str, tuple[Intervention, ...]]], str]:
    """The controls that a steering can have, by kind, and what they are for in a sentence."""
    from lens_tui.lens.measure.effects import controls

    try:
        flipped, drawn = controls(records, k, seed)
    except LensError as error:
        return [], f"There are no controls: {error}"
    found = [("flipped", flipped)] if flipped is not None else []
    said = "A random direction of the same length is what any push does; the sign turned should do the opposite."
    return [*found, *(("random", plan) for plan in drawn)], said


def generated(work: Work, prompts: Sequence[str], arm: str, sampling: Sampling, *, raw: bool) -> GenerateResult:
    """A text for each prompt, all in one batch."""
    limited(len(prompts), "The number of prompts", _PROMPTS)
    limited(sampling.max_tokens, "max_tokens", _TOKENS)
    records = steering_of(work, arm)
    batch = work.lens.stream_batch(list(prompts), sampling=sampling, interventions=records, raw=raw)
    done = 0
    try:
        for event in batch:
            done += not isinstance(event, ArmEnd)
            work.say(done, len(prompts) * sampling.max_tokens, "writing")
    finally:
        batch.close()
    rows = [
        TextWritten(prompt=prompt, text=row.text, reason=row.reason, n_tokens=len(row.token_ids))
        for prompt, row in zip(prompts, batch.records, strict=True)
    ]
    does = acting_words(records)
    return GenerateResult(model=work.lens.info.name, does=does, texts=rows)


def losses(work: Work, texts: Sequence[str], arm: str, *, controls: bool, n_random: int, seed: int) -> LossResult:
    """The loss of texts, and what a steering and its controls do to it."""
    limited(len(texts), "The number of texts", _PROMPTS)
    records = steering_of(work, arm)
    found = measured(work.lens, texts, records)
    flipped: float | None = None
    drawn: list[float] = []
    note = "Lower is better predicted; nothing acts." if not records else "Controls were switched off."
    if records and controls:
        more, note = _controls(records, limited(n_random, "n_random", _RANDOM), seed)
        for at, (kind, plan) in enumerate(more):
            work.say(at, len(more), "controls")
            delta = float(measured(work.lens, texts, plan)["delta"])
            if kind == "flipped":
                flipped = delta
            else:
                drawn.append(delta)
    return LossResult(
        model=found["model"],
        n_tokens=found["n_tokens"],
        loss=found["loss"],
        steered_loss=found["steered_loss"],
        delta=found["delta"],
        flipped_delta=flipped,
        random_deltas=drawn,
        note=note,
    )


def dosed(
    work: Work, prompt: str, arm: str, scales: Sequence[float], *, controls: int, max_tokens: int, texts: int
) -> dict[str, Any]:
    """Every measure at every scale, with controls at each."""
    from lens_tui.tasks.make_vectors import measure_dose

    limited(len(scales), "The number of scales", 32)
    limited(max_tokens, "max_tokens", _TOKENS)
    limited(texts, "texts", 64)
    if not 0 <= controls <= _RANDOM:
        raise LensError(f"controls is {controls}.", f"Give 0 to {_RANDOM}.")
    records = work.vectors.arm(parse_arm(arm, 1.0)).interventions
    found = measure_dose(
        work.lens,
        prompt,
        records,
        scales,
        controls=controls,
        max_tokens=max_tokens,
        n_texts=texts,
        progress=lambda _, done, total: work.say(done, total, "measuring"),
    )
    return dose_record(prompt, work.lens.info.name, records, found)


def features_of(work: Work, text: str, k: int) -> dict[str, Any]:
    """The strongest features of every token of a text."""
    return read(work.lens, work.sae, text, limited(k, "top_k", 64))


def feature_page(work: Work, feature: str, examples: int) -> dict[str, Any]:
    """All that is known of a feature."""
    from lens_tui.tasks.feature_page import feature_facts

    index = index_of(work.sae_info)
    facts = feature_facts(
        work.lens, work.sae, feature_number(feature), index, examples=limited(examples, "examples", 50)
    )
    return dict(facts.plain())


def searched(work: Work, words: str, k: int) -> dict[str, Any]:
    """Features whose labels or promoted tokens have the words."""
    from lens_tui.tasks.feature_page import search_features

    info = work.sae_info
    found = search_features(words, info, work.lens, index_of(info), convention="norm", k=limited(k, "top_k", 200))
    return dict(found.plain())


def vector_made(work: Work, name: str, toward: Sequence[str], away: Sequence[str], layer: int | None) -> dict[str, Any]:
    """A contrast vector, kept in the vectors folder under its name, and how well it tells held-out pairs apart."""
    from lens_tui.lens.vectors import residual_norm
    from lens_tui.tasks.make_vectors import from_pairs

    limited(len(toward) + len(away), "The number of texts", 1000)
    ranked = from_pairs(work.lens, name, list(toward), list(away), layer=layer)
    vector = ranked[0].vector
    result = {"model": work.lens.info.name, **vector_record(vector, ranked)}
    promoted, suppressed = work.lens.promoted(vector, 10)
    result["promoted"] = [token.text for token in promoted]
    result["suppressed"] = [token.text for token in suppressed]
    result["residual_norm"] = residual_norm(work.lens, vector.layer, site=vector.site)
    result["file"] = str(save_vectors(vector))
    return result


def probed(
    work: Work, name: str, texts: Sequence[str], labels: Sequence[float], *, kind: str, over: str, save: bool
) -> dict[str, Any]:
    """A probe at each layer with its held-out score beside its null; the best one's file, if it is to be kept."""
    from lens_tui.lens.probes.probe_texts import train_probes

    limited(len(texts), "The number of texts", 1000)
    asked: dict[str, Any] = {"kind": kind, "over": over}
    report = train_probes(
        work.lens,
        name,
        list(texts),
        list(labels),
        progress=lambda done, total: work.say(done, total, "layers"),
        **asked,
    )
    layers = [
        {
            "layer": probe.layer,
            "metric": probe.held_out.metric,
            "held_out": probe.held_out.value,
            "null_mean": probe.held_out.null_mean,
            "null_high": probe.held_out.null_high,
            "p": probe.held_out.p,
        }
        for probe in report.probes
    ]
    found = {"model": report.model, "name": name, "examples": report.probes[0].held_out.n, "layers": layers}
    found["best"] = report.best.layer
    found["file"] = str(save_probe(report.best)) if save else None
    found["note"] = "Believe a held-out score above null_high alone: what is dealt at random reaches that in 1 of 20."
    return found


def lens_read(work: Work, text: str, arm: str, target: str, layers: Sequence[int] | None, k: int) -> dict[str, Any]:
    """What every layer would predict at every token of a text."""
    from lens_tui.lens.read.logits import logit_lens

    limited(k, "top_k", 32)
    ids = limited(len(work.lens.tokens.encode(text)), "The number of tokens", 256)
    limited(ids * (len(layers) if layers else work.lens.n_layers), "The number of cells", 4096)
    steering = steering_of(work, arm)
    found = logit_lens(work.lens, text, layers=layers, target=read_token(target), top_k=k, interventions=steering)
    return record(found, steering)


def patched_between(
    work: Work, clean: str, corrupted: str, answer: str, wrong: str, *, by: str, metric: str, controls: bool
) -> dict[str, Any]:
    """What matters for the difference between two prompts: activation patching with its controls."""
    from lens_tui.lens.causes.patching import patch

    if by not in ("layer-position", "layer", "head"):
        raise LensError(f"There is no way {by!r} of patching here.", "Use layer-position, layer or head.")
    ways: Any = by
    pair = PromptPair(clean, corrupted, read_token(answer), read_token(wrong))
    grid = patch(
        work.lens,
        [pair],
        metric,
        by=ways,
        controls=controls,
        progress=lambda done, total: work.say(done, max(1, total), "patching"),
    )
    return grid_record(grid, None)


def captured_info(work: Work, text: str, layers: Sequence[int], site: str, arm: str) -> list[CaptureInfo]:
    """Sizes and directions of the activations of a text, layer by layer."""
    from lens_tui.lens.forward import as_float, read_sites

    limited(len(layers), "The number of layers", 256)
    lens, decoder = work.lens, work.lens.registry.decoder
    ids = lens.tokens.encode(text)
    keys = [(decoder.index(layer), site) for layer in layers]
    found = read_sites(lens, ids, keys, steering_of(work, arm))
    rows = []
    for layer, name in dict.fromkeys(keys):
        values = as_float(found[layer, name])
        norms = np.linalg.norm(values, axis=-1)
        unit = values / np.maximum(norms, 1e-12)[:, None]
        n = len(ids)
        cosine = (float((unit.sum(axis=0) ** 2).sum()) - n) / (n * (n - 1)) if n > 1 else 1.0
        loudest = lens.tokens.display(ids[int(norms.argmax())])
        rows.append(
            CaptureInfo(
                layer=layer,
                site=name,
                tokens=n,
                width=values.shape[1],
                mean_norm=float(norms.mean()),
                max_norm=float(norms.max()),
                loudest_token=loudest,
                mean_cosine=cosine,
            )
        )
    return rows


def explained(words: str) -> list[dict[str, Any]]:
    """What numbers mean, by their names."""
    found = find(words)[:10]
    if not found:
        raise LensError(f"The glossary has nothing for {words[:60]!r}.", "Try kl, dose, fvu, l0 or perplexity.")
    return [{"name": t.name, "means": t.means, "unit": t.unit, "source": t.source} for t in found]
