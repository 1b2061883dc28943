"""What is asked when a direction is made: the forms and the jobs they mean, which file, and which layer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from textual import work
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

from lens_tui.records import ModelInfo, Positions, SAEInfo
from lens_tui.records.interventions import POSITIONS, ROLES, BenchRow, mode_of, modes_of, positions_of, positions_text
from lens_tui.records.paths import expanded
from lens_tui.records.sanitise import one_line
from lens_tui.records.steering_vector import RankedLayer
from lens_tui.records.wording import many, texts_in
from lens_tui.tui.bench_text import read_sum
from lens_tui.tui.format import bar, figure, fit, fit_left
from lens_tui.tui.session import MAX_ARMS
from lens_tui.tui.widgets.row_list import RowList
from lens_tui.worker.jobs import (
    Job,
    RandomVector,
    VectorFromFeature,
    VectorFromFile,
    VectorFromPrompts,
    VectorFromToken,
    VectorFromVectors,
)

from .form import Check, Dialog, Field, filled, number, optional, whole

if TYPE_CHECKING:
    from lens_tui.demo import ReadyVector
    from lens_tui.records.vector_formats import VectorFile


LayerRow = TypeVar("LayerRow")


class LayerChoice(Dialog["int | None"], Generic[LayerRow]):
    """Dismisses with the place of the layer chosen in ``layers``, or ``None`` on escape.

    Args:
        title: What is asked.
        note: What the bars and the figures are.
        layers: The rows, in the order shown.
        first: The place of the one that the cursor begins at.
        takes: What enter does.
    """

    BINDINGS = [("escape,q", "cancel", "cancel"), ("enter", "choose", "choose")]
    DEFAULT_CSS = """
    LayerChoice RowList { height: auto; max-height: 14; }
    LayerChoice .note { color: $muted; margin-bottom: 1; }
    LayerChoice .heading { color: $muted; }
    """

    def __init__(self, title: str, note: str, layers: Sequence[LayerRow], *, first: int, takes: str) -> None:
        super().__init__()
        self._asked, self._note, self._layers, self._first, self._takes = title, note, tuple(layers), first, takes

    def compose(self) -> ComposeResult:
        """What the numbers are, the layers, the keys."""
        with Vertical(classes="dialog"):
            yield Static(Content(self._asked), classes="dialog-title")
            yield Static(Content(self._note), classes="note")
            yield Static(Content(self.heading()), classes="heading")
            yield RowList[LayerRow](self.draw, id="layers")
            keys = [("⏎", f" {self._takes}   "), ("esc", " back to what was typed")]
            yield Static(Content.assemble("\n", *(part for key, word in keys for part in ((key, "bold"), word))))

    def on_mount(self) -> None:
        """The cursor on the best."""
        rows = self.query_one(RowList)
        rows.styles.height = min(len(self._layers), 14, max(3, self.app.size.height - 15))
        rows.show(self._layers, self._first)
        rows.focus()

    @abstractmethod
    def heading(self) -> str:
        """What stands over the columns."""

    @abstractmethod
    def draw(self, row: LayerRow, width: int) -> list[Content]:
        """The line of a layer."""

    def on_row_list_chosen(self) -> None:
        """A click chooses."""
        self.action_choose()

    def action_choose(self) -> None:
        """The layer under the cursor."""
        self.dismiss(self.query_one(RowList).cursor)

    def action_cancel(self) -> None:
        """None of them."""
        self.dismiss(None)


Values = Mapping[str, str]
METHODS = {
    "mean difference": "mean_difference",
    "PCA of the differences": "pca_diff",
    "PCA around each pair's middle": "pca_center",
    "logistic regression": "logistic",
}
"""What the methods are called on the screen."""
OVER = {"all tokens but special ones": "all", "the last token": "last"}
TEXTS = {"as they are": True, "as chat turns": False}
KINDS = {"unembedding (raises its logit)": "unembedding", "embedding (what reading it adds)": "embedding"}
LENGTHS = {"each at length 1": True, "each at its own length": False}
ALL = "all"
BETWEEN = " | "
"""What separates several texts of one field."""


@dataclass(frozen=True, slots=True)
class Form:
    """A form to ask, and what its values mean. ``scale`` reads a scale for the row out of them, if they have one."""

    title: str
    fields: tuple[Field, ...]
    note: str
    job: Callable[[Values], Job]
    scale: Callable[[Values], float | None] = lambda values: None


def row_fields(row: BenchRow, last_layer: int | None) -> list[Field]:
    """What can be edited of a row, as it is now."""
    where = positions_text(row.positions) if row.positions else POSITIONS["all"]
    places = (*POSITIONS.values(), *ROLES.values())
    return [
        Field("scale", "scale", f"{row.scale:g}", check=number()),
        Field("mode", "mode", mode_of(row.mode).label, options=tuple(mode.label for mode in modes_of(row.vector))),
        Field("positions", "positions", where, options=places if where in places else (*places, where)),
        *([] if row.rest else [Field("layer", "layer", str(row.layer), check=whole(0, last_layer))]),
        Field("arm", "arm", str(row.arm), check=whole(1, MAX_ARMS)),
        Field("name", "name", row.vector.name, check=filled),
    ]


def edited(row: BenchRow, values: Values) -> BenchRow:
    """The row with the values of :func:`row_fields`; a scale that was not typed over follows the mode."""
    turned = row.turned_to({mode.label: mode.id for mode in modes_of(row.vector)}[values["mode"]])
    kinds: dict[str, str] = {words: name for name, words in [*POSITIONS.items(), *ROLES.items()]}
    kind = kinds.get(values["positions"])
    return replace(
        turned,
        vector=replace(row.vector, name=one_line(values["name"], 60)),
        scale=float(values["scale"]) if values["scale"] != f"{row.scale:g}" else turned.scale,
        positions=positions_or_all(kind) if kind is not None else row.positions,
        layer=int(values.get("layer", row.layer)),
        arm=int(values["arm"]),
    )


def positions_or_all(kind: str) -> Positions | None:
    """Positions as a row has them: ``None`` for all."""
    return None if kind == "all" else positions_of(kind)


def feature(sae: SAEInfo) -> Form:
    """From an SAE feature."""
    fields = (Field("feature", "feature", hint=f"0 to {sae.width - 1}", check=whole(0, sae.width - 1)),)
    return Form("From an SAE feature", fields, sae.name, lambda v: VectorFromFeature(sae.id, int(v["feature"])))


def pairs(model: ModelInfo) -> Form:
    """From texts that were typed."""
    fields = (
        Field("name", "name", hint="what the direction stands for", check=filled),
        Field("positive", "toward", hint="a text with it; several with | between", check=filled, between=BETWEEN),
        Field(
            "negative", "away from", hint="its pair without it; several with | between", check=filled, between=BETWEEN
        ),
        *_how(model),
    )

    def job(values: Values) -> Job:
        return _contrast(values, texts(values["positive"]), texts(values["negative"]))

    note = "First with first, second with second are pairs. The mean difference at one layer takes any two sets."
    return Form("From contrasting texts", fields, note, job)


def pairs_file(model: ModelInfo) -> Form:
    """From a file of pairs."""
    fields = (
        Field("path", "file", hint=".jsonl .json .tsv .txt", check=a_file),
        Field("name", "name", hint="empty: the file's name"),
        *_how(model),
    )

    def job(values: Values) -> Job:
        path = str(expanded(values["path"].strip()))
        named = {**values, "name": values["name"].strip() or Path(path).stem}
        return replace(_contrast(named, (), ()), path=path)

    note = "Two texts on each line, separated by a tab; or JSON with positive and negative."
    return Form("From a file of pairs", fields, note, job)


def _how(model: ModelInfo) -> tuple[Field, ...]:
    chat = (Field("texts", "texts", options=tuple(TEXTS)),) if model.has_chat_template else ()
    return (
        Field("method", "method", options=tuple(METHODS)),
        Field("layer", "layer", ALL, hint=f"0 to {model.n_layers - 1}, or all", check=_layer_or_all(model.n_layers)),
        Field("over", "tokens", options=tuple(OVER)),
        *chat,
    )


def _contrast(values: Values, positive: tuple[str, ...], negative: tuple[str, ...]) -> VectorFromPrompts:
    layer = values["layer"].strip()
    return VectorFromPrompts(
        one_line(values["name"].strip(), 60),
        positive,
        negative,
        None if layer == ALL else int(layer),
        OVER[values["over"]],
        METHODS[values["method"]],
        TEXTS[values["texts"]] if "texts" in values else True,
    )


def token(model: ModelInfo, row: BenchRow | None) -> Form:
    """From a token."""
    layer = row.layer if row else model.n_layers - 1
    fields = (
        Field("token", "token", hint="with its blank in front, or id:17", check=filled),
        Field("kind", "row of the", options=tuple(KINDS)),
        Field("layer", "layer", str(layer), check=whole(0, model.n_layers - 1)),
        Field("name", "name", hint="empty: the token"),
    )

    def job(values: Values) -> Job:
        name = one_line(values["name"].strip(), 60)
        return VectorFromToken(values["token"], int(values["layer"]), KINDS[values["kind"]], name)

    note = "Most words are tokens with a blank in front: type the blank too."
    return Form("From a token", fields, note, job)


def arithmetic(rows: Sequence[BenchRow]) -> Form:
    """From rows of the bench."""
    fields = (
        Field("sum", "rows", hint="1 + 0.5*2   ·   1 - 2   ·   1 without 2", check=_sum(len(rows))),
        Field("unit", "lengths", options=tuple(LENGTHS)),
        Field("name", "name", hint="empty: what is typed above"),
    )

    def job(values: Values) -> Job:
        found = read_sum(values["sum"], len(rows))
        assert found is not None  # the form has checked it
        terms, less = found
        vectors = tuple((factor, replace(rows[at].vector, layer=rows[at].layer)) for factor, at in terms)
        name = values["name"].strip() or name_of_sum(terms, less, [row.vector.name for row in rows])
        return VectorFromVectors(one_line(name, 60), vectors, less, LENGTHS[values["unit"]])

    listed = "\n".join(f"{at}  {fit(row.vector.name, 40)}  layer {row.layer}" for at, row in enumerate(rows[:9], 1))
    note = f"{listed}\n“1 without 2” is the part of 1 that is orthogonal to 2. All must be of one layer."
    return Form("From rows of the bench", fields, note, job)


def name_of_sum(terms: Sequence[tuple[float, int]], less: bool, names: Sequence[str]) -> str:
    """A sum in the rows' names: ``cookery - 0.5 scripture``, ``cookery without scripture``."""
    if less:
        first, *others = [names[at] for _, at in terms]
        return f"{first} without {', '.join(others)}"
    parts: list[str] = []
    for factor, at in terms:
        size = "" if abs(factor) == 1 else f"{abs(factor):g} "
        sign = ("-" if factor < 0 else "+") if parts else ("-" if factor < 0 else "")
        parts.append(f"{sign}{' ' if parts else ''}{size}{names[at]}")
    return " ".join(parts)


