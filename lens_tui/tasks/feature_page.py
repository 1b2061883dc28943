"""What is known of a feature, and features by words: the library behind the verbs ``feature`` and ``search``."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lens_tui.lens.decode.sampling import log_softmax
from lens_tui.records import LensError, SAEInfo
from lens_tui.records.corpus import open_corpus
from lens_tui.records.disk import write_text
from lens_tui.records.features import (
    CoActive,
    ContrastedFeature,
    FeatureActivity,
    FeatureExample,
    FeatureFacts,
    FeatureSearch,
    FoundFeature,
    Neighbour,
    Promoter,
)
from lens_tui.records.info import in_residual
from lens_tui.records.sanitise import one_line
from lens_tui.sae.index.index_reader import describe
from lens_tui.sae.index.questions import (
    co_active,
    contrast_features,
    decoder_neighbours,
    direct_effects,
    promoting,
    rank_features,
    text_features,
)

from .knowledge import dashboard_of, label_texts, labels_of, opened, search_labels

if TYPE_CHECKING:
    from lens_tui.lens.architecture.unembed import Convention
    from lens_tui.lens.model import LensModel
    from lens_tui.records import FloatArray, SteeringVector
    from lens_tui.records.label_files import Dashboard
    from lens_tui.sae.index.index_reader import Example, FeatureIndex
    from lens_tui.sae.index.questions import Measure, Over, TextFeatures
    from lens_tui.sae.load_sae import SAE


TokenText = Callable[[int], str]
_DASHBOARD_EXAMPLES = 12
_log = logging.getLogger(__name__)


def feature_facts(
    model: LensModel,
    sae: SAE,
    feature: int,
    index: FeatureIndex | None,
    *,
    convention: Convention = "norm",
    tokens: int = 10,
    examples: int = 12,
    neighbours: int | None = 10,
    lenient: bool = False,
) -> FeatureFacts:
    """The page of a feature: for the screen, the verb ``feature`` and its ``--json`` alike.

    Args:
        model: the model, which gives tokens their texts and the unembedding.
        sae: the SAE that the feature is of.
        feature: its number.
        index: the index of the SAE, ``None`` without one (see :func:`~lens_tui.tasks.knowledge.index_of`).
        convention: how promoted tokens are found; ``norm`` folds the final norm's gain in, ``raw`` does not.
        tokens: how many promoted and suppressed tokens.
        examples: how many top examples, one a document.
        neighbours: how many neighbours and co-active features; ``None`` leaves them out, and the pass over the
            whole decoder that they need.
        lenient: log what cannot be read of the index or the database and continue without it, not raise.

    Raises:
        LensError: for a feature that the SAE does not have, and unless ``lenient`` for what cannot be read.
    """
    info = sae.info
    direction = sae.directions([feature])[0]  # checks the id
    writes = sae.d_out == model.d_model and in_residual(info.site_out or info.site)
    promoted, suppressed = model.promoted(direction, tokens, convention=convention) if writes else ((), ())
    facts = FeatureFacts(
        model.info.name, info.name, info.id, info.layer, info.site, feature,
        convention=convention if writes else None, promoted=promoted, suppressed=suppressed,
    )  # fmt: skip
    try:
        facts = _with_index(facts, index, model.tokens.display, examples)
    except LensError as error:
        if not lenient or index is None:
            raise
        _log.warning("the index %s cannot be read: %s", index.path, error)
        facts = replace(facts, problem=one_line(str(error), 200))
    if neighbours is not None:
        facts = _with_neighbours(facts, sae, index, neighbours)
    try:
        return _with_labels(facts, info, indexed=index is not None)
    except LensError as error:  # a database that cannot be read must not take the page away
        if not lenient:
            raise
        _log.warning("labels cannot be read: %s", error)
        return facts


def _with_index(facts: FeatureFacts, index: FeatureIndex | None, text: TokenText, k: int) -> FeatureFacts:
    """With what the index says."""
    if index is None:
        return facts
    numbers = asdict(index.statistics(facts.feature))
    del numbers["feature"]
    activity = FeatureActivity(
        index.identity.corpus,
        key=index.path.name,
        counted_tokens=index.n_counted,
        notes=tuple(index.notes),
        **numbers,
        examples=tuple(_example(example, text) for example in index.examples(facts.feature, k)),
        samples=tuple(
            (edge, tuple(_example(example, text) for example in drawn)) for edge, drawn in index.sample(facts.feature)
        ),
    )
    return replace(facts, description=describe(index, facts.feature, text).text, index=activity)


def _example(example: Example, text: TokenText) -> FeatureExample:
    return FeatureExample(
        example.document,
        example.offset,
        example.value,
        example.peak,
        tuple(text(int(token)) for token in example.token_ids),
        tuple(0.0 if value != value else float(value) for value in example.values),  # NaN: not kept
    )


def _with_neighbours(facts: FeatureFacts, sae: SAE, index: FeatureIndex | None, k: int) -> FeatureFacts:
    """With the features that are nearest by decoder direction, and those that fire on the same tokens; unnamed."""
    near = decoder_neighbours(sae.directions, sae.d_sae, facts.feature, k=k)
    together = co_active(index, facts.feature, k=k) if index is not None and index.knows_co_active else None
    return replace(facts, neighbours=tuple(Neighbour(*row) for row in near), co_active=together)


def _with_labels(facts: FeatureFacts, info: SAEInfo, *, indexed: bool) -> FeatureFacts:
    """With what the user's database says, opened once: labels, names of neighbours, without an index a dashboard."""
    near, together = facts.neighbours, facts.co_active
    listed = [row.feature for row in near or ()] + [row.feature for row in together or ()]
    with opened() as store:
        names = label_texts(info, listed, store)
        dashboard = None if indexed else dashboard_of(info, facts.feature, store)
        return replace(
            facts,
            labels=labels_of(info, facts.feature, store),
            neighbours=None if near is None else named(near, names),
            co_active=None if together is None else named(together, names),
            dashboard=None if dashboard is None else _of_another_tool(dashboard),
        )


