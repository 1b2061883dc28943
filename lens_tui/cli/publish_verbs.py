"""The verbs that send vectors, probes and SAEs to the hub, and fetch them: ``publish`` and ``pull``."""

from __future__ import annotations

from typing import Annotated

import typer

from lens_tui.records import LensError
from lens_tui.records.sanitise import one_line
from lens_tui.tui.format import size

from .output import Meter, agreed, note, print_json, say, sentences
from .sources import Json

verbs = typer.Typer()


@verbs.command()
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


@verbs.command()
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
