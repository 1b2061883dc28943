"""The verbs of models: what is on this disk, ``bake`` for one with steering in its weights, and those of the hub."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lens_tui.records import LensError
from lens_tui.records.arm_syntax import parse_arm
from lens_tui.records.machine import machine_memory
from lens_tui.records.sanitise import one_line
from lens_tui.tui.format import ago, fit, fit_left, size
from lens_tui.tui.preferences import preferences

from .output import Meter, agreed, confirm, note, print_json, say, sentences
from .sources import Json, Model, SAEName, Vectors, asked_adapter, asked_dequantize, fetch_model

if TYPE_CHECKING:
    from lens_tui.lens.model import LensModel
    from lens_tui.records import Intervention
    from lens_tui.tasks.bake import Baked
    from lens_tui.tasks.models import ModelEntry

Name = Annotated[str, typer.Argument(metavar="ID", help="org/name, or org/name/folder for an SAE.")]

verbs = typer.Typer()
hub_verbs = typer.Typer()
bake_verbs = typer.Typer()


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
def fetch_entry(
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
def remove_entry(
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


@hub_verbs.command()
@sentences
def publish(
    source: Annotated[str, typer.Argument(help="The file of a vector or probe, or an SAE's folder.")],
    repository: Annotated[str, typer.Argument(help="owner/name at the hub.")],
    licence: Annotated[str, typer.Option("--licence", help="The hub's word for it, such as mit or cc-by-4.0.")] = "",
    public: Annotated[
        bool, typer.Option("--public", help="Let others see it; without it the repository is private.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Send a vector, a probe or an SAE to the hub, with a card.

    It says what would be sent and asks first. The token is that of `hf auth login`.
    """
    from lens_tui.tasks.publish import prepare
    from lens_tui.tasks.publish import publish as send

    plan = prepare(source, repository, licence=licence, private=not public)
    note(f"{plan.repo_id} ({'private' if plan.private else 'public'}): {', '.join(plan.files)}, {size(plan.nbytes)}")
    note(plan.card)
    if not yes and not agreed("Send it?"):
        raise LensError("Nothing was sent.", "Say yes, or give --yes.")
    url = send(plan)
    if json:
        print_json({"model": None, "id": plan.repo_id, "kind": plan.kind, "files": [*plan.files], "url": url})
    else:
        say(one_line(url, 200))


@hub_verbs.command()
@sentences
def pull(
    name: Annotated[
        str, typer.Argument(help="owner/name, or owner/name/FILE.safetensors, or an SAE's owner/name/FOLDER.")
    ],
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit.")] = None,
    json: Json = False,
) -> None:
    """Fetch a vector, a probe or an SAE from the hub.

    Vectors and probes go into the vectors folder, SAEs into the hub's cache.
    """
    from lens_tui.tasks.publish import pull as fetch

    with Meter() as meter:
        kind, place = fetch(name, revision, meter.fetched)
    print_json({"model": None, "id": name, "kind": kind, "path": str(place)}) if json else say(str(place))


@bake_verbs.command()
@sentences
def bake(
    arm: Annotated[
        str, typer.Option("--arm", "-a", help="What becomes weights: verse*8, f75*20+f9*4, f75:project_out.")
    ],
    out: Annotated[str, typer.Option("--out", "-o", help="The folder to make; with --to gguf, the file.")],
    model: Model = "demo",
    sae: SAEName = "",
    to: Annotated[
        Literal["mlx", "lora", "peft", "gguf"],
        typer.Option(help="A whole model, mlx-lm's LoRA, PEFT's LoRA, or llama.cpp's control vector."),
    ] = "mlx",
    texts: Annotated[int, typer.Option(min=1, max=64, help="Texts on which loss and KL are measured.")] = 16,
    json: Json = False,
) -> None:
    """Make a steering part of a model's weights, for any program.

    Written as a model, a LoRA or a control vector, and measured against the live steering.
    """
    from lens_tui.lens.measure.effects import LOSS_TEXTS
    from lens_tui.tasks.bake import bake as bake_steering

    if asked_adapter.get():
        raise LensError("A model with an adapter is not baked.", "Fuse the adapter first (mlx_lm.fuse), and bake that.")
    spec = parse_arm(arm)
    fetch_model(model)

    def records(lens: LensModel) -> tuple[Intervention, ...]:
        return Vectors(lens, sae, model).arm(spec).interventions

    with Meter() as meter:
        found = bake_steering(
            model,
            records,
            out,
            form=to,
            texts=LOSS_TEXTS[:texts],
            dequantize=asked_dequantize.get() or preferences().dequantize,
            progress=lambda word: meter.say("bake", word, None),
        )
    print_json(asdict(found)) if json else _print_baked(found)


def _print_baked(found: Baked) -> None:
    say(f"{found.path}")
    for text in found.where:
        say(f"  {text}")
    if found.everywhere:
        say("  a projection at one layer became one at all: the live steering that it equals acts at every write")
    say(f"largest difference of a log-probability from the live steering ({found.precision}): {found.max_delta:.2g}")
    packed = f" ({found.quantization})" if found.quantization else ""
    say(f"as written{packed}, on {found.texts} texts of {found.tokens} tokens, nats a token:")
    say(f"  loss   plain {found.loss_plain:.4f}   live {found.loss_live:.4f}   baked {found.loss_baked:.4f}")
    say(f"  KL     from plain {found.kl_plain:.4f}   from the live arm as asked {found.kl_live:.2g}")


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
