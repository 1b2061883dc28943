"""The details pane of Load: a model's shape, its need of memory, how its loading goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.content import Content

from lens_tui.tui.activity import BUSY
from lens_tui.tui.format import count, fit, fit_left, size
from lens_tui.tui.host import LensHost
from lens_tui.tui.widgets.ramps import bar

if TYPE_CHECKING:
    from lens_tui.worker.model_files import MemoryEstimate, ModelEntry

Part = str | tuple[str, str]


def details(app: LensHost, entry: ModelEntry, memory: MemoryEstimate, width: int, narrow: bool) -> Content:
    """Everything the pane says above the SAEs; ``narrow`` leaves out what a list of 80 columns has no rows for."""
    parts: list[Part] = [(entry.name, "bold"), "\n", (shape(entry), "$muted"), "\n"]
    if entry.problem:
        parts += ["\n", ("✗ ", "$error"), (entry.problem, "$error"), "\n"]
    if narrow:
        parts += [(memory_line(memory), "$muted"), "\n"]
    else:
        parts += ["\n", *memory_rows(memory, width), "\n"]
    parts += _loading(app, entry)
    parts += [("SAEs at hand", "$muted" if narrow else "bold $muted")]
    return Content.assemble(*parts)


def shape(entry: ModelEntry) -> str:
    """Architecture and sizes in one line, what is known of them."""
    facts = [entry.architecture]
    if entry.n_layers:
        facts.append(f"{entry.n_layers} layers")
    if entry.d_model:
        facts.append(f"d_model {entry.d_model}")
    if entry.vocab_size:
        facts.append(f"vocab {count(entry.vocab_size)}")
    if entry.source == "hub":
        facts.append("not downloaded yet")
    return " · ".join(fact for fact in facts if fact)


def memory_rows(memory: MemoryEstimate, width: int) -> list[Part]:
    """What a comparison of four arms needs, piece by piece, against what there is."""
    if not memory.weights:
        return [("Memory is known once it is downloaded.", "$muted"), "\n"]
    rows: list[Part] = [(f"Memory  of {size(memory.machine)}", "bold $muted"), "\n"]
    room = max(6, width - 8 - 10 - 8)
    so_far = 0
    for label, part in (
        ("weights", memory.weights),
        ("+ cache", memory.cache),
        ("+ reads", memory.capture + memory.logits),
    ):
        so_far += part
        share = so_far / memory.machine
        rows += [
            (fit(label, 8), "$muted"),
            (fit_left(size(part), 9) + " ", ""),
            (bar(share, room).ljust(room), "$muted"),
            (fit_left(f"{share:.0%}", 6), "$muted"),
            "\n",
        ]
    if memory.float32:
        rows += [("Weights in float32: faster on this CPU.", "$muted"), "\n"]
    if not memory.fits:
        rows += [("More than this machine has: it would be slow or fail.", "$warning"), "\n"]
    return rows


def memory_line(memory: MemoryEstimate) -> str:
    """The same in one line."""
    if not memory.weights:
        return "memory is known once it is downloaded"
    share = memory.total / memory.machine
    return f"needs {size(memory.total)} of {size(memory.machine)} ({share:.0%}) for four arms"


def _fit(app: LensHost) -> list[Part]:
    """What was measured of the SAE in use."""
    report = app.store.session.fit(app.store.session.sae)
    if report is None:
        return []
    mark: Part = ("✓ ", "$success") if report.fits else ("! ", "$warning")
    return [mark, (report.sentence, "$muted" if report.fits else "$warning"), "\n"]


def _loading(app: LensHost, entry: ModelEntry) -> list[Part]:
    opening = app.opening
    if opening.model != entry.id:
        return []
    if opening.failure is not None:
        failure = opening.failure
        return [("✗ ", "$error"), (failure.message, "$error"), (f" {failure.hint}\n\n", "")]
    if not opening.going:
        keys = f"{app.key_text('app.generate')} Generate · {app.key_text('app.steer')} Steer"
        ready: list[Part] = [("✓ ", "$success"), "ready  ", (keys, "$muted"), "\n"]
        model = app.store.session.model
        if model is not None and model.weights:
            ready += [(f"Weights: {model.weights}", "$muted"), "\n"]
        return [*ready, *_fit(app), "\n"] if model else []
    parts: list[Part] = []
    for stage in opening.stages:
        current = stage == app.activity.stage and app.activity.state == BUSY
        parts += [("● " if current else "✓ ", "$accent"), (stage + "  ", "" if current else "$muted")]
    return [*parts, "\n\n"] if parts else []