def random(model: ModelInfo, row: BenchRow | None) -> Form:
    """A random direction: layer and scale of the row it is to control."""
    layer = row.layer if row else model.n_layers // 2
    fields = (
        Field("layer", "layer", str(layer), check=whole(0, model.n_layers - 1)),
        Field("seed", "seed", "0", check=whole(0)),
        Field("scale", "scale", f"{row.scale:g}" if row else "", hint="empty: half of ‖h‖", check=optional(number())),
    )

    def job(values: Values) -> Job:
        return RandomVector(f"random {values['seed'].strip()}", int(values["layer"]), int(values["seed"]))

    note = "A random direction at the same scale shows how much of an effect is any push at all."
    return Form("A random direction", fields, note, job, lambda v: float(v["scale"]) if v["scale"].strip() else None)


def vector_file() -> Form:
    """From a vector file that is elsewhere."""
    fields = (
        Field("path", "file", hint=".safetensors .gguf .npy .npz .json .pt; FILE:NAME; a folder", check=a_vector_file),
        Field("layer", "layer", hint="empty: what the file says, or all of several", check=optional(whole(0))),
    )

    def job(values: Values) -> Job:
        layer = values["layer"].strip()
        return VectorFromFile(values["path"].strip(), int(layer) if layer else None)

    return Form("From a file", fields, "Its width must be the model's.", job)