def _of_another_tool(dashboard: Dashboard) -> FeatureActivity:
    """What another tool says, by its own definitions."""
    top = [example for example in dashboard.examples if example.tokens and example.values][:_DASHBOARD_EXAMPLES]
    return FeatureActivity(
        dashboard.source,
        density=dashboard.density,
        max=dashboard.maximum,
        examples=tuple(
            FeatureExample(
                -1, -1, max(example.values), example.values.index(max(example.values)), example.tokens, example.values
            )
            for example in top
        ),
    )


Row = TypeVar("Row", Neighbour, CoActive, Promoter, ContrastedFeature)


def named(rows: Iterable[Row], names: Mapping[int, str]) -> tuple[Row, ...]:
    """Rows of features, each with its label, where it has one."""
    return tuple(replace(row, label=names.get(row.feature)) for row in rows)


def feature_vector(sae: SAE, facts: FeatureFacts, here: FloatArray | None) -> SteeringVector:
    """A feature's decoder direction, named by its label.

    Its largest activation is that in the index or dashboard, or else ``here``: on the tokens of a text, ``(n,)``.
    """
    largest = facts.activity.max if facts.activity is not None else None
    if largest is None and here is not None and here.size:
        largest = float(here.max())
    name = one_line(facts.label.text, 200) if facts.label is not None else ""
    vector = sae.vector(facts.feature, max_activation=largest or None)
    return replace(vector, name=name or f"feature {facts.feature}")


def search_features(
    words: str, info: SAEInfo, model: LensModel, index: FeatureIndex | None, *, convention: str = "norm", k: int = 20
) -> FeatureSearch:
    """Features by words: those whose labels hold all of them, and those that promote one of them as a token.

    The words are looked for as single tokens with and without a space before, in either case; a word that the
    tokenizer splits is only looked for in labels. ``promoting`` is ``None`` without an index that has the
    token table of ``convention``. Raises ``LensError`` if there is no word to look for.
    """
    if not any(character.isalnum() for character in words):
        raise LensError("There is no word to look for.", "Give some words, for example: sea ship.")
    tokens = word_tokens(model, words)
    found = None
    if index is not None and convention in index.conventions:
        found = promoting(index, list(tokens), convention=convention, k=k)
    with opened() as store:
        labels = search_labels(words, info.id, k, store)
        names = label_texts(info, [row.feature for row in found or ()], store)
    if found is not None:
        found = named([replace(row, token=tokens[row.token_id]) for row in found], names)
    return FeatureSearch(model.info.name, info.name, info.id, words, labels, tokens, convention, found)


