"""What is known of a feature, and features by words: the library behind the verbs ``feature`` and ``search``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lens_tui.records import LensError, SAEInfo
from lens_tui.worker.known_labels import label_texts, labels_of, search_labels

if TYPE_CHECKING:
    from lens_tui.lens import LensModel
    from lens_tui.lens.unembed import Convention
    from lens_tui.sae import SAE
    from lens_tui.sae.index import FeatureIndex

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
