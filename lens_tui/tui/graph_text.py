"""An attribution graph as glyphs in rows of layers and columns of tokens, and as lines about one node. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from textwrap import wrap

from textual.content import Content

from lens_tui.records.attribution_graph import AttributionGraph, Doubles, EdgeCheck, GraphNode, node_influence
from lens_tui.records.cause_plan import GraphFound, GraphPlan
from lens_tui.records.sanitise import one_line
from lens_tui.records.wording import many

from .format import figure, fit, fit_left, share_level, signed

GLYPHS = {"feature": "●", "error": "◇", "embedding": "■", "logit": "▲", "other": "○"}
"""A node by its kind."""
PINNED = {"feature": "◉", "error": "◈", "embedding": "▣", "logit": "△", "other": "◎"}
"""The same, pinned."""
EDGES = 8
"""Edges in and out of a node that are listed, each."""
STEPS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""The shares of influence that the dial goes through."""
COLUMNS = ("direct", "frozen", "total", "held", "free")
NARROW = ("dir.", "frz.", "tot.", "held", "free")
"""The columns of a check."""
FIGURE = 6
WORDS = 160


@dataclass(frozen=True, eq=False)
class GraphLayout:
    """Where each node of a graph stands: a row for the embeddings, one for each layer, one for the logits.

    ``cells`` has the nodes of each (row, column), that with the most influence first; ``share`` each node's share of
    all influence (a logit's is its probability), ``order`` the nodes by it, logits first.
    """

    graph: AttributionGraph
    share: Doubles

    @classmethod
    def of(cls, graph: AttributionGraph) -> GraphLayout:
        """The layout of a graph. Raises :class:`LensError` for one with a circle."""
        scores = node_influence(graph)
        total = float(scores.sum()) or 1.0
        share = scores / total
        for at, node in enumerate(graph.nodes):
            if node.kind == "logit":
                share[at] = node.probability or 0.0
        return cls(graph, share)

    @property
    def rows(self) -> tuple[str, ...]:
        """What stands before each row, the lowest first."""
        return ("emb", *(f"L{layer}" for layer in range(self.graph.n_layers)), "out")

    def row(self, node: int) -> int:
        """A node's row."""
        return max(0, min(self.graph.nodes[node].layer + 1, self.graph.n_layers + 1))

    @cached_property
    def cells(self) -> Mapping[tuple[int, int], Sequence[int]]:
        """The nodes of each place."""
        found: dict[tuple[int, int], list[int]] = {}
        for at in sorted(range(len(self.graph.nodes)), key=lambda at: (-self.share[at], at)):
            found.setdefault((self.row(at), self.graph.nodes[at].position), []).append(at)
        return found

    @cached_property
    def order(self) -> Sequence[int]:
        """Every node: logits by probability, then the others by influence."""
        nodes = self.graph.nodes
        return sorted(range(len(nodes)), key=lambda at: (nodes[at].kind != "logit", -self.share[at], at))

    @cached_property
    def top(self) -> float:
        """The largest share of a node that is no logit."""
        inner = [float(self.share[at]) for at in self.order if self.graph.nodes[at].kind != "logit"]
        return inner[0] if inner else 0.0

    def level(self, node: int) -> int:
        """A node's level of influence, 0 to 7."""
        return share_level(float(self.share[node]), 1.0 if self.graph.nodes[node].kind == "logit" else self.top)

    def in_row(self, row: int) -> list[int]:
        """The nodes of a row, from the first token to the last."""
        return [node for column in range(len(self.graph.tokens)) for node in self.cells.get((row, column), ())]

    def glyph(self, node: int) -> str:
        """A node's glyph: its kind, and whether it is pinned."""
        of = self.graph.nodes[node]
        return (PINNED if of.id in self.graph.pinned else GLYPHS)[of.kind]


@dataclass(frozen=True, slots=True)
class Edge:
    """One edge of the chosen node: its other end, its weight, and whether it comes in."""

    other: int
    weight: float
    inward: bool


def edges_of(graph: AttributionGraph, node: int) -> list[Edge]:
    """The strongest edges into a node, then those out of it."""
    into = [Edge(other, weight, True) for other, weight in graph.into(node, EDGES)]
    return into + [Edge(other, weight, False) for other, weight in graph.out_of(node, EDGES)]


@dataclass(frozen=True, slots=True)
class NodeView:
    """What is said of one node: which edge is chosen, and what was measured of nodes, by their ids."""

    node: int
    edge: int = 0
    checks: Mapping[str, EdgeCheck] = field(default_factory=dict)