def found_features(search: FeatureSearch, k: int) -> tuple[FoundFeature, ...]:
    """The first ``k`` features of a search, each once: those with the words in their labels, then those that promote
    one of them."""
    found: dict[int, FoundFeature] = {}
    for label in search.labels:
        found.setdefault(label.feature, FoundFeature(label.feature, one_line(label.text, 200), "label"))
    for row in search.promoting or ():
        why = f"promotes ‘{one_line(row.token, 30)}’"
        name = one_line(row.label, 200) if row.label else why
        found.setdefault(row.feature, FoundFeature(row.feature, name, why))
    return tuple(found.values())[:k]


def word_tokens(model: LensModel, words: str) -> dict[int, str]:
    """The tokens that are one of the words by themselves: id and text, in the order of the words."""
    specials = model.tokens.special_ids()
    found: dict[int, str] = {}
    for word in words.split():
        for form in dict.fromkeys((f" {word}", word, f" {word.lower()}", word.lower(), f" {word.capitalize()}")):
            ids = [token for token in model.tokens.encode(form) if token not in specials]
            if len(ids) == 1 and any(character.isalnum() for character in model.tokens.display(ids[0])):
                found[ids[0]] = model.tokens.display(ids[0])
    return found


Order = Literal["activation", "rank", "effect"]
POOL = 64
"""The strongest features of a token that are put in another order."""

Scored = list[tuple[int, float, float]]
"""Feature, activation and score, best first."""


def rank_tokens(
    model: LensModel,
    sae: SAE,
    ids: Sequence[int],
    found: NDArray[Any],
    values: NDArray[Any],
    *,
    by: Order,
    k: int,
    index: FeatureIndex | None = None,
) -> list[Scored]:
    """For each token of a text its ``k`` first features; ``found`` and ``values`` are ``top_k``'s, ``(n, pool)``.

    ``activation``: the score is the activation. ``rank``: the share of the feature's own active tokens in the corpus
    that are weaker (needs the index). ``effect``: nats that the feature adds to the log-probability of the next
    token by the direct path, without running later layers again; the last token has no next one and gets none. Raises
    ``LensError`` for an order that cannot be had.
    """
    if by == "rank":
        return _by_rank(found, values, k, index)
    if by == "effect":
        return _by_effect(model, sae, ids, found, values, k)
    if by != "activation":
        raise LensError(f"There is no order {by!r}.", "Choose activation, rank or effect.")
    return [[(f, v, v) for f, v in _active(row, value)][:k] for row, value in zip(found, values, strict=True)]


def _by_rank(found: NDArray[Any], values: NDArray[Any], k: int, index: FeatureIndex | None) -> list[Scored]:
    if index is None:
        raise LensError("Ranks need an index of this SAE.", "Make one with `mlx-lens-tui index TEXT`.")
    rows = []
    for row, value in zip(found, values, strict=True):
        strength = dict(_active(row, value))
        names, scores = rank_features(
            index, np.array(list(strength), np.int64), np.array(list(strength.values())), by="rank", k=k
        )
        rows.append([(f, strength[f], s) for f, s in zip(names.tolist(), scores.tolist(), strict=True)])
    return rows


def _by_effect(
    model: LensModel, sae: SAE, ids: Sequence[int], found: NDArray[Any], values: NDArray[Any], k: int
) -> list[Scored]:
    place = sae.info.site_out or sae.info.site
    if sae.d_out != model.d_model or not in_residual(place):
        raise LensError(f"The SAE {sae.info.name} does not write to the residual stream.", "Choose another order.")
    final = np.asarray(model.residuals(list(ids), model.n_layers - 1).astype(mx.float32))

    def logprobs(residual: NDArray[np.float32]) -> mx.array:
        return log_softmax(model.readout(mx.array(residual)[None])[0])

    rows: list[Scored] = []
    for place_of, (row, value) in enumerate(zip(found, values, strict=True)):
        pairs = _active(row, value)
        if not pairs or place_of + 1 >= len(ids):
            rows.append([])
            continue
        names = [f for f, _ in pairs]
        written = np.asarray(sae.directions(names)) * np.asarray(sae.decoder_norms(names))[:, None]
        parts = written * np.array([v for _, v in pairs], np.float32)[:, None]
        effects = direct_effects(final[place_of], parts, ids[place_of + 1], logprobs)
        order = np.argsort(-effects, kind="stable")[:k]
        rows.append([(*pairs[i], float(effects[i])) for i in order.tolist()])
    return rows


