"""The verbs of ``labels``: ``set``, ``show``, ``search``, ``import``, ``export``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lens_tui.records.errors import LensError
from lens_tui.records.wording import many

from .feature_verbs import feature_number, say_label, who
from .output import print_json, say, sentences
from .sources import Json, SAEName, find_sae, open_model

if TYPE_CHECKING:
    from lens_tui.records import SAEInfo
    from lens_tui.records.labels import Label

IMPORTS = ("neuronpedia", "neuronpedia-features", "delphi", "saedashboard")
EXPORTS = ("neuronpedia", "delphi", "neuronpedia-upload")

verbs = typer.Typer(help="What features mean: your labels and those of other tools.", no_args_is_help=True)

Model = Annotated[str, typer.Option("--model", "-m", help="The model, to know which bundled SAE is meant.")]
Number = Annotated[str, typer.Argument(metavar="ID", help="The feature's number, as 1288 or f1288.")]


@verbs.command("set")
@sentences
def set_label(
    number: Number,
    text: Annotated[str, typer.Argument(help="Your label; '' removes it. Earlier ones stay in the history.")],
    sae: SAEName = "",
    model: Model = "demo",
    author: Annotated[str, typer.Option(help="Who says so.")] = "",
    json: Json = False,
) -> None:
    """Give a feature your label."""
    from lens_tui.records.labels import Labels
    from lens_tui.records.store import Store

    feature, info = _feature(number, sae, model)
    with Store() as store:
        label = Labels(store).set(info.id, feature, text, author=author)
    if json:
        print_json({**_of(info, model), "feature": feature, "label": None if label is None else asdict(label)})
    else:
        say(f"feature {feature} of {info.name}: {label.text if label else 'no label of yours'}")


@verbs.command("show")
@sentences
def show(
    number: Annotated[str, typer.Argument(metavar="ID", help="A feature's number; all labels if left out.")] = "",
    sae: SAEName = "",
    model: Model = "demo",
    history: Annotated[bool, typer.Option("--history", help="Every label you ever gave the feature.")] = False,
    json: Json = False,
) -> None:
    """Print the labels of a feature, or of all."""
    from lens_tui.records.labels import Labels
    from lens_tui.records.store import Store
    from lens_tui.tasks.knowledge import labels_of, standing_labels

    if history and not number:
        raise LensError("The history shows one feature at a time.", "Give its number.")
    if not number:
        info = find_sae(sae, model)
        _show(standing_labels(info, raw=json), _of(info, model), json)
        return
    feature, info = _feature(number, sae, model)
    if not history:
        as_given = (label for label in standing_labels(info, raw=True) if label.feature == feature)
        _show(tuple(as_given) if json else labels_of(info, feature), _of(info, model), json)
        return
    with Store() as store:
        _show(Labels(store).history(info.id, feature, raw=json), _of(info, model), json)


@verbs.command("search")
@sentences
def search(
    words: Annotated[list[str], typer.Argument(help="Words that a label must contain; the last may be unfinished.")],
    sae: SAEName = "",
    model: Model = "demo",
    every: Annotated[bool, typer.Option("--all", help="Search the labels of every SAE.")] = False,
    k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Labels to print.")] = 20,
    json: Json = False,
) -> None:
    """Find labels by words."""
    from lens_tui.tasks.knowledge import search_labels

    info = None if every else find_sae(sae, model)
    found = search_labels(" ".join(words), info.id if info else None, k, raw=json)
    _show(found, _of(info, model), json)


@verbs.command("import")
@sentences
def import_labels(
    path: Annotated[Path, typer.Argument(help="The folder or file of the other tool.")],
    form: Annotated[
        str, typer.Option("--format", "-f", help="neuronpedia[-features], delphi or saedashboard.")
    ] = "neuronpedia",
    sae: SAEName = "",
    model: Model = "demo",
    source_id: Annotated[str, typer.Option(help="The source to take, where a Neuronpedia export has several.")] = "",
    module: Annotated[str, typer.Option(help="The module to take, where a delphi folder has several.")] = "",
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Take them even if they name another model or layer.")
    ] = False,
    json: Json = False,
) -> None:
    """Take up labels that other tools made."""
    from lens_tui.records.label_files import (
        Dashboards,
        read_delphi,
        read_neuronpedia,
        read_neuronpedia_features,
        read_saedashboard,
    )
    from lens_tui.records.store import Store
    from lens_tui.tasks.knowledge import take_labels

    _choose(form, IMPORTS)
    if not path.exists():
        raise LensError(f"There is no file or folder {str(path)!r}.", "Check the path.")
    info = find_sae(sae, model)
    of = None if anyway else replace(info, model_name=info.model_name or model)
    with Store() as store:
        if form in ("saedashboard", "neuronpedia-features"):
            read = read_saedashboard if form == "saedashboard" else read_neuronpedia_features
            facts = {"dashboards": Dashboards(store).take(info.id, _within(read(path, sae=of), info))}
        else:
            labels = (
                read_neuronpedia(path, source_id=source_id or None, sae=of)
                if form == "neuronpedia"
                else read_delphi(path, module=module or None, sae=of)
            )
            facts = asdict(take_labels(store, info, _within(labels, info), origin=path.name))
    if json:
        print_json({**_of(info, model), **facts})
    else:
        say(f"{info.name}: " + ", ".join(f"{n} {name}" for name, n in facts.items()))


@verbs.command("export")
@sentences
def export_labels(
    folder: Annotated[Path, typer.Argument(help="Where to write.")],
    form: Annotated[
        str, typer.Option("--format", "-f", help="neuronpedia, delphi, or neuronpedia-upload (needs an index).")
    ] = "neuronpedia",
    sae: SAEName = "",
    model: Model = "demo",
    mine: Annotated[bool, typer.Option("--mine", help="Only your own labels.")] = False,
    model_id: Annotated[str, typer.Option(help="The model's name at Neuronpedia (default: the SAE's model).")] = "",
    source_id: Annotated[str, typer.Option(help="The source's name at Neuronpedia, or delphi's module.")] = "",
    json: Json = False,
) -> None:
    """Write labels in a form that other tools read."""
    from lens_tui.records.label_files import write_delphi, write_neuronpedia
    from lens_tui.tasks.knowledge import standing_labels

    _choose(form, EXPORTS)
    info = find_sae(sae, model)
    model_id = model_id or info.model_name or model
    labels = tuple(label for label in standing_labels(info, raw=True) if label.is_mine or not mine)
    if not labels:
        raise LensError(
            f"There are no labels of {info.name} to write.", "`labels set` gives one, `labels import` many."
        )
    if form == "delphi":
        count = write_delphi(labels, folder, module=source_id or f"layers.{info.layer}", sae_id=info.id)
        facts: dict[str, Any] = {"written": count, "folder": str(folder)}
    elif form == "neuronpedia":
        source_id = source_id or info.name
        files = write_neuronpedia(labels, folder, model_id=model_id, source_id=source_id, sae_id=info.id)
        facts = {"written": len(labels), "files": [str(file) for file in files]}
    else:
        files = _upload(folder, info, labels, model, model_id, source_id or info.name)
        facts = {"written": len(labels), "files": [str(file) for file in files]}
    if json:
        print_json({**_of(info, model), **facts})
    else:
        say(f"{many(facts['written'], 'label')} of {info.name} written to {folder}")


def _upload(
    folder: Path, info: SAEInfo, labels: Iterable[Label], model: str, model_id: str, source_id: str
) -> list[Path]:
    """Neuronpedia's upload batches, one JSON file each, with the examples of the index."""
    from lens_tui.records import disk
    from lens_tui.tasks.knowledge import index_of, upload_batches

    index = index_of(info)
    if index is None:
        raise LensError(f"There is no index of {info.name} to take examples from.", "Make one with `index TEXT`.")
    by_feature: dict[int, list[Label]] = {}
    for label in labels:
        by_feature.setdefault(label.feature, []).append(label)
    files = []
    with open_model(model) as lens:
        batches = upload_batches(
            index, sorted(by_feature), lens.tokens.display, by_feature, model_id=model_id, source=source_id
        )
        for number, batch in enumerate(batches):
            file = folder / f"upload-{number}.json"
            disk.write_text(file, dumps(batch, ensure_ascii=False))
            files.append(file)
    return files