def node_place(graph: AttributionGraph, node: GraphNode) -> str:
    """Where a node is, in short: ``L3 #1204 @5 ‘·door’``."""
    name = {"embedding": "token", "logit": "logit", "error": f"L{node.layer} error"}.get(node.kind)
    text = graph.tokens[node.position] if node.position < len(graph.tokens) else ""
    return f"{name or f'L{node.layer} #{node.feature}'} @{node.position} {token_text(text)}"


def token_text(text: str) -> str:
    """A token in quotes, safe to show, its blanks as dots."""
    return f"‘{one_line(text.replace(' ', '·'), 24)}’"


def node_words(node: GraphNode) -> str:
    """What a node is called: its label, else its place in its layer."""
    return one_line(node.label, WORDS).strip() or {"error": "error of the MLP"}.get(
        node.kind, f"L{node.layer} #{node.feature}"
    )


def node_lines(layout: GraphLayout, view: NodeView, width: int) -> tuple[list[Content], int, int]:
    """Lines about a node, the place of the chosen edge's line, and that of the last line of what was measured."""
    graph, at = layout.graph, view.node
    node = graph.nodes[at]
    lines = [Content.assemble((fit(f"{layout.glyph(at)} {node_place(graph, node)}", width).rstrip(), "bold"))]
    lines += [Content(part) for part in _wrapped(node_words(node), width, 3)]
    lines += [Content(""), *_facts(layout, at, width), *_check_lines(layout, view, width)]
    chosen, checked, found = 0, len(lines) - 1, edges_of(graph, at)
    for number, edge in enumerate(found):
        if number == 0 or edge.inward != found[number - 1].inward:
            count = len(graph.into(at) if edge.inward else graph.out_of(at))
            lines += [Content(""), _pair("comes from" if edge.inward else "acts on", many(count, "node"), width)]
        if number == view.edge:
            chosen = len(lines)
        lines.append(_edge(layout, edge, number == view.edge, width))
    return [line.truncate(width, ellipsis=True) for line in lines], chosen, checked


def _facts(layout: GraphLayout, at: int, width: int) -> list[Content]:
    graph, node = layout.graph, layout.graph.nodes[at]
    if node.kind == "logit":
        lines = [_pair("probability", figure(node.probability, 3), width)]
    else:
        lines = [_pair("share", f"{layout.share[at]:.1%}", width)]
    if node.activation is not None:
        lines.append(_pair("activation", figure(node.activation, 2), width))
    first = next((end for end, other in enumerate(graph.nodes) if other.kind == "logit"), None)
    if first is not None and node.kind != "logit":
        text = f"direct on {_answer(graph.nodes[first])}"
        lines.append(_pair(text, signed(graph.weight(at, first), 3), width))
    for group in graph.supernodes:
        if node.id in group.nodes:
            members = [graph.places[name] for name in group.nodes if name in graph.places]
            share = sum(float(layout.share[member]) for member in members)
            name = f"in {one_line(group.name, 30)}, {many(len(members), 'node')}"
            lines.append(_pair(name, f"{share:.1%}", width))
    return lines


def _answer(node: GraphNode) -> str:
    """A logit's token, out of its label."""
    _, _, rest = node.label.partition('"')
    return token_text(rest.partition('"')[0]) if rest else one_line(node.label, 20)


def _edge(layout: GraphLayout, edge: Edge, chosen: bool, width: int) -> Content:
    node = layout.graph.nodes[edge.other]
    row = {"embedding": "emb", "logit": "out"}.get(node.kind, f"L{node.layer}")
    style = "bold" if chosen else ""
    colour = "$sign-pos" if edge.weight > 0 else "$sign-neg"
    room = max(0, width - 16)
    return Content.assemble(
        ("▸" if chosen else " ", "bold"), (fit_left(signed(edge.weight, 2), FIGURE), f"{style} {colour}".strip()), " ",
        (fit(f"{layout.glyph(edge.other)}{row}@{node.position}", 8), style or "$muted"),
        (fit(node_words(node), room).rstrip(), style),
    )  # fmt: skip


def _check_lines(layout: GraphLayout, view: NodeView, width: int) -> list[Content]:
    """What was measured of the node, and of the other end of the chosen edge where that acts on it."""
    graph = layout.graph
    name = graph.nodes[view.node].id
    lines: list[Content] = []
    found = edges_of(graph, view.node)
    other = graph.nodes[found[view.edge].other].id if found and found[view.edge].inward else ""
    for source in dict.fromkeys((other, name)):
        check = view.checks.get(source)
        if check is not None:
            wanted = None if source == name else name
            lines += _check_table(graph, check, wanted, width)
    return lines


