"""What is kept and read of activations: ``capture``, and ``probe train``, ``evaluate``, ``apply`` and ``list``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lens_tui.records import LensError
from lens_tui.records.arm_syntax import parse_arm
from lens_tui.records.paths import expanded
from lens_tui.records.sanitise import one_line, sanitise_token
from lens_tui.records.wording import many
from lens_tui.tui.format import count, figure

from .output import Meter, interruptible, note, print_json, say, sentences
from .read_verbs import whole_numbers
from .sae_verbs import Context, MaxTokens, RayAddress, Rows, Text, WorkerCores, WorkerGPUs, Workers, cluster_of
from .sources import Json, Model, SAEName, TextKey, Vectors, asked_adapter, open_model, open_sae, read_text

if TYPE_CHECKING:
    from lens_tui.records.probe import HeldOut, Probe
    from lens_tui.tasks.capture import CaptureProgress, CaptureReport
    from lens_tui.tasks.cluster import Cluster

verbs = typer.Typer()
probe_verbs = typer.Typer(no_args_is_help=True, help="Probes of activations: train, apply, list.")


@verbs.command()
@sentences
def capture(
    text: Text,
    out: Annotated[
        str, typer.Option("--out", "-o", help="The folder of shards, or its address; a capture in it is continued.")
    ],
    model: Model = "demo",
    layers: Annotated[str, typer.Option("--layers", "-l", help="Layers, as 0,4,-1. Default: all.")] = "",
    site: Annotated[
        list[str] | None, typer.Option("--site", help="A tensor, such as resid_post (default); may be repeated.")
    ] = None,
    arm: Annotated[str, typer.Option("--arm", "-a", help="Capture the steered model: SOURCE[@LAYER]*SCALE.")] = "",
    sae: SAEName = "",
    context: Context = 256,
    rows: Rows = 32,
    max_tokens: MaxTokens = 0,
    shard_mb: Annotated[int, typer.Option(min=1, help="Megabytes of activations in a shard.")] = 256,
    text_key: TextKey = "text",
    workers: Workers = 0,
    ray: RayAddress = "",
    worker_cores: WorkerCores = 1,
    worker_gpus: WorkerGPUs = 0.0,
    json: Json = False,
) -> None:
    """Keep the activations of every token of a text.

    As safetensors, with token ids. ctrl+c writes what was read, and the same command continues from there.
    """
    from lens_tui.tasks.text_source import text_source

    cluster = cluster_of(workers, ray, worker_cores, worker_gpus)
    wanted, spec = whole_numbers(layers), parse_arm(arm) if arm else None
    with open_model(model) as lens, interruptible() as asked, Meter() as meter:
        steering = Vectors(lens, sae, model).arm(spec).interventions if spec else ()
        at = lens.registry.decoder.indices(range(lens.n_layers) if wanted is None else wanted)
        places = [(layer, name) for layer in at for name in site or ["resid_post"]]
        options: dict[str, Any] = {
            "interventions": steering, "context": context, "rows": rows, "text_key": text_key,
            "max_tokens": max_tokens or None, "shard_bytes": shard_mb << 20, "should_stop": asked,
            "progress": lambda progress: meter.say(*_line(progress)),
        }  # fmt: skip
        report = _captured(cluster, lens, text_source(text), out, places, **options)
        facts = {"model": lens.info.name, **asdict(report)}
    if json:
        print_json(facts)
    else:
        tokens, shards = many(report.n_tokens, "token", count(report.n_tokens)), many(len(report.shards), "shard")
        say(f"{tokens} in {shards}, each with {', '.join(report.tensors)}")
        say(f"written to {report.folder}")
    if report.stopped:
        note("mlx-lens-tui: stopped. Run the same command to continue.")
        raise SystemExit(asked.status)


def _captured(cluster: Cluster | None, *given: Any, **options: Any) -> CaptureReport:
    """The capture, in this process or on the workers of a cluster."""
    from lens_tui.tasks.capture import capture_texts
    from lens_tui.tasks.cluster_capture import capture_on_cluster

    if cluster is None:
        return capture_texts(*given, **options)
    return capture_on_cluster(*given, cluster=cluster, adapter=asked_adapter.get(), **options)


def _line(progress: CaptureProgress) -> tuple[str, str, float | None]:
    done = f"block {progress.block} of {progress.n_blocks} · {count(progress.n_tokens)} tokens"
    return "capture", f"{done} · {count(progress.tokens_per_s)} tokens/s", progress.block / progress.n_blocks


Labelled = Annotated[
    str,
    typer.Argument(
        help="JSONL: text, label (0, 1, a number) or labels of its tokens; group: what is held out together."
    ),
]
ProbeFile = Annotated[str, typer.Argument(help="A probe's file, or its name in the vectors folder.")]


@probe_verbs.command("train")
@sentences
def train(
    texts: Labelled,
    name: Annotated[str, typer.Option("--name", "-n", help="What it is called.")] = "probe",
    kind: Annotated[
        Literal["mean_difference", "logistic", "ridge"], typer.Option(help="ridge is for labels that are any numbers.")
    ] = "logistic",
    over: Annotated[Literal["last", "mean", "every"], typer.Option(help="The token or tokens that are read.")] = "last",
    layers: Annotated[str, typer.Option("--layers", "-l", help="Layers, as 0,4,-1. Default: all.")] = "",
    site: Annotated[str, typer.Option(help="Where activations are read.")] = "resid_post",
    folds: Annotated[int, typer.Option(min=2, help="Of the cross-validation.")] = 5,
    permutations: Annotated[int, typer.Option(min=0, help="Labels dealt at random, for the null.")] = 100,
    k: Annotated[int, typer.Option("--sparse", min=0, help="Probe so many features of --sae instead.")] = 0,
    sae: SAEName = "",
    seed: Annotated[int, typer.Option(min=0, help="Of folds and permutations.")] = 0,
    model: Model = "demo",
    out: Annotated[str, typer.Option("--out", "-o", help="The best layer's file; default: the vectors folder.")] = "",
    json: Json = False,
) -> None:
    """Fit a probe at each layer; the best one is saved."""
    from lens_tui.lens.probes.probe_texts import train_probes
    from lens_tui.records.corpus import read_labelled
    from lens_tui.records.probe import save_probe

    given = read_labelled(texts)
    shared: dict[str, Any] = {"groups": given.groups, "folds": folds, "permutations": permutations, "seed": seed}
    with open_model(model) as lens, Meter() as meter:
        if k:
            from lens_tui.tasks.make_vectors import probe_features

            opened = open_sae(sae, model)
            found = probe_features(lens, opened, given.texts, given.labels, k, over=over, **shared)
            result = {"model": lens.info.name, "sae": opened.info.name, **asdict(found)}
            print_json(result) if json else _print_sparse(result)
            return
        shared |= {"kind": kind, "over": "every" if given.by_token else over, "site": site}
        report = train_probes(
            lens, name, given.texts, given.labels, layers=whole_numbers(layers),
            progress=lambda done, total: meter.say("layers", f"{done} of {total}", done / total), **shared,
        )  # fmt: skip
    best = report.best
    path = save_probe(best, out or None)
    rows = [_row(probe) for probe in report.probes]
    result = {
        "model": report.model,
        "name": name,
        **report.facts,
        "layers": rows,
        "best": best.layer,
        "path": str(path),
    }
    print_json(result) if json else _print_layers(result)


@probe_verbs.command("evaluate")
@sentences
def evaluate(probe: ProbeFile, texts: Labelled, model: Model = "demo", json: Json = False) -> None:
    """Score labelled texts that a probe has not seen: AUC, or R2."""
    from lens_tui.lens.probes.probe_texts import evaluate_probe
    from lens_tui.records.corpus import read_labelled

    held, given = _open(probe), read_labelled(texts)
    with open_model(model) as lens:
        scores, value = evaluate_probe(lens, held, given.texts, given.labels)
        result = {"model": lens.info.name, "name": held.vector.name, "layer": held.layer,
                  "metric": held.held_out.metric, "value": value, "n": len(scores), "scores": scores}  # fmt: skip
    if json:
        print_json(result)
    else:
        say(f"{result['metric']} {figure(value, 3)} on {many(len(scores), 'example')} (held out in training: "
            f"{figure(held.held_out.value, 3)})")  # fmt: skip


@probe_verbs.command("apply")
@sentences
def apply(
    probe: ProbeFile,
    text: Annotated[str, typer.Argument(help="The text; '-' reads standard input.")],
    model: Model = "demo",
    json: Json = False,
) -> None:
    """A probe's score at every token of a text."""
    from lens_tui.lens.probes.probe_texts import token_scores

    held = _open(probe)
    with open_model(model) as lens:
        ids, scores = token_scores(lens, held, read_text(text))
        tokens = [sanitise_token(lens.tokens.display(token)) for token in ids]
        result = {"model": lens.info.name, "name": held.vector.name, "layer": held.layer, "token_ids": list(ids),
                  "tokens": tokens, "scores": scores}  # fmt: skip
    if json:
        print_json(result)
    else:
        for token, score in zip(tokens, scores, strict=True):
            say(f"{figure(score, 3):>9}  {token}")
        note(f"{held.vector.name} at layer {held.layer} {held.vector.site}")


