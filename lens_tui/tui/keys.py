"""Every key of the app, as data. A key means one thing on every screen.

``id`` is what a user's ``[keys]`` table names; its first part is the *scope*:
``app`` works everywhere, ``move`` in every list, token view and grid, the rest
on the screen of that name or, of ``PANES``, in that pane. Lower case acts, the capital is its stronger or
reverse twin. Never bound: ctrl+h/i/j/m/[ (they are backspace, tab, newline,
enter and escape), ctrl+a/b/s (taken by multiplexers and flow control), alt and
function keys.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache

from lens_tui.records.sanitise import one_line

SCREENS: tuple[tuple[str, str], ...] = (
    ("load", "Load"),
    ("steer", "Steer"),
    ("generate", "Generate"),
    ("features", "Features"),
    ("lens", "Lens"),
    ("causes", "Causes"),
)
"""The screens in their order: mode name and title. Each is opened by the digit of its place, from 1 on."""

PANES: tuple[str, ...] = ("dose", "set", "graph")
"""Scopes of one pane of a screen: while it has the focus, its keys win over the screen's."""

GROUPS = ("Everywhere", "Move", "Load", "Steer", "Generate", "Features", "Lens", "Causes")


@dataclass(frozen=True, slots=True)
class Key:
    """One key: what it is called in settings, which keys it has at first, what it does and says.

    ``keys`` is comma separated. ``footer`` is the word shown in the footer,
    empty to leave it out; neighbours with the same word share it (``+ - scale``).
    """

    id: str
    keys: str
    action: str
    description: str
    footer: str = ""

    @property
    def scope(self) -> str:
        """Where the key works: ``app``, ``move`` or a screen's name."""
        return self.id.partition(".")[0]

    @property
    def group(self) -> str:
        """The heading it is under in the key table."""
        return {"app": "Everywhere", "dose": "Steer", "set": "Generate", "graph": "Causes"}.get(
            self.scope, self.scope.capitalize()
        )


_APP = (
    Key("app.load", "1", "show('load')", "go to Load"),
    Key("app.steer", "2", "show('steer')", "go to Steer"),
    Key("app.generate", "3", "show('generate')", "go to Generate"),
    Key("app.features", "4", "show('features')", "go to Features"),
    Key("app.lens", "5", "show('lens')", "go to Lens"),
    Key("app.causes", "6", "show('causes')", "go to Causes"),
    Key("app.run", "r", "run", "run the comparison", "run"),
    Key("app.stop", "x", "stop", "stop what is running (at most one more token)"),
    Key("app.undo", "u", "undo", "undo the last steering edit, or turn of a chat"),
    Key("app.redo", "U", "redo", "redo it"),
    Key("app.next_pane", "tab", "focus_next", "next pane"),
    Key("app.previous_pane", "shift+tab", "focus_previous", "previous pane"),
    Key("app.jump", "f", "jump", "letters on panes and rows: type one to go there"),
    Key("app.tint", "t", "tint", "how values show: tint, bars, digits, off"),
    Key("app.theme", "T", "theme", "choose a theme, with a live preview"),
    Key("app.tour", "ctrl+t", "tour", "the tour of five steps: begin, leave, go on"),
    Key("app.maximize", "m", "maximize", "give the pane the whole screen, or give it back"),
    Key("app.help", "?", "keys", "these keys, and what every number on the screen is", "keys"),
    Key("app.commands", ":,ctrl+p", "command_palette", "command palette", "commands"),
    Key("app.interrupt", "ctrl+c", "interrupt", "copy a selection; twice: quit"),
    Key("app.quit_idle", "q", "quit_idle", "quit, when nothing runs"),
    Key("app.suspend", "ctrl+z", "suspend", "back to the shell; its `fg` comes back here"),
    Key("app.quit", "ctrl+q", "quit", "quit at once"),
)