def _feature(number: str, sae: str, model: str) -> tuple[int, SAEInfo]:
    feature, info = feature_number(number), find_sae(sae, model)
    if feature >= info.width:
        raise LensError(f"There is no feature {feature}.", f"{info.name} has features 0 to {info.width - 1}.")
    return feature, info


def _within(labels: Iterable[Any], info: SAEInfo) -> Iterator[Any]:
    """The labels, unless one is of a feature that the SAE does not have: then they are of another SAE."""
    for label in labels:
        if label.feature >= info.width:
            raise LensError(
                f"There is a label of feature {label.feature}, but {info.name} has {info.width} features.",
                "They are labels of another SAE.",
            )
        yield label


def _choose(form: str, forms: tuple[str, ...]) -> None:
    if form not in forms:
        raise LensError(f"There is no format {form!r}.", f"Choose from {', '.join(forms)}.")


def _of(info: SAEInfo | None, model: str) -> dict[str, Any]:
    """Whose labels they are: the model as it was named, for none is loaded, and the SAE (``None``: of all)."""
    return {"model": model, "sae": info and info.name, "sae_id": info and info.id}


def _show(labels: tuple[Label, ...], whose: dict[str, Any], as_json: bool) -> None:
    rows = [asdict(label) for label in labels]
    if as_json:
        print_json({**whose, "labels": rows})
        return
    for row in rows:
        ended = f", until {row['ended']}" if row["ended"] else ""
        say_label(f"{row['feature']:>7}", row["text"], f"{who(row)}{ended}")
    if not rows:
        say("no labels")
