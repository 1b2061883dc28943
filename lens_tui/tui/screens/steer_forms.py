"""The forms that directions are made from, and the jobs that what was typed in them means. No widgets."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lens_tui.records import ModelInfo, SAEInfo
from lens_tui.records.bench import BenchRow
from lens_tui.records.sanitise import one_line
from lens_tui.tui.bench_text import read_sum
from lens_tui.tui.format import fit
from lens_tui.worker.jobs import (
    Job,
    RandomVector,
    VectorFromFeature,
    VectorFromFile,
    VectorFromPrompts,
    VectorFromToken,
    VectorFromVectors,
)

from .form import Check, Field, filled, number, whole

Values = Mapping[str, str]
METHODS = {
    "mean difference": "mean_difference",
    "PCA of the differences": "pca_diff",
    "PCA around each pair's middle": "pca_center",
    "logistic regression": "logistic",
}
"""What the methods are called on the screen."""
OVER = {"all tokens but special ones": "all", "the last token": "last"}
TEXTS = {"as they are": True, "as chat turns": False}
KINDS = {"unembedding (raises its logit)": "unembedding", "embedding (what reading it adds)": "embedding"}
LENGTHS = {"each at length 1": True, "each at its own length": False}
ALL = "all"
BETWEEN = " | "
"""What stands between several texts of one field."""


@dataclass(frozen=True, slots=True)
class Form:
    """A form to ask, and what its values mean. ``scale`` reads a scale for the row out of them, if they have one."""

    title: str
    fields: tuple[Field, ...]
    note: str
    job: Callable[[Values], Job]
    scale: Callable[[Values], float | None] = lambda values: None


def feature(sae: SAEInfo) -> Form:
    """From an SAE feature."""
    fields = (Field("feature", "feature", hint=f"0 to {sae.width - 1}", check=whole(0, sae.width - 1)),)
    return Form("From an SAE feature", fields, sae.name, lambda v: VectorFromFeature(sae.id, int(v["feature"])))


def pairs(model: ModelInfo) -> Form:
    """From texts that were typed."""
    fields = (
        Field("name", "name", hint="what the direction stands for", check=filled),
        Field("positive", "toward", hint="a text with it; several with | between", check=filled, between=BETWEEN),
        Field(
            "negative", "away from", hint="its pair without it; several with | between", check=filled, between=BETWEEN
        ),
        *_how(model),
    )

    def job(values: Values) -> Job:
        return _contrast(values, texts(values["positive"]), texts(values["negative"]))

    note = "First with first, second with second are pairs. The mean difference at one layer takes any two sets."
    return Form("From contrasting texts", fields, note, job)


def pairs_file(model: ModelInfo) -> Form:
    """From a file of pairs."""
    fields = (
        Field("path", "file", hint=".jsonl .json .tsv .txt", check=a_file),
        Field("name", "name", hint="empty: the file's name"),
        *_how(model),
    )

    def job(values: Values) -> Job:
        path = str(Path(values["path"].strip()).expanduser())
        named = {**values, "name": values["name"].strip() or Path(path).stem}
        return replace(_contrast(named, (), ()), path=path)

    note = "On each line two texts apart by a tab; or JSON with positive and negative."
    return Form("From a file of pairs", fields, note, job)


def _how(model: ModelInfo) -> tuple[Field, ...]:
    chat = (Field("texts", "texts", options=tuple(TEXTS)),) if model.has_chat_template else ()
    return (
        Field("method", "method", options=tuple(METHODS)),
        Field("layer", "layer", ALL, hint=f"0 to {model.n_layers - 1}, or all", check=_layer_or_all(model.n_layers)),
        Field("over", "tokens", options=tuple(OVER)),
        *chat,
    )


def _contrast(values: Values, positive: tuple[str, ...], negative: tuple[str, ...]) -> VectorFromPrompts:
    layer = values["layer"].strip()
    return VectorFromPrompts(
        one_line(values["name"].strip(), 60),
        positive,
        negative,
        None if layer == ALL else int(layer),
        OVER[values["over"]],
        METHODS[values["method"]],
        TEXTS[values["texts"]] if "texts" in values else True,
    )


def token(model: ModelInfo, row: BenchRow | None) -> Form:
    """From a token."""
    layer = row.layer if row else model.n_layers - 1
    fields = (
        Field("token", "token", hint="with its blank in front, or id:17", check=filled),
        Field("kind", "row of the", options=tuple(KINDS)),
        Field("layer", "layer", str(layer), check=whole(0, model.n_layers - 1)),
        Field("name", "name", hint="empty: the token"),
    )

    def job(values: Values) -> Job:
        name = one_line(values["name"].strip(), 60)
        return VectorFromToken(values["token"], int(values["layer"]), KINDS[values["kind"]], name)

    note = "Most words are tokens with a blank in front: type the blank too."
    return Form("From a token", fields, note, job)


def arithmetic(rows: Sequence[BenchRow]) -> Form:
    """From rows of the bench."""
    fields = (
        Field("sum", "rows", hint="1 + 0.5*2   ·   1 - 2   ·   1 without 2", check=_sum(len(rows))),
        Field("unit", "lengths", options=tuple(LENGTHS)),
        Field("name", "name", hint="empty: what is typed above"),
    )

    def job(values: Values) -> Job:
        found = read_sum(values["sum"], len(rows))
        assert found is not None  # the form has checked it
        terms, less = found
        vectors = tuple((factor, replace(rows[at].vector, layer=rows[at].layer)) for factor, at in terms)
        name = values["name"].strip() or told(terms, less, [row.vector.name for row in rows])
        return VectorFromVectors(one_line(name, 60), vectors, less, LENGTHS[values["unit"]])

    listed = "\n".join(f"{at}  {fit(row.vector.name, 40)}  layer {row.layer}" for at, row in enumerate(rows[:9], 1))
    note = f"{listed}\n“1 without 2” is the part of 1 that is orthogonal to 2. All must be of one layer."
    return Form("From rows of the bench", fields, note, job)


def told(terms: Sequence[tuple[float, int]], less: bool, names: Sequence[str]) -> str:
    """A sum in the rows' names: ``cookery - 0.5 scripture``, ``cookery without scripture``."""
    if less:
        first, *others = [names[at] for _, at in terms]
        return f"{first} without {', '.join(others)}"
    parts: list[str] = []
    for factor, at in terms:
        size = "" if abs(factor) == 1 else f"{abs(factor):g} "
        sign = ("-" if factor < 0 else "+") if parts else ("-" if factor < 0 else "")
        parts.append(f"{sign}{' ' if parts else ''}{size}{names[at]}")
    return " ".join(parts)