_MOVE = (
    Key("move.down", "j,down", "cursor_down", "down"),
    Key("move.up", "k,up", "cursor_up", "up"),
    Key("move.left", "h,left", "cursor_left", "left"),
    Key("move.right", "l,right", "cursor_right", "right"),
    Key("move.first", "g,home", "first", "first"),
    Key("move.last", "G,end", "last", "last"),
    Key("move.page_down", "ctrl+d,pagedown", "page_down", "half a page down"),
    Key("move.page_up", "ctrl+u,pageup", "page_up", "half a page up"),
)

_LOAD = (
    Key("load.open", "enter", "open", "load the model, or the SAE, under the cursor", "load"),
    Key("load.filter", "/", "filter", "filter the list", "filter"),
    Key("load.next", "n", "match(1)", "the next model that the filter finds"),
    Key("load.previous", "N", "match(-1)", "the one before"),
    Key("load.add", "a", "add", "type a folder or a Hugging Face id", "add"),
    Key("load.sort", "o", "sort", "change the order of the list", "sort"),
    Key("load.remove", "d", "remove", "take the model or SAE off this disk (asks)", "remove"),
    Key("load.rescan", "R", "rescan", "look for models again"),
    Key("load.work", "I", "work", "index a text, train an SAE or transcoders, or go on with it", "index"),
    Key("load.copy", "y", "copy", "copy the path of the row"),
    Key("load.unload", "D", "unload", "free the loaded model", "unload"),
)

_STEER = (
    Key("steer.add", "a", "add", "add a vector: feature, texts, token, rows, random, file, probe", "add"),
    Key("steer.dose", "v", "dose", "measure the row over scales: the dose-response; again: close it", "dose"),
    Key("steer.dose_form", "V", "dose_form", "choose the scales and measure the row"),
    Key("steer.find", "F", "find", "find the scale that reaches a target", "find"),
    Key("steer.toggle", "space", "switch", "switch the row on or off", "on/off"),
    Key("steer.scale_up", "plus", "scale(1)", "scale up one step", "scale"),
    Key("steer.scale_down", "minus", "scale(-1)", "scale down one step", "scale"),
    Key("steer.scale_up5", "equals_sign", "scale(5)", "scale up five steps"),
    Key("steer.scale_down5", "underscore", "scale(-5)", "scale down five steps"),
    Key("steer.zero", "0", "zero", "scale to zero"),
    Key("steer.flip", "b", "flip", "turn the scale's sign"),
    Key("steer.layer_down", "less_than_sign", "layer(-1)", "one layer earlier", "layer"),
    Key("steer.layer_up", "greater_than_sign", "layer(1)", "one layer later", "layer"),
    Key("steer.arm_down", "left_square_bracket", "arm(-1)", "put the row in the arm before", "arm"),
    Key("steer.arm_up", "right_square_bracket", "arm(1)", "put the row in the arm after", "arm"),
    Key("steer.edit", "enter,e", "edit", "type scale, layer, name; choose mode and positions", "edit"),
    Key("steer.mode", "M", "mode", "next mode: add, norm-match, project out, set, at most, at least"),
    Key("steer.positions", "P", "positions", "next positions: all, prompt, ..., all but BOS; in a chat by role"),
    Key("steer.gate", "K", "gate", "gate: the row acts only where a probe, vector or feature reads enough"),
    Key("steer.copy", "c", "copy", "copy the row into the next free arm"),
    Key("steer.row", "/", "row", "go to a row by a part of its name"),
    Key("steer.next", "n", "match(1)", "the next row whose name has what was typed"),
    Key("steer.previous", "N", "match(-1)", "the one before"),
    Key("steer.copy_text", "y", "copy_text", "copy what is known of the direction"),
    Key("steer.save", "w", "save", "save the vector to a file"),
    Key("steer.delete", "d", "delete", "delete the row (u brings it back)", "delete"),
)