def _active(row: NDArray[Any], values: NDArray[Any]) -> list[tuple[int, float]]:
    return [(int(f), float(v)) for f, v in zip(row, values, strict=True) if f >= 0 and v > 0]


MAX_ACTIVE = 256
"""Features of a token that are read, strongest first."""
MAX_TEXTS = 100_000


def contrast_texts(
    model: LensModel,
    sae: SAE,
    a: Sequence[str],
    b: Sequence[str],
    *,
    measure: Measure = "auc",
    over: Over = "max",
    both_sides: bool = False,
    k: int = 20,
    seed: int = 0,
    context: int = 512,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[ContrastedFeature, ...]:
    """The ``k`` features that best tell texts ``a`` from texts ``b``; see :func:`lens_tui.sae.index.questions`.

    Each text is read by itself, unsteered, its first ``context`` tokens; special tokens are left out. A text's value
    of a feature is its ``max`` or ``mean`` over tokens. ``progress(done, total)`` counts texts.
    """
    done = 0

    def read(texts: Sequence[str]) -> list[TextFeatures]:
        nonlocal done
        rows = []
        for text in texts:
            rows.append(read_text_features(model, sae, text, over=over, context=context))
            done += 1
            if progress is not None:
                progress(done, len(a) + len(b))
        return rows

    rows = contrast_features(read(a), read(b), measure=measure, both_sides=both_sides, k=k, seed=seed)
    return named(rows, label_texts(sae.info, [row.feature for row in rows]))


def export_list(info: SAEInfo, name: str, features: Sequence[int], path: Path) -> Path:
    """Write a list of features with the first label of each to ``path``: CSV if it ends in ``.csv``, else JSON.

    Raises ``LensError`` where it cannot be written.
    """
    labels = label_texts(info, features)
    if path.suffix.lower() == ".csv":
        page = io.StringIO()
        writer = csv.writer(page, lineterminator="\n")
        writer.writerows([("feature", "label"), *((feature, labels.get(feature, "")) for feature in features)])
        text = page.getvalue()
    else:
        rows = [{"feature": feature, "label": labels.get(feature)} for feature in features]
        whole = {"name": name, "sae": info.name, "sae_id": info.id, "features": rows}
        text = json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
    write_text(path, text.encode("utf-8", "replace").decode("utf-8"))
    return path


def read_text_features(
    model: LensModel, sae: SAE, text: str, *, over: Over = "max", context: int = 512
) -> TextFeatures:
    """One text as its features. Raises ``LensError`` for an SAE that does not say which layer and site it reads."""
    info = sae.info
    if info.layer < 0 or not info.site:
        raise LensError(
            f"The SAE {info.name!r} does not say which layer and site it reads.", "Give them when loading it."
        )
    ids = model.tokens.encode(text)[:context]
    found, values = sae.top_k(model.residuals(ids, info.layer, site=info.site), min(MAX_ACTIVE, sae.d_sae))
    return text_features(np.array(found), np.array(values), ~model.tokens.content(ids), over=over)


def read_texts(path: str | Path, *, text_key: str = "text") -> list[str]:
    """The texts of one side: documents of a folder, a ``.jsonl`` or a separated ``.txt`` file, or else lines of a file.

    Raises ``LensError`` where there is nothing to read, or more than 100,000 texts.
    """
    corpus = open_corpus(path, text_key=text_key)
    if len(corpus) > MAX_TEXTS:
        raise LensError(f"{Path(path).name} holds {len(corpus)} texts; at most {MAX_TEXTS} are compared.", "Sample it.")
    texts = [document.text for document in corpus]
    if len(texts) == 1 and Path(path).suffix != ".jsonl":
        texts = [line for line in re.split(r"\r\n|\r|\n", texts[0]) if line.strip()]
    return texts