def texts(typed: str) -> tuple[str, ...]:
    """The texts in a field, without the blanks around them; see :func:`~lens_tui.records.wording.texts_in`."""
    return tuple(text.strip() for text in texts_in(typed))


def a_file(text: str) -> str:
    """A check for the path of a file that is there."""
    return "" if text.strip() and expanded(text.strip()).is_file() else "a file that is there"


def a_vector_file(text: str) -> str:
    """As :func:`a_file`, with a name after it: ``FILE:NAME``; or a folder of files."""
    from lens_tui.records.vector_formats import vector_file

    if text.strip() and expanded(text.strip()).is_dir():
        return ""
    return a_file(str(vector_file(expanded(text.strip()))[0])) if text.strip() else a_file("")


def free(text: str) -> str:
    """A check for a path to write to: nothing, or one where no file is yet, in a folder that is there."""
    path = expanded(text.strip())
    if not text.strip():
        return ""
    return "" if path.parent.is_dir() and not path.exists() else "a new name in a folder that is there"


def _layer_or_all(n_layers: int) -> Check:
    check = whole(0, n_layers - 1)
    return lambda text: "" if text.strip() == ALL or not check(text) else f"{check(text)}, or all"


def _sum(rows: int) -> Check:
    return lambda text: "" if read_sum(text, rows) else f"rows 1 to {rows}, as 1 + 0.5*2 or 1 without 2"


Row = tuple[str, str, str]
"""A file's path, what to call it, and a word on it; without a path: another file."""