@probe_verbs.command("list")
@sentences
def listed(json: Json = False) -> None:
    """The probes in the vectors folder."""
    from lens_tui.records.probe import kept_probes

    rows = [{"path": str(path), **_row(probe)} for path, probe in kept_probes()]
    if json:
        print_json({"model": None, "probes": rows})
        return
    for row in rows:
        say(f"{row['name']}  layer {row['layer']} {row['site']}, {row['probe']}: {_words(row)}  {row['path']}")
    if not rows:
        note("there are no probes yet: `mlx-lens-tui probe train FILE` makes one")


def _open(named: str) -> Probe:
    """A probe by its file, or by its name among those that were kept."""
    from lens_tui.records.probe import kept_probes, load_probe

    path = expanded(named)
    if path.exists():
        return load_probe(path)
    for kept, probe in kept_probes():
        if named in (probe.vector.name, kept.stem):
            return probe
    raise LensError(f"There is no probe {one_line(named, 80)!r}.", "`mlx-lens-tui probe list` names those there are.")


def _row(probe: Probe) -> dict[str, Any]:
    vector = probe.vector
    facts = {"name": vector.name, "layer": vector.layer, "site": vector.site, "norm": vector.norm, "bias": probe.bias}
    return {**facts, "probe": vector.origin.facts.get("probe", ""), **asdict(probe.held_out)}


