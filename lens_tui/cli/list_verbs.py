"""The verbs of ``lists``, the lists of features kept by name: see them, keep, delete, restore and export one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.cells import cell_len

from lens_tui.records.errors import LensError
from lens_tui.records.paths import database_kept
from lens_tui.records.wording import many
from lens_tui.tui.format import fit

from .feature_verbs import feature_number
from .label_verbs import Model
from .output import print_json, say, sentences
from .sources import Json, SAEName, find_sae

if TYPE_CHECKING:
    from lens_tui.records import SAEInfo
    from lens_tui.records.feature_lists import FeatureList, FeatureLists

verbs = typer.Typer(help="Lists of features that you keep by name.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The list's name.")]


@contextmanager
def _opened(*, to_read: bool = False) -> Iterator[FeatureLists]:
    from lens_tui.records.feature_lists import FeatureLists
    from lens_tui.records.store import Store

    with Store(":memory:" if to_read and not database_kept() else None) as store:
        yield FeatureLists(store)


@verbs.command("list")
@sentences
def all_lists(json: Json = False) -> None:
    """Print every list that is kept, of every SAE."""
    with _opened(to_read=True) as lists:
        found = list(lists.all())
    if json:
        print_json({"model": None, "lists": [_facts(item) for item in found]})
        return
    if not found:
        say(f"no list yet: {_KEEPS}")
    width = max((cell_len(item.name) for item in found), default=0)
    for item in found:
        say(f"{fit(item.name, width)}  {many(len(item.features), 'feature'):>12}  {item.created[:10]}  {item.sae}")


@verbs.command("show")
@sentences
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The list to print; all names if left out.")] = "",
    sae: SAEName = "",
    model: Model = "demo",
    json: Json = False,
) -> None:
    """Print the lists of an SAE, or the features of one."""
    info = find_sae(sae, model)
    with _opened(to_read=True) as lists:
        found = [lists.get(info.id, name)] if name else list(lists.all(info.id))
    _print(info, model, found, json, labelled=bool(name))


@verbs.command("keep")
@sentences
def keep(
    name: Name,
    numbers: Annotated[list[str], typer.Argument(metavar="ID...", help="Features, as 1288 or f1288.")],
    sae: SAEName = "",
    model: Model = "demo",
    json: Json = False,
) -> None:
    """Keep features as a list.

    One of the same name is replaced and can be restored.
    """
    info, features = find_sae(sae, model), [feature_number(number) for number in numbers]
    if wrong := [feature for feature in features if feature >= info.width]:
        raise LensError(f"There is no feature {wrong[0]}.", f"{info.name} has features 0 to {info.width - 1}.")
    with _opened() as lists:
        kept = lists.keep(info.id, name, features)
    _print(info, model, [kept], json, labelled=True)


@verbs.command("delete")
@sentences
def delete(name: Name, sae: SAEName = "", model: Model = "demo", json: Json = False) -> None:
    """Delete a list; restore brings it back."""
    info = find_sae(sae, model)
    with _opened() as lists:
        gone = lists.delete(info.id, name)
    _print(info, model, [gone], json, labelled=False)


@verbs.command("restore")
@sentences
def restore(name: Name, sae: SAEName = "", model: Model = "demo", json: Json = False) -> None:
    """Bring back the list of a name that was deleted or replaced last."""
    info = find_sae(sae, model)
    with _opened() as lists:
        back = lists.restore(info.id, name)
    _print(info, model, [back], json, labelled=False)


@verbs.command("export")
@sentences
def export(
    name: Name,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file: CSV if it ends in .csv, else JSON.")],
    sae: SAEName = "",
    model: Model = "demo",
    json: Json = False,
) -> None:
    """Write a list with the labels of its features to a file."""
    from lens_tui.tasks.feature_page import export_list

    info = find_sae(sae, model)
    with _opened(to_read=True) as lists:
        found = lists.get(info.id, name)
    written = export_list(info, found.name, found.features, out)
    if json:
        print_json({**_of(info, model), "file": str(written), "count": len(found.features)})
    else:
        say(f"{many(len(found.features), 'feature')} written to {written}")


_KEEPS = "`mlx-lens-tui lists keep NAME ID ID` keeps one"


def _facts(item: FeatureList) -> dict[str, Any]:
    return {"sae_id": item.sae, "name": item.name, "created": item.created, "features": list(item.features)}


def _of(info: SAEInfo, model: str) -> dict[str, Any]:
    return {"model": model, "sae": info.name, "sae_id": info.id}


def _print(info: SAEInfo, model: str, lists: list[FeatureList], json: bool, *, labelled: bool) -> None:
    from lens_tui.tasks.knowledge import label_texts

    names = label_texts(info, list(dict.fromkeys(f for item in lists for f in item.features)))
    if json:
        rows = [
            {
                "name": item.name,
                "created": item.created,
                "features": [{"feature": feature, "label": names.get(feature)} for feature in item.features],
            }
            for item in lists
        ]
        print_json({**_of(info, model), "lists": rows})
        return
    if not lists:
        say(f"no list of {info.name} yet: {_KEEPS}")
    for item in lists:
        say(f"{item.name}  ({many(len(item.features), 'feature')})")
        for feature in item.features if labelled else ():
            say(f"  {feature:>7}  {names.get(feature, '')}".rstrip())
