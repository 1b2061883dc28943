"""The form for sampling settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, Label, Static

from lens_tui.records import LensError, Sampling

_FIELDS: tuple[tuple[str, str, Callable[[str], float], float, float], ...] = (
    ("max_tokens", "tokens at most", int, 1, 1_000_000),
    ("seed", "seed", int, 0, 2**32 - 1),
    ("temp", "temperature (0: greedy)", float, 0, 100),
    ("top_p", "top-p (0: off)", float, 0, 1),
    ("top_k", "top-k (0: off)", int, 0, 10_000_000),
    ("min_p", "min-p (0: off)", float, 0, 1),
    ("repetition_penalty", "repetition penalty (0: off)", float, 0, 100),
)


def parse(values: Mapping[str, str], before: Sampling) -> Sampling:
    """The settings a filled form means. Raises :class:`LensError` naming the field and its range."""
    changes: dict[str, float] = {}
    for name, label, kind, low, high in _FIELDS:
        try:
            value = kind(values[name].strip())
        except ValueError:
            raise LensError(f"{label}: {values[name].strip() or 'nothing'!r} is not a number.") from None
        if not low <= value <= high:
            raise LensError(f"{label}: {value:g} is outside {low:g} to {high:g}.")
        changes[name] = value
    return replace(before, **changes)  # type: ignore[arg-type]


def summary(sampling: Sampling) -> str:
    """The settings in one line: ``seed 7 · greedy · max 200``."""
    parts = [f"seed {sampling.seed}", f"temp {sampling.temp:g}" if sampling.temp else "greedy"]
    parts += [
        f"{label} {getattr(sampling, name):g}"
        for name, label in (("top_p", "top-p"), ("top_k", "top-k"), ("min_p", "min-p"), ("repetition_penalty", "rep"))
        if getattr(sampling, name)
    ]
    return " · ".join([*parts, f"max {sampling.max_tokens}"])


class SamplingScreen(ModalScreen[Sampling | None]):
    """Edits sampling settings; enter takes them, escape leaves them as they were."""

    BINDINGS = [("escape", "dismiss", "cancel"), ("down", "app.focus_next", ""), ("up", "app.focus_previous", "")]
    DEFAULT_CSS = """
    SamplingScreen .dialog { width: 52; }
    SamplingScreen Horizontal { height: 1; }
    SamplingScreen Label { width: 30; }
    SamplingScreen Input { width: 1fr; }
    """

    def __init__(self, sampling: Sampling) -> None:
        super().__init__()
        self._before = sampling

    def compose(self) -> ComposeResult:
        """A row for each setting."""
        with Vertical(classes="dialog"):
            yield Static("Sampling", classes="dialog-title")
            for name, label, *_ in _FIELDS:
                with Horizontal():
                    yield Label(label)
                    yield Input(f"{getattr(self._before, name):g}", id=name, select_on_focus=True)
            yield Static("", id="problem", classes="error")
            yield Static(Content.assemble(("⏎", "bold"), " take   ", ("esc", "bold"), " cancel"), classes="muted")

    def on_input_submitted(self) -> None:
        """Take the settings, or say what is wrong with them."""
        values = {name: self.query_one(f"#{name}", Input).value for name, *_ in _FIELDS}
        try:
            self.dismiss(parse(values, self._before))
        except LensError as error:
            self.query_one("#problem", Static).update(Content(str(error)))
