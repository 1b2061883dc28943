"""The verbs of kept maps and graphs, those made on Causes: ``causes list``, ``show``, ``export`` and ``delete``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lens_tui.records import LensError, paths
from lens_tui.records.cause_plan import GraphFound
from lens_tui.records.codec import to_json
from lens_tui.records.paths import expanded
from lens_tui.records.sanitise import one_line

from .output import (
    check_target,
    confirm,
    kept_when,
    note_none,
    print_json,
    print_none,
    print_written,
    say,
    say_made_with,
    say_row,
    sentences,
)
from .patch_verbs import print_grid, print_trace
from .sources import Json

if TYPE_CHECKING:
    from lens_tui.records.cause_store import CauseRecord, CauseStore

verbs = typer.Typer(help="Kept maps and graphs: list, show, export, delete.", no_args_is_help=True)

Number = Annotated[str, typer.Argument(metavar="NUMBER", help="Its number, as `causes list` has it.")]


_NONE = LensError("No map or graph has been kept yet.", "Causes, a screen of the app, keeps each that it makes.")


def _store() -> CauseStore:
    from lens_tui.records.cause_store import CauseStore

    if not paths.database_kept():
        raise _NONE
    return CauseStore()


def _opened(store: CauseStore, named: str) -> CauseRecord:
    """One by its number. Raises :class:`LensError` where there is none."""
    found = store.get(_number(named))
    if found is None:
        raise _absent(named)
    return found


def _number(named: str) -> int:
    if not named.isdecimal() or len(named) > 18:
        raise _absent(named)
    return int(named)


def _absent(named: str) -> LensError:
    message = f"There is no map or graph {one_line(named, 40)!r} among those that are kept."
    return LensError(message, "`mlx-lens-tui causes list` lists them by number.")


@verbs.command("list")
@sentences
def list_causes(
    words: Annotated[str, typer.Argument(help="Only those whose prompt, question and model hold these words.")] = "",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many, newest first.")] = 50,
    json: Json = False,
) -> None:
    """List the maps and graphs that were kept, newest first."""
    if not paths.database_kept():
        print_none("causes", _NONE, as_json=json)
        return
    store = _store()
    found = store.list(words, limit)
    if json:
        print_json({"model": None, "causes": [asdict(row) for row in found]})
        return
    for row in found:
        model, title, asked = one_line(row.model, 40), one_line(row.title, 60), one_line(row.asked, 60)
        say_row(f"{row.id:>6}  {kept_when(row.created)}  {model}  {title}  {asked!r}")
    if not found:
        note_none("map or graph", words, lambda: store.list("", 1))


@verbs.command("show")
@sentences
def show(
    number: Number,
    node: Annotated[str, typer.Option(help="Of a graph: show the edges of this node (its id).")] = "",
    json: Json = False,
) -> None:
    """Show a map or a graph: what was asked, and its numbers.

    The same figures as `patch` and `graph` print, with the command that makes it again.
    """
    record = _opened(_store(), number)
    if node and not isinstance(record.found, GraphFound):
        raise LensError("A map has no nodes.", "Leave --node out.")
    if json:
        print_json(_as_data(record))
    else:
        _print(record, node)


def _as_data(record: CauseRecord) -> dict[str, Any]:
    from lens_tui.tasks.causes import command_again, found_record

    from .graph_verbs import graph_record, whole_facts

    found = record.found
    if isinstance(found, GraphFound):
        result = graph_record(found.pruned, whole_facts(found.pruned.n_active, found.scores, found.sum_error))
    else:
        result = found_record(found)
    return {
        **asdict(record.summary),
        "plan": to_json(found.plan),
        "made_with": to_json(record.made_with),
        "command": command_again(record) or None,
        "found": result,
    }


def _print(record: CauseRecord, node: str) -> None:
    from lens_tui.tasks.causes import command_again

    from .graph_verbs import chosen_node, print_graph, whole_facts

    found, summary, made = record.found, record.summary, record.made_with
    chosen = chosen_node(found.pruned, node) if isinstance(found, GraphFound) else None
    say(f"{summary.kind} {summary.id}, {kept_when(summary.created)}, {summary.model}")
    say(summary.title)
    say_made_with(made)
    if again := command_again(record):
        say(again)
    say()
    if isinstance(found, GraphFound):
        print_graph(found.pruned, chosen, whole_facts(found.pruned.n_active, found.scores, found.sum_error))
    elif found.grid is not None:
        print_grid(found.grid, found.check)
    else:
        print_trace(found)


@verbs.command("export")
@sentences
def export(
    number: Number,
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            help="The folder to write into, or a file such as map.csv; '-' prints one format.",
            show_default=False,
        ),
    ] = "",
    formats: Annotated[str, typer.Option("--format", "-f", help="json; of a map also csv. Default: all.")] = "",
    name: Annotated[str, typer.Option(help="The files' name, without suffix.")] = "",
    json: Json = False,
) -> None:
    """Write a map as JSON and CSV, or a graph as JSON.

    A graph is written as Neuronpedia and circuit-tracer read it; `graph --read` and Causes open it. Without --out files
    go to the folder of exports among the app's data; an --out that ends in .json or .csv is that one file.
    """
    from lens_tui.records.disk import write_text
    from lens_tui.tasks.causes import cause_text, formats_of, write_cause

    record, place = _opened(_store(), number), expanded(out)
    suffix = place.suffix.lower().removeprefix(".")
    single = suffix if suffix in ("json", "csv") and not place.is_dir() else ""
    asked = formats_of(record.found, formats or single)
    check_target(out, single, asked, name, example=asked[-1], as_json=json)
    if out == "-":
        say(cause_text(record.found, asked[0]).removesuffix("\n"))
        return
    if single:
        write_text(place, cause_text(record.found, single))
        files = [place]
    else:
        files = write_cause(record.found, place if out else paths.exports_folder(), name, asked)
    print_written({"model": record.summary.model, "cause": record.summary.id}, files, as_json=json)


@verbs.command("delete")
@sentences
def delete(
    number: Number,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Delete a map or a graph that was kept.

    It asks first: there is no way back.
    """
    store = _store()
    kept = store.summary(_number(number))
    if kept is None:
        raise _absent(number)
    said = f"{kept.kind} {kept.id} ({one_line(kept.title, 60)}: {one_line(kept.asked, 60)!r})"
    if not yes:
        confirm(f"Delete {said}?", f"Deleting {said} was not confirmed.", "Nothing was deleted.", as_json=json)
    store.delete(kept.id)
    if json:
        print_json({"model": None, "deleted": kept.id})
    else:
        say(f"Deleted {said}.")
