"""SAEs at the hub for well-known families of models: names alone, nothing is asked of the hub.

Not every SAE there is: of each family those of the residual stream at one usual width and sparsity. Others are
loaded by their name, ``org/name/folder``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

GEMMA_SCOPE_2 = {
    "270m": (5, 9, 12, 15),
    "1b": (7, 13, 17, 22),
    "4b": (9, 17, 22, 29),
    "12b": (12, 24, 31, 41),
    "27b": (16, 31, 40, 53),
}
"""The four layers of each Gemma 3 that have folders outside ``_all``, as published."""


@dataclass(frozen=True, slots=True)
class SAEFamily:
    """SAEs of one repository, for the models whose names match.

    Args:
        models: a pattern searched for in the model's name, in lower case.
        repo: the repository.
        places: the folders or files of its SAEs.
    """

    models: str
    repo: str
    places: tuple[str, ...]


def _families() -> Iterable[SAEFamily]:
    for size, layers in GEMMA_SCOPE_2.items():
        for tuning in ("pt", "it"):
            places = tuple(f"resid_post/layer_{layer}_width_16k_l0_medium" for layer in layers)
            name = f"gemma-3-{size}{'-it' if tuning == 'it' else '(?!-it)'}"
            yield SAEFamily(rf"{name}(?![a-z0-9])", f"google/gemma-scope-2-{size}-{tuning}", places)
    two_b = ("layer_12/width_16k/average_l0_82", "layer_20/width_16k/average_l0_71")
    yield SAEFamily(r"gemma-2-2b", "google/gemma-scope-2b-pt-res", two_b)
    yield SAEFamily(r"gemma-2-9b-it", "google/gemma-scope-9b-it-res", ("layer_20/width_16k/average_l0_91",))
    yield SAEFamily(r"gemma-2-9b(?!-it)", "google/gemma-scope-9b-pt-res", ("layer_20/width_16k/average_l0_68",))
    scope = tuple(f"Llama3_1-8B-Base-L{layer}R-8x" for layer in range(32))
    yield SAEFamily(r"llama-?3[._]1-8b", "fnlp/Llama3_1-8B-Base-LXR-8x", scope)
    yield SAEFamily(r"llama-?3[._]1-8b", "EleutherAI/sae-llama-3.1-8b-64x", ("layers.23", "layers.29"))
    thirty_two = tuple(f"layers.{layer}" for layer in (*range(1, 24, 2), 24, 25, 27, 29))
    yield SAEFamily(r"llama-3-8b", "EleutherAI/sae-llama-3-8b-32x-v2", thirty_two)
    for name, width, depth in (("1.7B", "W32K", 28), ("8B", "W64K", 36)):
        files = tuple(f"layer{layer}.sae.pt" for layer in range(depth))
        yield SAEFamily(rf"qwen3-{name.lower()}(?![a-z0-9])", f"Qwen/SAE-Res-Qwen3-{name}-Base-{width}-L0_50", files)


FAMILIES = tuple(_families())


def families_of(model: str) -> list[SAEFamily]:
    """The families of SAEs that were made for a model, by its id or folder."""
    name = model.rstrip("/").rpartition("/")[2].lower()
    return [family for family in FAMILIES if re.search(family.models, name)]
