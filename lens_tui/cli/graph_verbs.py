"""The verb that draws what led to the next token: ``graph``."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lens_tui import demo
from lens_tui.records import LensError
from lens_tui.records.arm_syntax import parse_arm
from lens_tui.records.attribution_graph import (
    EDGES,
    NODES,
    AttributionGraph,
    EdgeCheck,
    GraphNode,
    GraphScores,
    node_influence,
    prune_graph,
    with_scores,
)
from lens_tui.records.cause_plan import GraphPlan
from lens_tui.records.graph_file import read_graph, write_graph
from lens_tui.records.paths import expanded
from lens_tui.records.sanitise import one_line
from lens_tui.records.wording import in_one_line, many
from lens_tui.tui.format import figure, fit, signed

from .output import Meter, note, print_json, say, say_row, sentences
from .sources import Json, Model, SAEName, Vectors, open_model, read_text

if TYPE_CHECKING:
    from lens_tui.lens.graphs.build_graph import Attribution
    from lens_tui.tasks.graphs import Transcoders

_NODES, _EDGES, _PLACE = 16, 8, 24
verbs = typer.Typer()


@verbs.command()
@sentences
def graph(
    prompt: Annotated[str, typer.Argument(help="The prompt; '-' reads standard input.")] = "",
    model: Model = demo.NAME,
    transcoders: Annotated[
        str,
        typer.Option(
            "--transcoders", "-t", help="A folder, org/name/folder at the hub, or 'demo' for the bundled ones."
        ),
    ] = "",
    out: Annotated[str, typer.Option("--out", "-o", help="Write the graph here, as Neuronpedia reads it.")] = "",
    target: Annotated[
        list[str] | None, typer.Option("--target", help="Explain this token (' door', id:17). Default: the likeliest.")
    ] = None,
    minus: Annotated[str, typer.Option(help="Explain the one target less this token.")] = "",
    direction: Annotated[
        str, typer.Option(help="Explain the final state along this vector: f2666, a file, a name, random:0@4.")
    ] = "",
    sae: SAEName = "",
    nodes: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of influence that nodes keep.")] = NODES,
    edges: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of influence that edges keep.")] = EDGES,
    features: Annotated[int, typer.Option(min=1, help="Features that get a node, at most.")] = 4096,
    ignored: Annotated[
        int, typer.Option(min=-1, help="At so many first tokens no feature counts. Default (-1): special tokens.")
    ] = -1,
    node: Annotated[str, typer.Option(help="Show the edges of this node (its id). Default: the first logit.")] = "",
    check: Annotated[int, typer.Option(min=0, help="Remove so many of the top features and measure.")] = 0,
    factor: Annotated[float, typer.Option(help="What --check multiplies them by; 0 removes.")] = 0.0,
    read: Annotated[str, typer.Option("--read", help="Show the graph of this file instead of making one.")] = "",
    json: Json = False,
) -> None:
    """Draw what led to the next token: an attribution graph."""
    checks: tuple[EdgeCheck, ...] = ()
    if read:
        if prompt or check:
            raise LensError("A graph that is read needs no prompt and cannot be checked.", "Leave them out.")
        shown = read_graph(expanded(read))
    else:
        plan = _plan(read_text(prompt), transcoders, target or [], minus, features, ignored)
        made, found = _make(plan, model, direction, sae)
        shown = _worded(made, prune_graph(with_scores(made.graph), nodes, edges), found)
        checks = _checked(made, shown, check, factor)
    if out:
        write_graph(shown, expanded(out))
        note(f"{many(len(shown.nodes), 'node')} and {many(shown.n_edges, 'edge')} are in {one_line(out, 120)}")
    chosen, facts = chosen_node(shown, node), _facts(shown)
    if json:
        print_json(graph_record(shown, facts, checks))
    else:
        print_graph(shown, chosen, facts, checks)


def _plan(prompt: str, transcoders: str, target: list[str], minus: str, features: int, ignored: int) -> GraphPlan:
    plan = GraphPlan(prompt, in_one_line(target), minus, transcoders, features, ignored=ignored)
    _ = plan.targets  # what cannot be read is said before the model is opened
    return plan


def _make(plan: GraphPlan, model: str, direction: str, sae: str) -> tuple[Attribution, Transcoders]:
    from lens_tui.tasks.graphs import make_graph, open_transcoders

    name = plan.transcoders
    if not name and model != demo.NAME:
        raise LensError(f"No transcoders are named for {one_line(model, 80)!r}.", "Name a set with --transcoders.")
    lens = open_model(model)
    if direction:
        spec = parse_arm(direction, scale=1.0)
        plan = replace(plan, direction=Vectors(lens, sae, model).vector(spec.terms[0]))
    with Meter() as meter:
        found = open_transcoders(
            name or demo.NAME, lambda n, total: meter.say("opening", f"{n} of {total} layers", n / total)
        )
        made = make_graph(
            lens, plan.prompt, found, plan.targets, most_features=plan.features,
            ignored=None if plan.ignored < 0 else plan.ignored,
            progress=lambda n, total: meter.say("tracing", f"{n:,} of {total:,} rows", n / total),
        )  # fmt: skip

    return made, found


def _worded(made: Attribution, shown: AttributionGraph, found: Transcoders) -> AttributionGraph:
    from lens_tui.tasks.graphs import with_promoted

    lens: Any = made.lens
    return with_promoted(lens, shown, found)


def _checked(made: Attribution, shown: AttributionGraph, count: int, factor: float) -> tuple[EdgeCheck, ...]:
    """Checks of the features with the most influence."""
    from lens_tui.lens.graphs.edge_checks import check_nodes

    if not count:
        return ()
    best = [node.id for node, _ in _by_share(shown) if node.kind == "feature"][:count]
    return check_nodes(made, best, factor=factor)


def whole_facts(n_active: int, scores: GraphScores | None, sum_error: float | None) -> dict[str, Any]:
    """What is known of the whole graph, of which pruning has left a part; nothing where it was not scored."""
    if scores is None or sum_error is None:
        return {}
    named = {"replacement": scores.replacement, "completeness": scores.completeness}
    return {"n_active": n_active, "sum_error": sum_error, **named}


def _facts(graph: AttributionGraph) -> dict[str, Any]:
    """The same of a graph that was made or read, of which the number of active features may be known alone."""
    active = {"n_active": graph.n_active} if graph.n_active else {}
    return active | whole_facts(graph.n_active, graph.scores, graph.sum_error)


def _by_share(graph: AttributionGraph) -> list[tuple[GraphNode, float]]:
    """Nodes that are no logits with their share of all influence in the graph as it is shown, the largest first."""
    scores = node_influence(graph)
    total = float(scores.sum()) or 1.0
    pairs = [(node, float(score) / total) for node, score in zip(graph.nodes, scores, strict=True)]
    return sorted((pair for pair in pairs if pair[0].kind != "logit"), key=lambda pair: -pair[1])


def chosen_node(graph: AttributionGraph, name: str = "") -> int | None:
    """The place of a node by its id, or of the first logit. Raises :class:`LensError`."""
    if name:
        if name not in graph.places:
            raise LensError(f"There is no node {one_line(name, 60)!r} in this graph.", "Give an id of its list.")
        return graph.places[name]
    return next((at for at, node in enumerate(graph.nodes) if node.kind == "logit"), None)


def graph_record(graph: AttributionGraph, facts: dict[str, Any], checks: tuple[EdgeCheck, ...] = ()) -> dict[str, Any]:
    """A graph as plain data.

    Args:
        graph: As it is shown.
        facts: ``n_active``, ``sum_error``, ``replacement`` and ``completeness``, those that are known.
        checks: What was measured.
    """
    return {
        **{name: getattr(graph, name) for name in ("model", "scan", "prompt", "n_layers", "generator")},
        "tokens": list(graph.tokens),
        "node_threshold": graph.node_threshold,
        "edge_threshold": graph.edge_threshold,
        **{name: facts.get(name) for name in ("n_active", "sum_error", "replacement", "completeness")},
        "nodes": [{**asdict(node), "share": share} for node, share in _with_logits(graph)],
        "edges": [
            {"source": graph.nodes[source].id, "target": graph.nodes[target].id, "weight": weight}
            for source, target, weight in zip(
                graph.sources.tolist(), graph.targets.tolist(), graph.weights.tolist(), strict=True
            )
        ],
        "pinned": list(graph.pinned),
        "supernodes": [{"name": group.name, "nodes": list(group.nodes)} for group in graph.supernodes],
        "checks": [asdict(check) for check in checks],
    }


def _with_logits(graph: AttributionGraph) -> list[tuple[GraphNode, float | None]]:
    logits: list[tuple[GraphNode, float | None]] = [(node, None) for node in graph.nodes if node.kind == "logit"]
    return [*logits, *_by_share(graph)]


def print_graph(
    graph: AttributionGraph, chosen: int | None, facts: dict[str, Any], checks: tuple[EdgeCheck, ...] = ()
) -> None:
    """Its logits, the nodes with the most influence, the edges of one, and what was measured.

    Args:
        graph: As it is shown.
        chosen: The place of the node whose edges are printed.
        facts: As for :func:`graph_record`.
        checks: What was measured.
    """
    for at, token in enumerate(graph.nodes):
        if token.kind == "logit":
            say(f"{figure(token.probability, 3):>7}  {_place(graph, graph.nodes[at])}  {_words(token)}")
    say()
    say(f"{'share':>7}  {'node':<{_PLACE}}  {'active':>7}  what it is")
    for node, share in _by_share(graph)[:_NODES]:
        text = f"{share:>7.1%}  {_place(graph, node)}  {figure(node.activation, 2):>7}  {_words(node)}"
        say_row(text)
    if chosen is not None:
        _print_edges(graph, chosen)
    for check in checks:
        _print_check(graph, check)
    kinds = [node.kind for node in graph.nodes]
    note(
        f"{one_line(graph.model, 60)} with {one_line(graph.scan, 60)}: {many(kinds.count('feature'), 'feature')}, "
        f"{many(kinds.count('error'), 'error')}, {many(kinds.count('embedding'), 'token')}, "
        f"{many(graph.n_edges, 'edge')} shown or kept"
    )
    if "replacement" in facts:
        note(
            f"of {facts['n_active']:,} active features; effects and biases add up within {facts['sum_error']:.1e}; "
            f"replacement {facts['replacement']:.2f}, completeness {facts['completeness']:.2f}"
        )


def _print_edges(graph: AttributionGraph, chosen: int) -> None:
    node = graph.nodes[chosen]
    for title, found in (("from", graph.into(chosen, _EDGES)), ("to", graph.out_of(chosen, _EDGES))):
        if not found:
            continue
        say()
        say(f"{title:>7}  {_place(graph, node)}  {_words(node)}")
        for other, weight in found:
            end = graph.nodes[other]
            say_row(f"{signed(weight, 2):>7}  {_place(graph, end)}  {_words(end)}")


def _print_check(graph: AttributionGraph, check: EdgeCheck) -> None:
    """One node's effects: what the graph says, and what was measured."""
    places = {node.id: node for node in graph.nodes}
    what = "removed" if check.factor == 0 else f"times {check.factor:g}"
    say()
    say_row(f"{what}: {_place(graph, places[check.source]).strip()}  {_words(places[check.source])}")
    say(f"{'direct':>8}{'frozen':>8}{'total':>8}{'held':>8}{'free':>8}  on")
    for at, name in enumerate(check.targets):
        values = (check.predicted, check.frozen, check.total, check.held, check.free)
        row = "".join(f"{signed(part[at], 2):>8}" for part in values)
        end = places.get(name)
        words = name if end is None else f"{_place(graph, end).strip()}  {_words(end)}"
        say_row(f"{row}  {words}")


def _place(graph: AttributionGraph, node: GraphNode) -> str:
    """Where a node is, in a column of its own: ``L3 #1204 @5``, its token behind it."""
    names = {"embedding": "token", "logit": "logit", "error": f"L{node.layer} error"}
    name = names.get(node.kind, f"L{node.layer} #{node.feature}")
    token = graph.tokens[node.position] if node.position < len(graph.tokens) else ""
    return fit(f"{name} @{node.position} {one_line(token, 12)}", _PLACE).ljust(_PLACE)


def _words(node: GraphNode) -> str:
    return one_line(node.label, 100) or node.id
