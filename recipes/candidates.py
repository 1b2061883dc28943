"""The vectors that were tried for the bundled model, and how each is made: from passages, or from an SAE's decoder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lens_tui import demo, save_vectors
from lens_tui.records import Origin, SteeringVector
from lens_tui.records.vector_formats import list_vectors
from recipes.corpus import Domain
from recipes.passages import draw

if TYPE_CHECKING:
    from lens_tui import LensModel

MIDDLE = "layer_4_width_8k_l0_medium"
LAYERS = (3, 4, 5)
PASSAGES = 240


@dataclass(frozen=True, slots=True)
class Candidate:
    """A vector by name: toward a domain, or away from it; ``feature`` of the SAE ``sae`` where it is one's decoder row.

    ``says`` is the sentence that stands beside it in the app.
    """

    name: str
    domain: str
    says: str
    away: bool = False
    sae: str = ""
    feature: int = -1


CANDIDATES = (
    Candidate("verse", "poetry", "Short lines and old words."),
    Candidate("python", "python", "Python source."),
    Candidate("dialogue", "dialogue", "A user and an assistant book things."),
    Candidate("grown-up", "stories", "Away from children's stories.", away=True),
    Candidate("scripture", "bible", "Numbered verses of the Bible."),
    Candidate("kitchen", "recipes", "Recipes."),
    Candidate("manual", "techdocs", "Software manuals."),
    Candidate("stage", "shakespeare", "Plays: a speaker, then the lines."),
    Candidate("textbook", "science", "Stars and microbes."),
    Candidate("story time", "stories", "Children's stories."),
    Candidate("cookery", "recipes", "SAE feature 2666: recipes.", sae=MIDDLE, feature=2666),
    Candidate("unto", "bible", "SAE feature 75: scripture.", sae=MIDDLE, feature=75),
)


def make(
    lens: LensModel,
    domains: Sequence[Domain],
    layers: Sequence[int] = LAYERS,
    passages: int = PASSAGES,
    candidates: Sequence[Candidate] = CANDIDATES,
) -> Iterator[SteeringVector]:
    """The candidates' vectors, at each layer where they are means; a feature is made at its SAE's layer."""
    for candidate in candidates:
        if candidate.sae:
            yield from_feature(candidate)
        else:
            yield from from_passages(lens, candidate, domains, layers, passages)


def from_passages(
    lens: LensModel, candidate: Candidate, domains: Sequence[Domain], layers: Sequence[int], passages: int
) -> tuple[SteeringVector, ...]:
    """The mean residual over passages of the domain minus that over as many of the others, or the reverse for ``away``.

    Both sides are of training documents, one passage of a document at most, all others in equal parts. The texts are
    not kept in the vector: it carries their number and SHA-256.
    """
    from lens_tui import contrast

    others = [domain for domain in domains if domain.name != candidate.domain]
    each = max(1, passages // len(others))
    within = draw(next(d.train for d in domains if d.name == candidate.domain), each * len(others), most=1)
    without = [text for domain in others for text in draw(domain.train, each, most=1)]
    count = min(len(within), len(without))
    sides = (within[:count], tuple(without[:count]))
    toward, frm = reversed(sides) if candidate.away else sides
    found = contrast(lens, candidate.name, toward, frm, layers=tuple(layers), over="all", folds=5)
    named = (f"{count} passages of {candidate.domain}", f"{count} passages of the other domains")
    positive, negative = reversed(named) if candidate.away else named
    facts = {"method": "mean_difference", "over": "all", "positive": positive, "negative": negative}
    digest = hashlib.sha256(json.dumps([toward, frm], ensure_ascii=False).encode()).hexdigest()
    return tuple(replace(vector, origin=Origin("prompts", {**facts, "sha256": digest})) for vector in found.vectors)


def from_feature(candidate: Candidate) -> SteeringVector:
    """The decoder row of a feature of a bundled SAE, named by the SAE's name."""
    from lens_tui import load_sae

    vector = load_sae(str(demo.sae_paths()[candidate.sae])).vector(candidate.feature)
    origin = Origin("feature", {"sae": candidate.sae, "feature": candidate.feature})
    return replace(vector, name=candidate.name, origin=origin)


def save(vectors: Iterator[SteeringVector], folder: Path) -> list[Path]:
    """Write each as ``NAME_layer_L.safetensors`` as it comes."""
    names = ((vector, f"{file_stem(vector.name)}_layer_{vector.layer}.safetensors") for vector in vectors)
    return [save_vectors(vector, folder / name) for vector, name in names]


def file_stem(name: str) -> str:
    """A vector's name as a file's."""
    return name.replace(" ", "-")


def read(folder: Path, names: Sequence[str] = ()) -> list[tuple[Candidate, SteeringVector]]:
    """The vectors of a folder with the candidates they belong to, all or those named."""
    known = {candidate.name: candidate for candidate in CANDIDATES}
    found = [file.vector for file in list_vectors(folder) if file.vector is not None]
    return [(known[vector.name], vector) for vector in found if not names or vector.name in names]
