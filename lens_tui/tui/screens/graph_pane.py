"""An attribution graph: asked for, made, gone through node by node, pruned, pinned, checked and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from lens_tui import demo
from lens_tui.records import LensError, paths
from lens_tui.records.attribution_graph import AttributionGraph, EdgeCheck, GraphNode, Supernode
from lens_tui.records.cause_plan import GraphFound, GraphPlan
from lens_tui.records.sanitise import one_line
from lens_tui.records.steering_vector import SteeringVector
from lens_tui.records.vector_formats import keep_vector
from lens_tui.records.wording import many
from lens_tui.tasks.graphs import graph_command
from lens_tui.tui.bindings import bindings
from lens_tui.tui.graph_text import (
    STEPS,
    Edge,
    GraphLayout,
    NodeView,
    edges_of,
    graph_question,
    legend_of,
    merged,
    node_lines,
    node_place,
    node_words,
)
from lens_tui.tui.host import WAITING
from lens_tui.tui.widgets.frame import Pane
from lens_tui.tui.widgets.graph_map import GraphMap
from lens_tui.worker.events import (
    Event,
    GraphMade,
    GraphWritten,
    JobDone,
    JobFailed,
    JobStarted,
    NodeChecked,
    VectorMade,
)
from lens_tui.worker.jobs import CheckNode, Job, KeepGraph, MakeGraph, PruneGraph, ReadGraph, VectorFromNode, WriteGraph

from .features_screen import open_feature
from .form import Field, FormScreen, filled, optional, whole
from .word_search import WordSearch

NONE, MAKING = "none", "making the graph …"
"""No direction."""
CHECKED = 5
"""Nodes that a node acts on which are measured when it is checked, and the first logit."""


class GraphPane(Pane):
    """One graph. Posts :class:`Turned` when there is something else to be said of it or of its node."""

    keeps_note: ClassVar[bool] = True
    BINDINGS = bindings("graph")

    @dataclass
    class Turned(Message):
        """The graph, its node, its edge or what was measured is another one."""

    @dataclass
    class HistoryWanted(Message):
        """The graphs made before are asked for."""

    def __init__(self) -> None:
        self.map, self._legend = GraphMap(id="graph-map"), Static("", id="graph-legend")
        super().__init__("Attribution graph", self.map, self._legend, id="graph-pane")
        self.plan = GraphPlan()
        self.found: GraphFound | None = None
        self.kept: list[GraphFound] = []
        self.checks: dict[str, EdgeCheck] = {}
        self.edge = 0
        self._state = ""
        self._measured = False
        self._search = WordSearch[int]("node", "graph")

    # -- what there is -----------------------------------------------------------------------------------

    @property
    def asked(self) -> GraphPlan:
        """The plan, of the prompt on Generate where nobody has written another."""
        return replace(self.plan, prompt=self.plan.prompt or self.session.prompt or demo.starter().prompt)

    @property
    def stale(self) -> bool:
        """Whether the graph is of another question than the one above it."""
        if self.found is None:
            return False
        known, asked = self.found.plan, self.asked
        return replace(known, nodes=0.0, edges=0.0) != replace(asked, nodes=0.0, edges=0.0)

    @property
    def layout_of(self) -> GraphLayout | None:
        """Where its nodes stand."""
        return self.map.layout_of

    @property
    def chosen(self) -> GraphNode | None:
        """The node under the cursor."""
        return None if self.found is None or self.map.blank else self.found.pruned.nodes[self.map.node]

    @property
    def edges_here(self) -> list[Edge]:
        """The edges of the node that are listed."""
        return [] if self.found is None or self.map.blank else edges_of(self.found.pruned, self.map.node)

    @property
    def explains(self) -> tuple[str, ...]:
        """The numbers of a node, then those of the whole graph."""
        checked = ("graph_checks",) if self.chosen is not None and self.chosen.id in self.checks else ()
        whole = ("graph_completeness", "graph_replacement", "graph_sums", "graph_active")
        return (*checked, "graph_share", "graph_effect", "activation", "graph_checks", *whole)

    # -- asking ------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """Another model: nothing is known of it."""
        self.found, self.kept, self.checks, self._state = None, [], {}, ""
        self.plan = GraphPlan()
        self.refresh_graph()

    def action_make(self) -> None:
        """Make the graph; where it is there, go to the other end of the chosen edge."""
        if self.found is not None and not self.stale:
            self._follow()
            return
        self.make()

    def make(self) -> None:
        """Make the graph of the question, whatever there is."""
        if self.session.model is None:
            self.lens.say(self.lens.no_model())
            return
        self._state = WAITING if self.lens.book.busy else MAKING
        self.lens.submit(MakeGraph(self.asked), "graph", self._take_made)
        self.refresh_graph()

    def _submit(self, job: Job, slot: str) -> None:
        self.lens.submit(job, slot, self._take)

    def _take_made(self, event: Event) -> bool | None:
        if isinstance(event, JobStarted):
            self._state = MAKING
            self.refresh_graph()
        return self._take(event)

    def _take(self, event: Event) -> bool | None:
        if isinstance(event, GraphMade):
            self._state = ""
            self._show(event.found)
            self._pins_back()
            if event.unkept:
                self.lens.say(f"The graph is not kept: {event.unkept}")
        elif isinstance(event, NodeChecked):
            if self.found is not None and _same(event.found, self.found):
                old = self.checks.get(event.check.source)
                self.checks[event.check.source] = event.check if old is None else merged(old, event.check)
                self._measured = True
                self.post_message(self.Turned())
        elif isinstance(event, GraphWritten):
            self.lens.say(f"Wrote {one_line(event.path)}")
        elif isinstance(event, JobFailed):
            self._state = f"{event.message} {event.hint}".strip() if self.found is None else ""
            self.refresh_graph()
        elif isinstance(event, JobDone) and event.stopped:
            self._state = "stopped"
            self.refresh_graph()
        return None

    def _show(self, found: GraphFound) -> None:
        """Show a graph, the cursor where it was if its node is still there."""
        old, node = self.found, self.chosen
        same = old is not None and _same(old, found)
        if not same:
            self._search.words = ""
            self.checks = {}
            self.plan = replace(found.plan, prompt=self.plan.prompt) if not found.file else found.plan
        elif old is not None:
            # Pinned while the graph was being pruned.
            found = _joined(found, old.whole.pinned, old.whole.supernodes)
        self.plan = replace(self.plan, nodes=found.plan.nodes)
        self.found = found
        self.kept = [found, *(each for each in self.kept if not _same(each, found))]
        try:
            layout = GraphLayout.of(found.pruned)
        except LensError as error:
            self.found, self.kept = None, self.kept[1:]
            self.lens.show_error(error.message, error.hint)
            self.refresh_graph()
            return
        at = found.pruned.places.get(node.id) if same and node is not None else None
        self.edge = self.edge if at is not None else 0
        self.map.show(layout, layout.order[0] if at is None and layout.order else at or 0)
        self.refresh_graph()

    def _pins_back(self) -> None:
        """Prune once more where a pinned node was left out: one that was made anew did not know the pins."""
        found = self.found
        if found is not None and set(found.whole.pinned) - set(found.pruned.places):
            self._prune(found)

    def action_ask(self) -> None:
        """Have the question written, and answer it."""
        plan, vectors = self.asked, self._directions()
        chosen = next((name for name, vector in vectors.items() if vector is plan.direction), NONE)
        ignored = str(plan.ignored) if plan.ignored >= 0 else ""
        fields = [
            Field("prompt", "prompt", plan.prompt, "raw text; its next token is explained", filled),
            Field("target", "target", plan.target, "with its blank, id:17; | between; empty: likeliest"),
            Field("minus", "less", plan.minus, "another token: the difference is explained"),
            Field("direction", "direction", chosen, options=(NONE, *vectors)),
            Field("transcoders", "transcoders", plan.transcoders, "a folder or a set of yours; empty: the bundled one"),
            Field("features", "features", str(plan.features), "that get a node, at most", whole(1, 1_000_000)),
            Field("ignored", "ignored", ignored, "at so many first tokens none; empty: special ones", _few),
        ]

        def take(values: dict[str, str] | None) -> None:
            if values is not None:
                self.plan = replace(
                    self.plan,
                    prompt=values["prompt"],
                    target=values["target"],
                    minus=values["minus"],
                    transcoders=values["transcoders"].strip(),
                    features=int(values["features"]),
                    ignored=int(values["ignored"]) if values["ignored"].strip() else -1,
                    direction=vectors.get(values["direction"]),
                )
                self.make()

        self.app.push_screen(FormScreen("Explain the next token", fields), take)

    def _directions(self) -> dict[str, SteeringVector]:
        """What a graph can be of besides tokens: the vectors of the bench that are as wide as the stream."""
        model, known = self.session.model, self.asked.direction
        wide = [row.vector for row in self.session.steers if model and row.vector.d_model == model.d_model]
        if known is not None and all(vector is not known for vector in wide):
            wide.append(known)
        return {f"{at} {one_line(vector.name, 40)}": vector for at, vector in enumerate(wide, 1)}

    # -- showing -----------------------------------------------------------------------------------------

    def refresh_graph(self) -> None:
        """Say what shows, or how there comes to be something."""
        if self.found is None:
            self.note = ""
            self.map.empty = self._empty()
            if not self.map.blank:
                self.map.show(None)
        else:
            kept = f"{self.found.plan.nodes:.0%} of influence"
            before = f"as of before: {self.lens.key_text('graph.make')} makes it anew"
            self.note = before if self.stale else " · ".join(part for part in (self._state, kept) if part)
        layout = self.layout_of
        self._legend.update("" if layout is None else legend_of(layout, self.map.mode, self._legend.size.width))
        self.map.set_class(self.stale, "-before")
        self.map.refresh()
        self.post_message(self.Turned())

    def _empty(self) -> str:
        key = self.lens.key_text
        if self.session.model is None:
            return self.lens.without_model()
        if self._state and self._state != "stopped":
            return self._state
        does = f"{key('graph.make')} makes the graph of what led to the next token; {key('graph.ask')} asks for another"
        return f"{'Stopped. ' if self._state else ''}{does}, {key('graph.open')} opens one from a file."

    def on_resize(self) -> None:
        """The legend is as long as there is room."""
        self.call_after_refresh(self.refresh_graph)

    def question(self, width: int) -> list[Content]:
        """What is asked, and how much shows."""
        return graph_question(self.asked, self.found, width)

    def lines(self, width: int) -> tuple[list[Content], int]:
        """What is known of the node under the cursor, and the line to be in sight: that of its edge, or of a check."""
        layout = self.layout_of
        if layout is None or self.map.blank:
            return [], 0
        lines, edge, check = node_lines(layout, NodeView(self.map.node, self.edge, self.checks), width)
        return lines, check if self._measured else edge

    def on_graph_map_moved(self) -> None:
        """Another node: its strongest edge is chosen."""
        self.edge, self._measured = 0, False
        self.post_message(self.Turned())

    # -- going through it --------------------------------------------------------------------------------

    def action_edge(self, step: int) -> None:
        """The next edge of the node, or the one before."""
        if found := self.edges_here:
            self.edge, self._measured = (self.edge + step) % len(found), False
            self.post_message(self.Turned())

    def _follow(self) -> None:
        if found := self.edges_here:
            self.map.node = found[self.edge].other

    def action_next(self, step: int) -> None:
        """The node that comes next in influence, or the one before."""
        if places := self._places():
            self._go_to(self._search.step(places, self.map.node, step))

    def _places(self) -> dict[int, str]:
        """Every node by influence, with what it is found by: its words, its place, its id."""
        layout = self.layout_of
        if layout is None or self.map.blank:
            return {}
        graph = layout.graph
        nodes = [(at, graph.nodes[at]) for at in layout.order]
        return {at: f"{node_words(node)} {node_place(graph, node)} {node.id}" for at, node in nodes}

    def _go_to(self, node: int) -> None:
        self.map.node = node

    def action_find(self) -> None:
        """Ask for words and go to the node of most influence that has them; n and N go through them."""
        if self._places():
            self._search.ask(self.lens, self._places, self._go_to)
        else:
            self.lens.say(f"There is no graph yet: {self.lens.key_text('graph.make')} makes it.")

    def action_dial(self, step: int) -> None:
        """Prune less, or more."""
        found = self.found
        if found is None:
            self.lens.say(f"No graph yet: {self.lens.key_text('graph.make')} makes one.")
            return
        steps = (*STEPS, 1.0) if found.file else STEPS
        now = min(range(len(steps)), key=lambda at: abs(steps[at] - self.plan.nodes))
        share = steps[max(0, min(now + step, len(steps) - 1))]
        if share == self.plan.nodes:
            self.lens.say(f"{share:.0%} of influence is as far as it goes.")
            return
        self.plan = replace(self.plan, nodes=share)
        self._prune(found)

    def _prune(self, found: GraphFound) -> None:
        if found.part:  # what pruning left out was not kept
            self._submit(MakeGraph(replace(found.plan, nodes=self.plan.nodes), found.kept), "graph")
            return
        self._submit(PruneGraph(found, replace(found.plan, nodes=self.plan.nodes)), "prune")

    def action_pin(self) -> None:
        """Pin the node, or let it go."""
        found, node = self.found, self.chosen
        if found is None or node is None:
            return
        pinned = found.whole.pinned
        pinned = tuple(name for name in pinned if name != node.id) if node.id in pinned else (*pinned, node.id)
        self._keep(_joined(found, pinned, found.whole.supernodes))

    def _keep(self, found: GraphFound) -> None:
        """The same graph with other pins or groups."""
        layout = self.layout_of
        assert layout is not None
        edge = self.edge
        self.found = found
        self.kept = [found if _same(each, found) else each for each in self.kept]
        if found.kept:
            self._submit(KeepGraph(found), "keep")
        self.map.show(replace(layout, graph=found.pruned), self.map.node)
        self.call_after_refresh(partial(self._edge_again, edge))

    def _edge_again(self, edge: int) -> None:
        self.edge = edge
        self.post_message(self.Turned())

    def action_group(self) -> None:
        """Name the pinned nodes as a group."""
        found = self.found
        if found is None or not found.whole.pinned:
            self.lens.say(f"No node is pinned: {self.lens.key_text('graph.pin')} pins the one under the cursor.")
            return

        def take(values: dict[str, str] | None) -> None:
            if values is None or self.found is None:
                return
            name = values["name"].strip()
            group = Supernode(name, self.found.whole.pinned)
            others = tuple(each for each in self.found.whole.supernodes if each.name != name)
            self._keep(_joined(self.found, (), (*others, group)))
            self.lens.say(f"{one_line(name, 60)} is {many(len(group.nodes), 'node')} now.")

        fields = [Field("name", "name", "", "such as: says a place", filled)]
        self.app.push_screen(FormScreen("Group the pinned nodes", fields), take)

    def ungroup(self, name: str) -> None:
        """Take a group apart."""
        if self.found is not None:
            groups = tuple(group for group in self.found.whole.supernodes if group.name != name)
            self._keep(_joined(self.found, self.found.whole.pinned, groups))

    def action_check(self) -> None:
        """Remove the source of the chosen edge, and measure what that does to its target."""
        found, node, listed = self.found, self.chosen, self.edges_here
        if found is None or node is None or not listed:
            self.lens.say("There is no edge to check.")
            return
        other = found.pruned.nodes[listed[self.edge].other]
        source, target = (other, node) if listed[self.edge].inward else (node, other)
        self._check(found, source, (target.id,))

    def action_check_node(self) -> None:
        """Remove the node, and measure what that does to those it acts on."""
        found, node = self.found, self.chosen
        if found is None or node is None:
            self.lens.say("There is no node to check.")
            return
        graph = found.pruned
        strongest = [graph.nodes[other].id for other, _ in graph.out_of(self.map.node, CHECKED)]
        first = next((each.id for each in graph.nodes if each.kind == "logit"), "")
        self._check(found, node, tuple(dict.fromkeys((*strongest, first))))

    def _check(self, found: GraphFound, source: GraphNode, targets: tuple[str, ...]) -> None:
        if source.kind == "logit":
            self.lens.say("A logit acts on nothing: check an edge into it, or another node.")
            return
        self._submit(CheckNode(found, source.id, targets), "check")

    # -- taking it elsewhere -----------------------------------------------------------------------------

    def action_steer(self) -> None:
        """Put what the node adds on the bench, at its length on this prompt."""
        found, node = self.found, self.chosen
        if found is None or node is None:
            self.lens.say("There is no node to take a direction from.")
            return
        length = node.kind != "logit"

        def take(event: Event) -> None:
            if isinstance(event, VectorMade):
                self.lens.put_on_bench(event, event.vector.name, scale=event.vector.norm if length else None)

        name = one_line(f"L{node.layer} #{node.feature}" if node.kind == "feature" else node_words(node), 60)
        self.lens.submit(VectorFromNode(found, node.id, name), "send", take)

    def action_feature(self) -> None:
        """Open the feature's page."""
        found, node = self.found, self.chosen
        if node is None or found is None or node.kind != "feature":
            self.lens.say("Only a feature has a page: go to one.")
            return
        path = found.saes.get(node.layer)
        if path is None:
            self.lens.say("Its transcoders cannot be opened one by one, so that there is no page.")
            return
        open_feature(self.lens, path, node.feature)

    def action_export(self) -> None:
        """Ask where the graph is written, and write it."""
        found = self.found
        if found is None:
            self.lens.say("There is no graph to save.")
            return
        graph = found.pruned
        place = str(paths.exports_folder() / f"{one_line(graph.slug, 60).replace('/', '-') or 'graph'}.json")

        def take(values: dict[str, str] | None) -> None:
            if values is not None:
                self._submit(WriteGraph(graph, values["file"].strip()), "write")

        note = f"{many(len(graph.nodes), 'node')}, {graph.n_edges:,} edges; Neuronpedia and circuit-tracer read it."
        self.app.push_screen(FormScreen("Save the graph", [Field("file", "file", place, check=filled)], note), take)

    def action_open(self) -> None:
        """Ask for a file, and show its graph."""

        def take(values: dict[str, str] | None) -> None:
            if values is not None:
                self._submit(ReadGraph(values["file"].strip()), "graph")

        fields = [Field("file", "file", "", "a graph's JSON: of this program, Neuronpedia, circuit-tracer", filled)]
        self.app.push_screen(FormScreen("Open a graph", fields), take)

    def action_graphs(self) -> None:
        """Go back to a graph or map that was made before."""
        self.post_message(self.HistoryWanted())

    def reopen(self, found: GraphFound, changed: str) -> None:
        """Show a graph that was made before; ``changed`` says what is no longer as it was."""
        self.plan, self._state = found.plan, changed
        self._show(found)

    def action_copy(self) -> None:
        """Copy what is said of the node, under what was asked."""
        lines, _ = self.lines(80)
        if not lines:
            self.lens.say("There is no node to copy.")
            return
        asked = [line.plain.rstrip() for line in self.question(400)]
        self.lens.copy("\n".join([*asked, "", *(line.plain.rstrip() for line in lines)]), "the node")

    def action_copy_command(self) -> None:
        """Copy the command that gives the same graph."""
        found, model = self.found, self.session.model
        if found is None:
            self.lens.say(f"No graph yet: {self.lens.key_text('graph.make')} makes one.")
            return
        name = self.lens.opening.model or (model.name if model is not None else "")
        node, saes = "" if self.chosen is None else self.chosen.id, {sae.id: sae.path for sae in self.session.saes}
        self.lens.copy(graph_command(found, name, node, saes, keep_vector), "the command")

    def offers(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """Groups and pinned nodes, by name."""
        found = self.found
        if found is None:
            return
        graph = found.pruned
        for group in graph.supernodes:
            name = one_line(group.name, 40)
            yield f"Go to the group {name}", partial(self._go, group.nodes[0])
            yield f"Take the group {name} apart", partial(self.ungroup, group.name)
        for name in graph.pinned:
            node = graph.nodes[graph.places[name]]
            yield f"Go to {node_place(graph, node)} {one_line(node_words(node), 40)}", partial(self._go, name)

    def _go(self, name: str) -> None:
        if self.found is not None and name in self.found.pruned.places:
            self.map.node = self.found.pruned.places[name]


_few = optional(whole(0, 1_000_000))


def _same(one: GraphFound, other: GraphFound) -> bool:
    """Whether two are one graph, pruned or read from the disk."""
    return one.whole.nodes is other.whole.nodes or (one.kept != 0 and one.kept == other.kept)


def _joined(found: GraphFound, pinned: tuple[str, ...], groups: tuple[Supernode, ...]) -> GraphFound:
    """The graph with these nodes pinned and grouped, in all of it and in what shows."""

    def of(graph: AttributionGraph) -> AttributionGraph:
        known = graph.places
        kept = tuple(Supernode(each.name, tuple(name for name in each.nodes if name in known)) for each in groups)
        return replace(
            graph,
            pinned=tuple(name for name in pinned if name in known),
            supernodes=tuple(each for each in kept if each.nodes),
        )

    return replace(found, whole=of(found.whole), pruned=of(found.pruned))
