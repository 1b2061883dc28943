"""What is known of a feature, and features by words: the library behind the verbs ``feature`` and ``search``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from lens_tui.records import LensError, SAEInfo
from lens_tui.records.corpus import open_corpus

from .knowledge import label_texts, labels_of, search_labels

if TYPE_CHECKING:
    from lens_tui.lens import LensModel
    from lens_tui.lens.architecture.unembed import Convention
    from lens_tui.sae import SAE
    from lens_tui.sae.index import Contrast, FeatureIndex, TextFeatures
    from lens_tui.sae.index.questions import Measure, Over


TokenText = Callable[[int], str]


def feature_page(
    model: LensModel,
    sae: SAE,
    feature: int,
    index: FeatureIndex | None,
    *,
    convention: Convention = "norm",
    tokens: int = 10,
    examples: int = 10,
    neighbours: int = 10,
) -> dict[str, Any]:
    """A feature's page as plain data, all strings safe to show.

    ``labels`` are all that stand (yours first); ``promoted`` and ``suppressed`` are logits per unit of the unit
    decoder direction under ``convention`` (``norm``: the final norm's gain is folded in, ``raw``: it is not), ``None``
    where the SAE does not write to the residual stream; ``neighbours`` are nearest by cosine of decoder directions.
    ``index`` holds what the index says (statistics, histogram, examples) or is ``None`` without one; ``co_active``
    is ``None`` unless the index is full. Raises ``LensError`` for a feature the SAE does not have.
    """
    from lens_tui.sae.index import co_active, decoder_neighbours, describe

    info, text = sae.info, model.tokens.display
    direction = sae.directions([feature])[0]  # checks the id
    near = decoder_neighbours(sae.directions, sae.d_sae, feature, k=neighbours)
    together = co_active(index, feature, k=neighbours) if index is not None and index.full else None
    ids = [other for other, _ in near] + [row.feature for row in together or ()]
    names = label_texts(info, ids)
    writes = sae.d_out == model.d_model and (info.site_out or info.site) not in ("attn_z", "mlp_in")
    promoted, suppressed = model.promoted(direction, tokens, convention=convention) if writes else ((), ())
    return {
        "model": model.info.name,
        "sae": info.name,
        "sae_id": info.id,
        "layer": info.layer,
        "site": info.site,
        "feature": feature,
        "labels": [asdict(label) for label in labels_of(info, feature)],
        "description": describe(index, feature, text).text if index is not None else None,
        "convention": convention if writes else None,
        "promoted": [asdict(item) for item in promoted] if writes else None,
        "suppressed": [asdict(item) for item in suppressed] if writes else None,
        "index": None if index is None else _from_index(index, feature, text, examples),
        "neighbours": [{"feature": f, "cosine": cosine, "label": names.get(f)} for f, cosine in near],
        "co_active": None if together is None else [{**asdict(r), "label": names.get(r.feature)} for r in together],
    }


def _from_index(index: FeatureIndex, feature: int, text: TokenText, k: int) -> dict[str, Any]:
    numbers = asdict(index.statistics(feature))
    return {
        "key": index.path.name,
        "corpus": index.identity.corpus,
        "counted_tokens": index.n_counted,
        "notes": list(index.notes),
        **{name: value for name, value in numbers.items() if name != "feature"},
        "examples": [
            {
                "document": example.document,
                "offset": example.offset,
                "value": example.value,
                "peak": example.peak,
                "tokens": [text(int(token)) for token in example.token_ids],
                "values": [float(value) for value in example.values],
            }
            for example in index.examples(feature, k)
        ],
    }


def search_features(
    words: str, info: SAEInfo, model: LensModel, index: FeatureIndex | None, *, convention: str = "norm", k: int = 20
) -> dict[str, Any]:
    """Features by words: those whose labels hold all of them, and those that promote one of them as a token.

    ``tokens`` are the words as single tokens (with and without a space before, in either case); a word that the
    tokenizer splits is only looked for in labels. ``promoting`` is ``None`` without an index that has the
    token table of ``convention``. Raises ``LensError`` if there is no word to look for.
    """
    from lens_tui.sae.index import promoting

    if not any(character.isalnum() for character in words):
        raise LensError("There is no word to look for.", "Give some words, for example: sea ship.")
    tokens = word_tokens(model, words)
    found = None
    if index is not None and convention in index.conventions:
        found = promoting(index, list(tokens), convention=convention, k=k)
    names = label_texts(info, [row.feature for row in found or ()])
    return {
        "model": model.info.name,
        "sae": info.name,
        "sae_id": info.id,
        "words": words,
        "labels": [asdict(label) for label in search_labels(words, info.id, k)],
        "tokens": [{"id": token, "text": text} for token, text in tokens.items()],
        "convention": convention,
        "promoting": None
        if found is None
        else [{**asdict(row), "token": tokens[row.token_id], "label": names.get(row.feature)} for row in found],
    }


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
    from lens_tui.sae.index import rank_features

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
    import mlx.core as mx

    from lens_tui.sae.index import direct_effects

    place = sae.info.site_out or sae.info.site
    if sae.d_out != model.d_model or place in ("attn_z", "mlp_in"):
        raise LensError(f"The SAE {sae.info.name} does not write to the residual stream.", "Choose another order.")
    final = np.asarray(model.residuals(list(ids), model.n_layers - 1).astype(mx.float32))

    def logprobs(residual: NDArray[np.float32]) -> mx.array:
        logits = model.readout(mx.array(residual)[None])[0].astype(mx.float32)
        return logits - mx.logsumexp(logits, axis=-1, keepdims=True)

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
) -> tuple[Contrast, ...]:
    """The ``k`` features that best tell texts ``a`` from texts ``b``; see :func:`lens_tui.sae.index.questions`.

    Each text is read by itself, unsteered, its first ``context`` tokens; special tokens are left out. A text's value
    of a feature is its ``max`` or ``mean`` over tokens. ``progress(done, total)`` counts texts.
    """
    from lens_tui.sae.index import contrast

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

    return contrast(read(a), read(b), measure=measure, both_sides=both_sides, k=k, seed=seed)


def read_text_features(
    model: LensModel, sae: SAE, text: str, *, over: Over = "max", context: int = 512
) -> TextFeatures:
    """One text as its features. Raises ``LensError`` for an SAE that does not say which layer and site it reads."""
    from lens_tui.sae.index import text_features

    info = sae.info
    if info.layer < 0 or not info.site:
        raise LensError(f"The SAE {info.name!r} does not say which layer and site it reads.", "Say it on loading.")
    ids = model.tokens.encode(text)[:context]
    specials = model.tokens.special_ids()
    found, values = sae.top_k(model.residuals(ids, info.layer, site=info.site), min(MAX_ACTIVE, sae.d_sae))
    special = np.array([token in specials for token in ids], bool)
    return text_features(np.array(found), np.array(values), special, over=over)


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