_GENERATE = (
    Key("generate.prompt", "i,p", "prompt", "write the prompt (enter runs, shift+enter is a new line)", "prompt"),
    Key("generate.scale_up", "plus", "scale(1)", "scale of the lane up one step, live while it is written", "scale"),
    Key("generate.scale_down", "minus", "scale(-1)", "scale of the lane down one step", "scale"),
    Key("generate.scale_up5", "equals_sign", "scale(5)", "scale up five steps"),
    Key("generate.scale_down5", "underscore", "scale(-5)", "scale down five steps"),
    Key("generate.zero", "0", "zero", "scale of the lane to zero"),
    Key("generate.lane_left", "left_square_bracket", "lane(-1)", "the lane before", "lane"),
    Key("generate.lane_right", "right_square_bracket", "lane(1)", "the lane after", "lane"),
    Key("generate.add", "a", "add_arm", "add an arm like this one, at a higher scale", "add"),
    Key("generate.delete", "d", "delete_arm", "take this arm off the bench (u brings it back)"),
    Key("generate.flip", "b", "flip", "baseline and steered text in the same place", "flip"),
    Key("generate.diff", "D", "measure('diff')", "shade what is not in the baseline", "diff"),
    Key("generate.measure", "v", "measure", "what the shade says: surprise, KL, difference, each monitor", "shade"),
    Key("generate.features", "F", "features", "list the features of what the arms write", "features"),
    Key("generate.feature_down", "left_curly_bracket", "feature(-1)", "shade by the feature listed before"),
    Key("generate.feature_up", "right_curly_bracket", "feature(1)", "shade by the next feature listed"),
    Key("generate.find", "/", "find", "shade by a feature, by its number"),
    Key("generate.dense", "z", "dense", "leave dense features out of the lists, or show them"),
    Key("generate.sampling", "comma", "sampling", "seed, temperature, length and the rest", "sampling"),
    Key("generate.set", "S", "prompt_set", "a set of prompts under every arm; scales and seeds swept", "set"),
    Key(
        "generate.next",
        "n",
        "page(1)",
        "the set's next prompt; without a set, the next token where the shaded feature acts",
    ),
    Key("generate.previous", "N", "page(-1)", "of the one before"),
    Key("generate.history", "H", "history", "the runs of this session and those kept", "history"),
    Key("generate.blind", "B", "blind", "judge the arms blind, also over a set: shuffled, unnamed, with a tally", ""),
    Key("generate.go_on", "enter", "go_on", "go on with this lane's answer; u goes back to before it"),
    Key("generate.chat", "C", "chat", "prompts are turns of a chat, or go in as they are"),
    Key("generate.talk", "I", "talk", "the chat's system prompt; begin a new conversation"),
    Key("generate.template", "c", "template", "the prompt as the model reads it: the template's tokens marked"),
    Key("generate.thinking", "O", "thinking", "open what was thought, or fold it into a line"),
    Key("generate.positions", "P", "positions", "where this lane is steered: all, prompt, ...; in a chat by role"),
    Key("generate.monitor", "A", "monitor", "monitors: probes, vectors and features that read every token as it comes"),
    Key("generate.gate", "K", "gate", "gate: this lane is steered only where a probe, vector or feature reads enough"),
    Key("generate.copy", "y", "copy", "copy the text of this lane"),
    Key("generate.copy_command", "Y", "copy_command", "copy the command that makes this run"),
    Key("generate.export", "e", "export", "export the run: JSON, Markdown, CSV, SVG, Python (asks where)"),
)