def random(model: ModelInfo, row: BenchRow | None) -> Form:
    """A random direction: layer and scale of the row it is to control."""
    layer = row.layer if row else model.n_layers // 2
    fields = (
        Field("layer", "layer", str(layer), check=whole(0, model.n_layers - 1)),
        Field("seed", "seed", "0", check=whole(0)),
        Field("scale", "scale", f"{row.scale:g}" if row else "", hint="empty: half of ‖h‖", check=_maybe(number())),
    )

    def job(values: Values) -> Job:
        return RandomVector(f"random {values['seed'].strip()}", int(values["layer"]), int(values["seed"]))

    note = "A random direction at the same scale shows how much of an effect is any push at all."
    return Form("A random direction", fields, note, job, lambda v: float(v["scale"]) if v["scale"].strip() else None)


def vector_file() -> Form:
    """From a vector file that is elsewhere."""
    fields = (
        Field("path", "file", hint=".safetensors .gguf .npy .npz .json .pt; FILE:NAME of several", check=a_vector_file),
        Field("layer", "layer", hint="empty: what the file says", check=_maybe(whole(0))),
    )

    def job(values: Values) -> Job:
        layer = values["layer"].strip()
        return VectorFromFile(values["path"].strip(), int(layer) if layer else None)

    return Form("From a file", fields, "Its width must be the model's.", job)


def texts(typed: str) -> tuple[str, ...]:
    """Texts separated by ``|``, blanks around them dropped, empty ones left out; ``\\|`` is a plain ``|``."""
    parts = (part.strip().replace("\\|", "|") for part in re.split(r"(?<!\\)\|", typed))
    return tuple(part for part in parts if part)


def a_file(text: str) -> str:
    """A check for the path of a file that is there."""
    return "" if text.strip() and Path(text.strip()).expanduser().is_file() else "a file that is there"


def a_vector_file(text: str) -> str:
    """As :func:`a_file`, with a name after it: ``FILE:NAME``."""
    from lens_tui.records.vector_formats import vector_file

    return a_file(str(vector_file(Path(text.strip()).expanduser())[0])) if text.strip() else a_file("")


def free(text: str) -> str:
    """A check for a path to write to: nothing, or one where no file is yet, in a folder that is there."""
    path = Path(text.strip()).expanduser()
    if not text.strip():
        return ""
    return "" if path.parent.is_dir() and not path.exists() else "a new name in a folder that is there"


def _maybe(check: Check) -> Check:
    return lambda text: check(text) if text.strip() else ""


def _layer_or_all(n_layers: int) -> Check:
    check = whole(0, n_layers - 1)
    return lambda text: "" if text.strip() == ALL or not check(text) else f"{check(text)}, or all"


def _sum(rows: int) -> Check:
    return lambda text: "" if read_sum(text, rows) else f"rows 1 to {rows}, as 1 + 0.5*2 or 1 without 2"
