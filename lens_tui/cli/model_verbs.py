"""The verbs of ``models``: what is on this disk and what it needs, ``fetch`` and ``remove``."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lens_tui.records import LensError
from lens_tui.records.machine import machine_memory
from lens_tui.tui.format import ago, fit, fit_left, size
from lens_tui.tui.preferences import preferences

from .output import Meter, confirm, print_json, say, sentences
from .sources import Json, asked_dequantize

if TYPE_CHECKING:
    from lens_tui.tasks.models import ModelEntry

Name = Annotated[str, typer.Argument(metavar="ID", help="org/name, or org/name/folder for an SAE.")]

verbs = typer.Typer()


@verbs.callback(invoke_without_command=True)
@sentences
def models(context: typer.Context, json: Json = False) -> None:
    """Models and SAEs on this disk: list, fetch, remove."""
    if context.invoked_subcommand is None:
        list_all(json)
    elif json:
        raise LensError("--json goes behind the verb.", f"Write `models {context.invoked_subcommand} --json`.")


@verbs.command("list")
@sentences
def list_entries(json: Json = False) -> None:
    """List models and the SAEs for them, as Load does."""
    list_all(json)


def list_all(json: bool) -> None:
    """What is on this disk: size, quantisation, memory needed, when it was used, SAEs for it."""
    from lens_tui.tui.opening import DiskCatalog

    catalog = DiskCatalog(asked_dequantize.get() or preferences().dequantize)
    rows = [_facts(entry, catalog) for entry in catalog.models()]
    if json:
        print_json({"model": None, "machine": machine_memory(), "cache": _cache(), "models": rows})
        return
    width = max([4, *(len(row["name"]) for row in rows)])
    say(f"{fit('NAME', width)}  {fit('QUANT', 10)}{fit_left('SIZE', 10)}{fit_left('NEEDS', 10)}  USED")
    for row in rows:
        needs = size(row["needs"]) if row["needs"] else "-"
        amount = size(row["nbytes"] or row["partial"]) if row["nbytes"] or row["partial"] else "-"
        quantization = row["quantization"].partition(",")[0] or "none"
        say(
            f"{fit(row['name'], width)}  {fit(quantization, 10)}{fit_left(amount, 10)}{fit_left(needs, 10)}"
            f"{' ' if row['fits'] is not False else '!'} {_when(row)}"
        )
        if row["problem"]:
            say(f"  {row['problem']}")
        longest = max((len(sae["name"]) for sae in row["saes"]), default=0)
        for sae in row["saes"]:
            say(f"  {fit(sae['name'], longest)}  {size(sae['nbytes']) if sae['nbytes'] else 'on the hub'}")
    say(f"NEEDS is memory for four arms of a thousand tokens; ! is more than this machine has. The cache is {_cache()}")


@verbs.command("fetch")
@sentences
def fetch_model(
    name: Name,
    revision: Annotated[
        str | None, typer.Option(help="A branch, tag or commit; by default main, as it is now.")
    ] = None,
    json: Json = False,
) -> None:
    """Fetch a model or an SAE from the hub.

    A download that broke off goes on where it was; a model that is here already is brought up to date.
    """
    from lens_tui.records.hub_fetch import fetch

    begun = time.monotonic()
    with Meter() as meter:
        if name.count("/") > 1:
            from lens_tui.sae.from_hub import fetch_sae

            place = fetch_sae(name, revision, meter.fetched)
        else:
            place = fetch(name, revision=revision, progress=meter.fetched)
    seconds = time.monotonic() - begun
    if json:
        print_json({"model": None, "id": name, "path": str(place), "seconds": seconds})
    else:
        say(str(place))


@verbs.command("remove")
@sentences
def remove_model(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Remove a model or an SAE from the hub's cache.

    It asks first. A folder of yours only leaves the list of recent ones.
    """
    from lens_tui.tasks.models import list_models, list_saes, remove

    listed = list_models()
    found = next((entry for entry in listed if name in (entry.id, entry.path)), None)
    row = found or next((sae for entry in listed for sae in list_saes(entry.id) if name in (sae.name, sae.path)), None)
    if row is None:
        raise LensError(f"There is no {name} on this disk.", "`mlx-lens-tui models` lists what there is.")
    if not yes:
        said = f"{row.name} ({size(getattr(row, 'partial', 0) or row.nbytes)})"
        confirm(f"Remove {said}?", f"Removing {said} was not confirmed.", "Nothing was removed.", as_json=json)
    freed = remove(row)
    if json:
        print_json({"model": None, "id": name, "freed": freed})
    else:
        say(f"Removed {row.name}: {size(freed)} are free.")


def _facts(entry: ModelEntry, catalog: Any) -> dict[str, Any]:
    memory = catalog.memory(entry)
    facts = {
        "needs": memory.total if memory.weights else None,
        "fits": memory.fits if memory.weights else None,
        "saes": [asdict(sae) for sae in catalog.saes(entry.id)],
    }
    return {**asdict(entry), **facts}


def _when(row: dict[str, Any]) -> str:
    if row["source"] in ("demo", "hub"):
        return "bundled" if row["source"] == "demo" else "paused"
    return ago(row["used"], time.time()) if row["used"] else "-"


def _cache() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)