_FEATURES = (
    Key("features.steer", "s", "steer", "send the feature's direction to the vector bench", "steer"),
    Key("features.pin", "enter", "pin", "keep this feature while the cursor moves; go to a neighbour", "pin"),
    Key("features.find", "/", "find", "find features by words, or one by its number", "find"),
    Key("features.text_left", "left_square_bracket", "source(-1)", "the text before: prompt or an arm's", "text"),
    Key("features.text_right", "right_square_bracket", "source(1)", "the text after", "text"),
    Key("features.sae_down", "less_than_sign", "sae(-1)", "the SAE before", "SAE"),
    Key("features.sae_up", "greater_than_sign", "sae(1)", "the SAE after", "SAE"),
    Key("features.section", "v", "section(1)", "what the page lists: top, sample, near, together", "page"),
    Key("features.section_back", "V", "section(-1)", "the list before"),
    Key("features.feature_down", "left_curly_bracket", "feature(-1)", "the feature before, by number"),
    Key("features.feature_up", "right_curly_bracket", "feature(1)", "the feature after"),
    Key("features.mark", "space", "mark", "mark the feature, or take its mark away", "mark"),
    Key("features.dense", "z", "dense", "leave dense features out of the list, or show them"),
    Key("features.contrast", "D", "contrast", "find the features that tell two sets of texts apart", "contrast"),
    Key("features.keep", "w", "keep", "keep the marked features as a list, by name"),
    Key("features.work", "I", "work", "index a text, train an SAE or transcoders, or go on with it"),
    Key("features.lists", "W", "lists", "open, delete or export a kept list", "lists"),
    Key("features.scale_up", "plus", "scale(1)", "scale of this feature on the bench up one step"),
    Key("features.scale_down", "minus", "scale(-1)", "scale of this feature on the bench down one step"),
    Key("features.label", "L", "label", "write your label of the feature", "label"),
    Key("features.next", "n", "active(1)", "the next token where the feature is active"),
    Key("features.previous", "N", "active(-1)", "the previous one"),
    Key("features.copy", "y", "copy", "copy what is known of the feature"),
    Key("features.copy_command", "Y", "copy_command", "copy the command that shows these features"),
)

_LENS = (
    Key("lens.follow", "enter", "follow", "follow the cell's best token through the layers, or let it go", "follow"),
    Key("lens.find", "/", "find", "type a token to follow", "find"),
    Key("lens.next", "n", "match(1)", "the next cell that predicts the followed token first"),
    Key("lens.previous", "N", "match(-1)", "the one before"),
    Key("lens.steer", "s", "steer", "send the followed token, or the cell's best, to the bench at this layer", "steer"),
    Key("lens.flip", "b", "flip", "the next arm: baseline and steered grid in the same place", "flip"),
    Key("lens.view", "V", "view", "next view: logit lens, what adds to the logit, attention heads", "view"),
    Key("lens.through", "M", "through", "logit lens or Jacobian lens in the grid"),
    Key("lens.measure", "v", "measure", "what the shade says: probability, followed token, KL", "shade"),
    Key("lens.token_left", "left_curly_bracket", "go(0, -1)", "the token before, in every view", "token"),
    Key("lens.token_right", "right_curly_bracket", "go(0, 1)", "the next token", "token"),
    Key("lens.text_left", "left_square_bracket", "source(-1)", "the text before: prompt or an arm's", "text"),
    Key("lens.text_right", "right_square_bracket", "source(1)", "the text after", "text"),
    Key("lens.layer_down", "less_than_sign", "layer(-1)", "one layer earlier", "layer"),
    Key("lens.layer_up", "greater_than_sign", "layer(1)", "one layer later", "layer"),
    Key("lens.scale_up", "plus", "scale(1)", "scale of the arm that is read up one step, and read again"),
    Key("lens.scale_down", "minus", "scale(-1)", "scale of the arm that is read down one step"),
    Key("lens.copy", "y", "copy", "copy what the cell says"),
)

_CAUSES = (
    Key("causes.patch", "enter", "patch", "compute the map: patch, or trace", "patch"),
    Key("causes.ask", "i", "ask", "write the prompts; choose site, direction and metric", "ask"),
    Key("causes.view", "V", "view", "next map: patching by token, by head, causal tracing, attribution graph", "map"),
    Key("causes.shade", "v", "shade", "what figures and shade say: effect, controls, estimate, value", "shade"),
    Key("causes.site_left", "left_square_bracket", "site(-1)", "the site before", "site"),
    Key("causes.site_right", "right_square_bracket", "site(1)", "the next site: resid_pre, attn_out, ...", "site"),
    Key("causes.metric", "M", "metric", "the next metric", "metric"),
    Key("causes.flip", "b", "flip", "the other direction: clean into corrupted, or corrupted into clean", "flip"),
    Key("causes.find", "/", "find", "find cells by layer, head or token"),
    Key("causes.next", "n", "strongest(1)", "the cell that comes next in strength, of those found"),
    Key("causes.previous", "N", "strongest(-1)", "the one before"),
    Key("causes.steer", "s", "steer", "send the cell to the bench: a head taken away, or what a patch adds", "steer"),
    Key("causes.maps", "H", "maps", "maps and graphs made before, in other sessions too"),
    Key("causes.copy", "y", "copy", "copy what the cell says"),
    Key("causes.copy_command", "Y", "copy_command", "copy the command that gives the same numbers"),
    Key("causes.export", "e", "export", "export the map: JSON, CSV (asks where)"),
)