def _words(row: dict[str, Any] | HeldOut) -> str:
    held: Any = row if isinstance(row, dict) else asdict(row)
    text = f"{held['metric']} {figure(held['value'], 3)}"
    if held["p"] is None:
        return text
    null = f"{figure(held['null_mean'], 3)} (95 %: {figure(held['null_high'], 3)})"
    return f"{text}, at random {null}, p {figure(held['p'], 3)}"


def _print_layers(result: dict[str, Any]) -> None:
    for row in result["layers"]:
        say(f"layer {row['layer']:>3}  {_words(row)}" + ("  <- best" if row["layer"] == result["best"] else ""))
    first: dict[str, Any] = result["layers"][0]
    among = f"{many(first['n'], 'example')} in {many(first['n_groups'], 'group')}"
    note(f"{among}, {many(len(first['folds']), 'fold')}, seed {result['seed']}")
    note(f"layer {result['best']} is kept as {result['path']}")


def _print_sparse(result: dict[str, Any]) -> None:
    pairs: Sequence[tuple[int, float]] = list(zip(result["features"], result["weights"], strict=True))
    for feature, weight in pairs:
        say(f"f{feature}  weight {figure(weight, 3)}")
    say(_words(result["held_out"]))
    note(f"features of {result['sae']}, {result['held_out']['n']} examples")