class VectorFileScreen(Dialog["str | None"]):
    """Dismisses with the path chosen, with ``""`` for a file elsewhere, or with ``None`` on escape."""

    BINDINGS = [("escape,q", "cancel", "cancel"), ("enter", "choose", "choose"), ("slash", "other", "another file")]
    DEFAULT_CSS = """
    VectorFileScreen RowList { height: auto; max-height: 18; }
    """

    def __init__(self, ready: Sequence[ReadyVector] = ()) -> None:
        super().__init__()
        self._ready = tuple(ready)

    def compose(self) -> ComposeResult:
        """The list and the keys."""
        with Vertical(classes="dialog"):
            yield Static("Vector files", classes="dialog-title")
            yield RowList[Row](_draw, empty="…")
            keys = [("⏎", " choose   "), ("/", " another file   "), ("esc", " leave it")]
            yield Static(Content.assemble("\n", *(part for key, word in keys for part in ((key, "bold"), word))))

    def on_mount(self) -> None:
        """Look without holding up the screen."""
        self.query_one(RowList).focus()
        self._look()

    @work(thread=True, exit_on_error=False)
    def _look(self) -> None:
        from lens_tui.records.vector_formats import list_vectors

        rows = [(str(file.path), one_line(file.path.stem, 60), _word(file)) for file in list_vectors()]
        rows += [(str(ready.path), ready.name, _ready(ready)) for ready in self._ready]
        self.app.call_from_thread(self._show, rows)

    def _show(self, rows: list[Row]) -> None:
        if self.is_mounted:
            listing = [*rows, ("", "another file …", "type its path")]
            listed = self.query_one(RowList)
            listed.styles.height = min(len(listing), 18)
            listed.show(listing, 0)

    def on_row_list_chosen(self) -> None:
        """A click chooses."""
        self.action_choose()

    def action_choose(self) -> None:
        """The file under the cursor; one that cannot be read says why when it is loaded."""
        row = self.query_one(RowList).row
        if row is not None:
            self.dismiss(row[0])

    def action_other(self) -> None:
        """A file elsewhere."""
        self.dismiss("")

    def action_cancel(self) -> None:
        """None."""
        self.dismiss(None)


def _word(file: VectorFile) -> str:
    if file.vector is None:
        # The whole sentence, and fields to answer it, come when it is chosen.
        return (
            "cannot be read" if "cannot be read" in file.problem else "a set of several layers, or for one to be named"
        )
    measured_of = f" of {one_line(file.vector.model, 60)}" if file.vector.model else ""
    return f"{file.vector.site} {file.vector.layer}{measured_of}"


def _ready(vector: ReadyVector) -> str:
    return f"scale {vector.scale:g} · {vector.says}"


def _draw(row: Row, width: int) -> list[Content]:
    name = max(12, width * 2 // 5)
    return [Content.assemble(fit(row[1], name), (fit_left(row[2], width - name), "$muted"))]


_NOTE = (
    "Bars: AUC of held-out pairs, the chance that a text toward lies further along the direction than one away; "
    "half is chance. d′: distance of the two means in standard deviations. Gap: distance of the means."
)
_NONE_HELD = "Too few pairs to hold any out: the layers are ranked by the gap of the means over ‖h‖, which says less."


class LayersScreen(LayerChoice[RankedLayer]):
    """The layers as they are ranked, the best one first."""

    def __init__(self, name: str, layers: Sequence[RankedLayer], n_pairs: int) -> None:
        self._held = any(row.auc is not None for row in layers)
        note = _NOTE if self._held else _NONE_HELD
        super().__init__(
            f"{name}: which layer?  ({many(n_pairs, 'pair')})", note, layers, first=0, takes="take the layer"
        )

    def heading(self) -> str:
        """What stands over the columns."""
        return "  layer" + " " * 24 + ("    AUC      d′      gap" if self._held else "    gap   of ‖h‖")

    def draw(self, row: RankedLayer, width: int) -> list[Content]:
        """The AUC as a bar from chance, or the gap against the largest."""
        share = 2 * (row.auc - 0.5) if row.auc is not None else self._share(row)
        parts: list[str | tuple[str, str]] = [fit_left(str(row.vector.layer), 5), "  "]
        parts.append((bar(share, 20).ljust(22), "$heat-5"))
        if self._held:
            parts.append(f"{figure(row.auc, 3):>7}{figure(row.d_prime, 2):>8}{row.gap:>9.3g}")
        else:
            parts.append(f"{row.gap:>7.3g}{figure(row.relative, 3):>9}")
        return [Content.assemble(*parts)]

    def _share(self, row: RankedLayer) -> float:
        most = max((other.relative or 0.0) for other in self._layers)
        return (row.relative or 0.0) / most if most else 0.0