_GRAPH = (
    Key("graph.make", "enter", "make", "make the graph; then: go to the other end of the chosen edge", "go"),
    Key("graph.ask", "i", "ask", "write the prompt; choose targets, transcoders, features", "ask"),
    Key("graph.edge_up", "left_square_bracket", "edge(-1)", "the edge before, in the list beside", "edge"),
    Key("graph.edge_down", "right_square_bracket", "edge(1)", "the next edge", "edge"),
    Key("graph.dial_up", "plus", "dial(1)", "more nodes: pruning keeps a larger share of influence", "prune"),
    Key("graph.dial_down", "minus", "dial(-1)", "fewer nodes", "prune"),
    Key("graph.check", "c", "check", "check the chosen edge: remove its source and measure the target", "check"),
    Key("graph.check_node", "C", "check_node", "check the node: remove it and measure what it acts on"),
    Key("graph.pin", "space", "pin", "pin the node, or let it go: pruning keeps what is pinned", "pin"),
    Key("graph.group", "w", "group", "name the pinned nodes as a group"),
    Key("graph.steer", "s", "steer", "send what the node adds to the bench", "steer"),
    Key("graph.feature", "F", "feature", "open the feature's page on Features", "page"),
    Key("graph.find", "/", "find", "find nodes by their words, layer or token"),
    Key("graph.next", "n", "next(1)", "the node that comes next in influence, of those found"),
    Key("graph.previous", "N", "next(-1)", "the one before"),
    Key("graph.graphs", "H", "graphs", "graphs and maps made before, in other sessions too"),
    Key("graph.open", "o", "open", "open a graph from a file: JSON of this program, Neuronpedia or circuit-tracer"),
    Key("graph.export", "e", "export", "save the graph as they read it (asks where)"),
    Key("graph.copy", "y", "copy", "copy what is said of the node"),
    Key("graph.copy_command", "Y", "copy_command", "copy the command that gives the same graph"),
)

_DOSE = (Key("dose.take", "enter", "take", "give the row the scale under the cursor (u takes it back)", "take"),)

_SET = (
    Key("set.next", "n", "page(1)", "the next prompt of the set, in table and lanes", "page"),
    Key("set.previous", "p,N", "page(-1)", "the prompt before", "page"),
    Key("set.column", "v", "column(1)", "what the table shows: KL, perplexity, distinct-2, read-back, moved", "column"),
    Key("set.column_back", "V", "column(-1)", "the column before"),
)

KEYS: tuple[Key, ...] = (
    *_APP,
    *_MOVE,
    *_LOAD,
    *_DOSE,
    *_STEER,
    *_SET,
    *_GENERATE,
    *_FEATURES,
    *_LENS,
    *_CAUSES,
    *_GRAPH,
)


@cache
def by_id() -> dict[str, Key]:
    """Every key by its id."""
    return {key.id: key for key in KEYS}


def in_scope(scope: str) -> tuple[Key, ...]:
    """The keys of one scope, in the table's order."""
    return tuple(key for key in KEYS if key.scope == scope)


MUST_STAY = ("app.quit", "app.help", "app.commands")
_NAMES = "escape enter return tab space backspace delete insert home end pageup pagedown up down left right"
NAMED = frozenset([*_NAMES.split(), *(f"f{number}" for number in range(1, 25))])
_UNSENDABLE = {
    "ctrl+h": "backspace",
    "ctrl+i": "tab",
    "ctrl+j": "newline",
    "ctrl+m": "enter",
    "ctrl+left_square_bracket": "escape",
}
_REPLACED = {
    "solidus": "slash",
    "reverse_solidus": "backslash",
    "commercial_at": "at",
    "hyphen_minus": "minus",
    "plus_sign": "plus",
    "low_line": "underscore",
}