def _check_table(graph: AttributionGraph, check: EdgeCheck, only: str | None, width: int) -> list[Content]:
    places = graph.places
    rows = [at for at, name in enumerate(check.targets) if name in places and only in (None, name)]
    if not rows:
        return []
    what = "removed" if check.factor == 0 else f"times {check.factor:g}"
    source = graph.nodes[places[check.source]] if check.source in places else None
    said = check.source if source is None else node_words(source)
    lines = [Content(""), Content.styled(fit(f"{what}: {one_line(said, WORDS)}", width).rstrip(), "bold")]
    cell = min(8, max(5, width // 5))
    places_shown = 2 if cell >= FIGURE else 1
    heads = "".join(fit_left(head, cell) for head in (COLUMNS if cell > max(map(len, COLUMNS)) else NARROW))
    lines.append(Content.styled(heads, "$muted"))
    for at in rows:
        target = graph.nodes[places[check.targets[at]]]
        row = "out" if target.kind == "logit" else f"L{target.layer}"
        lines.append(Content(fit(f"{GLYPHS[target.kind]}{row}@{target.position} {node_words(target)}", width).rstrip()))
        values = (check.predicted, check.frozen, check.total, check.held, check.free)
        lines.append(Content("".join(fit_left(signed(part[at], places_shown), cell) for part in values)))
    return lines


def _pair(name: str, value: str, width: int) -> Content:
    cut = len(value) + 1
    return Content.assemble((fit(name, max(0, width - cut)), "$muted"), fit_left(value, cut))


def _wrapped(text: str, width: int, most: int) -> list[str]:
    """Words in lines of a width, at most so many; the last one says that there is more."""
    lines = wrap(text, max(8, width)) or [""]
    return lines if len(lines) <= most else [*lines[: most - 1], fit(" ".join(lines[most - 1 :]), width)]


def legend_of(layout: GraphLayout, mode: str, width: int) -> Content:
    """What the glyphs stand for, in a line."""
    plain = "● feature  ◇ error  ■ token  ▲ logit  ◉ pinned"
    if mode in ("bars", "digits"):
        plain = f"influence: {'▁' if mode == 'bars' else '0'} none … {'█' if mode == 'bars' else '7'} {layout.top:.1%}"
    if len(plain) > width:
        plain = plain.replace("  ", " ")
    joined = "joined to the chosen one: "
    parts = [(plain, "$muted")]
    if len(plain) + len(joined) + 17 <= width:
        parts += [(f"   {joined}", "$muted"), ("raises", "bold $sign-pos"), (" ", ""), ("lowers", "bold $sign-neg")]
    return Content.assemble(*parts)


def graph_question(plan: GraphPlan, found: GraphFound | None, width: int) -> list[Content]:
    """The prompt with what is explained of it, and how much of the graph shows."""
    aim = one_line(plan.aim, 80)
    leads = f" → {aim}"
    room = max(8, width - 9 - len(leads))
    asked = Content.assemble(
        (fit("prompt", 9), "$muted"), fit(one_line(plan.prompt, 4 * room), room).rstrip(), (leads, "$muted")
    )
    if found is None:
        return [asked, Content("")]
    graph, kinds = found.pruned, [node.kind for node in found.pruned.nodes]
    shown, active = kinds.count("feature"), found.whole.n_active
    features = many(active, "feature", f"{shown} of {active:,}") if active else many(shown, "feature")
    facts = [f"{features}, {many(kinds.count('error'), 'error')}"]
    if found.scores is not None:  # first: a narrow screen cuts the end
        facts += [f"completeness {found.scores.completeness:.2f}", f"replacement {found.scores.replacement:.2f}"]
    if found.sum_error is not None:
        facts.append(f"sums within {found.sum_error:.0e}")
    facts.append(many(graph.n_edges, "edge", f"{graph.n_edges:,}"))
    text = " · ".join(facts)
    return [asked, Content.styled(fit(f"{'shown':<9}{text}", width).rstrip(), "$muted")]


def merged(old: EdgeCheck, new: EdgeCheck) -> EdgeCheck:
    """Two checks of one node as one: what is new replaces what is known of the same targets."""
    if old.factor != new.factor:
        return new
    kept = [at for at, name in enumerate(old.targets) if name not in new.targets]

    def of(name: str) -> tuple[float, ...]:
        return (*getattr(new, name), *(getattr(old, name)[at] for at in kept))

    targets = (*new.targets, *(old.targets[at] for at in kept))
    columns = (of(name) for name in ("predicted", "frozen", "total", "held", "free"))
    return EdgeCheck(new.source, new.factor, targets, *columns)
