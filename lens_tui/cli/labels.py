"""``mlx-lens-tui labels``: give, show, find, import and export what features mean."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens_tui.records.errors import LensError

from .output import print_json, say
from .read import feature_number, who
from .sources import find_sae, open_model

if TYPE_CHECKING:
    from lens_tui.records import SAEInfo
    from lens_tui.records.labels import Label

IMPORTS = ("neuronpedia", "neuronpedia-features", "delphi", "saedashboard")
EXPORTS = ("neuronpedia", "delphi", "neuronpedia-upload")


def set_label(number: str, text: str, *, sae: str, model: str, author: str, as_json: bool) -> None:
    """Give a feature your label, or take it away with blank text."""
    from lens_tui.records.labels import Labels
    from lens_tui.records.store import Store

    feature, info = _feature(number, sae, model)
    with Store() as store:
        label = Labels(store).set(info.id, feature, text, author=author)
    if as_json:
        print_json({**_of(info, model), "feature": feature, "label": None if label is None else asdict(label)})
    else:
        say(f"feature {feature} of {info.name}: {label.text if label else 'no label of yours'}")


def show(number: str, *, sae: str, model: str, history: bool, as_json: bool) -> None:
    """Print the labels of one feature or of all."""
    from lens_tui.records.labels import Labels
    from lens_tui.records.store import Store
    from lens_tui.tasks.knowledge import labels_of, standing_labels

    if history and not number:
        raise LensError("The history is of one feature.", "Name it.")
    if not number:
        info = find_sae(sae, model)
        _show(standing_labels(info), _of(info, model), as_json)
        return
    feature, info = _feature(number, sae, model)
    if not history:
        _show(labels_of(info, feature), _of(info, model), as_json)
        return
    with Store() as store:
        _show(Labels(store).history(info.id, feature), _of(info, model), as_json)


def search(words: str, *, sae: str, model: str, every: bool, k: int, as_json: bool) -> None:
    """Print the labels that hold the words."""
    from lens_tui.tasks.knowledge import search_labels

    info = None if every else find_sae(sae, model)
    _show(search_labels(words, info.id if info else None, k), _of(info, model), as_json)


def import_labels(
    path: Path,
    form: str,
    *,
    sae: str,
    model: str,
    source_id: str | None,
    module: str | None,
    anyway: bool,
    as_json: bool,
) -> None:
    """Read the files of another tool into the store."""
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
                read_neuronpedia(path, source_id=source_id, sae=of)
                if form == "neuronpedia"
                else read_delphi(path, module=module, sae=of)
            )
            facts = asdict(take_labels(store, info, _within(labels, info), origin=path.name))
    if as_json:
        print_json({**_of(info, model), **facts})
    else:
        say(f"{info.name}: " + ", ".join(f"{n} {name}" for name, n in facts.items()))


def export_labels(
    folder: Path, form: str, *, sae: str, model: str, mine: bool, model_id: str, source_id: str, as_json: bool
) -> None:
    """Write the standing labels of an SAE."""
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
    if as_json:
        print_json({**_of(info, model), **facts})
    else:
        say(f"{facts['written']} labels of {info.name} written to {folder}")


def _upload(
    folder: Path, info: SAEInfo, labels: Iterable[Label], model: str, model_id: str, source_id: str
) -> list[Path]:
    """Neuronpedia's upload batches, one JSON file each, with the examples of the index."""
    from lens_tui.records import disk
    from lens_tui.sae.index import upload_batches
    from lens_tui.tasks.knowledge import index_of

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
            disk.write_text(file, json.dumps(batch, ensure_ascii=False))
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
                f"There is something of feature {label.feature}, but {info.name} has {info.width} features.",
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
        say(f"{row['feature']:>7}  {row['text']}  ({who(row)}{ended})")
    if not rows:
        say("no labels")