def normal(key: str) -> str:
    """The long name of a key as Textual knows it: ``?`` is ``question_mark``, ``+`` is ``plus``."""
    key = key if len(key) == 1 else key.strip()
    if len(key) != 1 or key.isalnum():
        return key
    name = unicodedata.name(key, key).lower().replace("-", "_").replace(" ", "_")
    return _REPLACED.get(name, name)


def split(keys: str) -> list[str]:
    """The keys of a comma-separated list in their long names; a lone comma is the comma key."""
    if keys.strip() == ",":
        return ["comma"]
    return [normal(part.strip()) for part in keys.split(",") if part.strip()]


def key_problem(key: str) -> str:
    """What is wrong with one key name, or an empty string."""
    if key in _UNSENDABLE:
        return f"terminals send {key} as {_UNSENDABLE[key]}"
    *modifiers, last = key.split("+")
    if any(modifier not in ("ctrl", "shift", "alt", "super") for modifier in modifiers):
        return f"{key!r} is not a key name"
    if modifiers == ["shift"] and len(last) == 1:
        return f"write {key!r} as the character it gives, for example {last.upper()!r}"
    if last in NAMED or (len(last) == 1 and last.isprintable()) or last in _character_names():
        return ""
    return f"{key!r} is not a key name"


@cache
def _character_names() -> frozenset[str]:
    """The long names of every character up to the end of extended Latin."""
    return frozenset(normal(chr(code)) for code in range(0x21, 0x250) if chr(code).isprintable())


def check_keymap(user: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """What of a user's map can be used (id to keys), and a sentence for each part that cannot.

    ``App.set_keymap`` of Textual applies what is good. It checks nothing itself: an unknown id or key is passed over,
    and of two actions on one key one is lost without a word.
    Refused: an id that does not exist, a key that is not one or that terminals
    cannot send, a key that would do two things in one place, and leaving
    quitting, help or the palette without a key.
    """
    good: dict[str, str] = {}
    problems: list[str] = []
    for name, value in user.items():
        problem = _entry_problem(name, value)
        if problem:
            problems.append(one_line(problem, 300))
        else:
            good[name] = ",".join(split(value))
    while found := clashes(good):
        first, second, key = found[0]
        loser = second if second in good else first
        kept = first if loser == second else second
        problems.append(f"keys.{loser}: {key!r} already belongs to {kept}; the entry is left out.")
        del good[loser]
    return good, problems


def _entry_problem(name: str, value: object) -> str:
    if name not in by_id():
        close = _closest(name[:80])
        return f"keys.{name}: there is no such key id{f'; did you mean {close}' if close else ''}."
    if not isinstance(value, str):
        return f'keys.{name}: write the keys as one text, for example "j,down".'
    parts = split(value)
    if not parts:
        if name in MUST_STAY:
            return f"keys.{name}: this must keep a key, or the app could not be left or explained."
        return ""
    for part in parts:
        if reason := key_problem(part):
            return f"keys.{name}: {reason}."
    return ""


def _closest(name: str) -> str:

    return next(iter(get_close_matches(name, by_id(), 1)), "")


def clashes(user: Mapping[str, str] | None = None) -> list[tuple[str, str, str]]:
    """Pairs of ids that share a key where both are live: ``(first id, second id, key)``.

    Live together are ``app``, ``move`` and one screen, or one pane, whose keys win over its screen's.
    """
    user = user or {}
    found: list[tuple[str, str, str]] = []
    for scope in (*(screen for screen, _title in SCREENS), *PANES):
        owners: dict[str, str] = {}
        for key in KEYS:
            if key.scope in ("app", "move", scope):
                _claim(key, user.get(key.id, key.keys), owners, found)
    return list(dict.fromkeys(found))


def _claim(key: Key, keys: str, owners: dict[str, str], found: list[tuple[str, str, str]]) -> None:
    for part in split(keys):
        other = owners.setdefault(part, key.id)
        if other != key.id:
            found.append((other, key.id, part))
