"""What adds to a token's logit, and where heads look, as rows of figures and bars. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, overload

import numpy as np
from textual.content import Content

from lens_tui.records.measures import AttentionPattern, LogitAttribution, Part
from lens_tui.records.wording import dotted_quote

from .format import bar, fit, fit_left, leading_dot, share_level, signed

COLUMNS = {"attn": "attention", "mlp": "MLP", "steer": "steering", "layer": "layer"}
"""The columns of a layer's row, and what they are called: ``layer`` is all of it together."""
NUMBER, LEAST = 7, 5
"""Cells of a figure, and of the shortest bar."""
TOP = 8
"""How many parts, or tokens, are listed."""

MOST_HEADS = 12
"""Heads of a layer that are listed in their order; of more the largest."""

Span = str | tuple[str, str]
Item = TypeVar("Item")


class Lazily(Sequence[Item]):
    """So many items, each made when it is asked for: of a large grid only what shows is ever made."""

    def __init__(self, count: int, item: Callable[[int], Item]) -> None:
        self._count, self._item = count, item

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> Item: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Item]: ...

    def __getitem__(self, place: int | slice) -> Item | Sequence[Item]:
        if isinstance(place, slice):
            return [self._item(at) for at in range(*place.indices(self._count))]
        if not 0 <= place < self._count:
            raise IndexError(place)
        return self._item(place)


@dataclass(frozen=True, slots=True)
class LayerParts:
    """What one layer adds to a logit: by column, ``None`` where that is not known; ``why`` says why not."""

    layer: int
    values: Mapping[str, float | None]
    why: str = ""


def layer_parts(parts: LogitAttribution) -> list[LayerParts]:
    """The layers in order, at the first position read."""
    found: dict[int, dict[str, float | None]] = {}
    whys: dict[int, str] = {}
    for part, value in zip(parts.parts, parts.values[:, 0].tolist(), strict=True):
        if part.layer >= 0:
            row = found.setdefault(part.layer, {"layer": 0.0})
            row["layer"] = (row["layer"] or 0.0) + value
            if part.kind == "block":
                whys[part.layer] = part.why
            else:
                row[part.kind] = value
    return [LayerParts(layer, row, whys.get(layer, "")) for layer, row in sorted(found.items())]


def columns_of(layers: Sequence[LayerParts], width: int) -> list[str]:
    """The columns that there is something for; the sum gives way where the bars of its parts would have no room.

    Args:
        layers: What is shown.
        width: Cells for all columns.
    """
    names = [name for name in COLUMNS if name != "steer" or any("steer" in row.values for row in layers)]
    if "steer" in names and width // len(names) < NUMBER + 2 + LEAST:
        names.remove("layer")
    return names


def largest(parts: LogitAttribution) -> float:
    """What bars are a share of: the largest part, or layer, whatever its sign."""
    every = [abs(value) for row in layer_parts(parts) for value in row.values.values() if value is not None]
    return max([*every, abs(_embedding(parts))], default=0.0)


def signed_bar(value: float, limit: float, width: int) -> str:
    """A bar to the right of a middle line for a positive value, to the left for a negative one.

    Args:
        value: What it is of.
        limit: The value of a full half.
        width: Cells in all; nothing for fewer than ``LEAST``.
    """
    if width < LEAST:
        return " " * max(0, width)
    half = (width - 1) // 2
    share = abs(value) / limit if limit > 0 else 0.0
    if value >= 0:
        return fit(" " * half + "│" + bar(share, half), width)
    halves = min(2 * half, round(share * 2 * half))
    drawn = ("▐" if halves % 2 else "") + "█" * (halves // 2)
    return fit(fit_left(drawn, half) + "│", width)


def layer_line(row: LayerParts, columns: Sequence[str], limit: float, width: int) -> list[Span]:
    """A layer's figures with their bars, ``width`` cells to a column."""
    spans: list[Span] = []
    for name in columns:
        value = row.values.get(name)
        if value is None:
            spans.append((fit_left("–", NUMBER) + " " * (width - NUMBER), "$muted"))
            continue
        spans += [fit_left(signed(value, 2), NUMBER), " "]
        spans += [(signed_bar(value, limit, width - NUMBER - 2), _colour(value)), " "]
    return spans


def head_line(columns: Sequence[str], width: int) -> list[Span]:
    """What the columns are called, above their figures."""
    return [(fit(" " * max(0, NUMBER - len(COLUMNS[name])) + COLUMNS[name], width), "$muted") for name in columns]


def logit_lines(parts: LogitAttribution, layer: int, width: int) -> list[Content]:
    """What the logit is of and made of, its largest parts, and the heads of one layer."""
    target = dotted_quote(parts.texts[parts.target_ids[0]])
    lines = [
        Content.assemble(("logit of ", "$muted"), fit(target, max(4, width - 9)).rstrip()),
        _figure("in all", float(parts.logits[0]), width),
    ]
    if parts.softcap:
        lines.append(_figure("after soft-capping", float(parts.model_logits[0]), width))
    lines.append(_figure("embedding", _embedding(parts), width))
    if float(parts.constant[0]):
        lines.append(_figure("biases", float(parts.constant[0]), width))
    lines += [_figure("rounding", float(parts.rest[0]), width), Content("")]
    named = [(_part_name(part), value) for part, value in zip(parts.parts, parts.values[:, 0].tolist(), strict=True)]
    lines += _heads(parts, layer, width)
    return [*lines, Content.styled("largest parts", "$muted"), *_ranked(named, width)]


def _heads(parts: LogitAttribution, layer: int, width: int) -> list[Content]:
    """What each head of a layer adds, in their order; of many those that add most."""
    for item in parts.heads:
        if item.layer != layer:
            continue
        if item.why:
            return [Content.styled(f"heads of L{layer}", "$muted"), Content(item.why), Content("")]
        named = [(f"H{head}", value) for head, value in enumerate(item.values[:, 0].tolist())]
        title = f"heads of L{layer}"
        if len(named) > MOST_HEADS:
            title = f"largest {MOST_HEADS} of {len(named)} heads of L{layer}"
            named = sorted(named, key=lambda pair: -abs(pair[1]))[:MOST_HEADS]
        limit = max((abs(value) for _, value in named), default=0.0)
        rest = [("bias", float(item.bias[0])), ("rest", float(item.rest[0]))]
        named += [(name, value) for name, value in rest if abs(value) >= 0.005]
        return [
            Content.styled(title, "$muted"),
            *(_bar_line(name, value, limit, width, 6) for name, value in named),
            Content(""),
        ]
    return []


def look_cells(pattern: AttentionPattern, place: int) -> list[list[tuple[str, int]]]:
    """For each head, the last one first, how much token ``place`` looks at each one up to it, with its level."""
    rows = pattern.weights[::-1, place, : place + 1].tolist()
    return [[(_share(value), share_level(value, 1.0) if value >= 0.01 else 0) for value in row] for row in rows]


def pattern_cells(pattern: AttentionPattern, head: int) -> Sequence[Sequence[tuple[str, int]]]:
    """For each token, the last one first, how much one head looks from it at each one up to it, with its level."""
    weights, count = pattern.weights[head], len(pattern.token_ids)

    def cell(place: int, source: int) -> tuple[str, int]:
        if source > place:
            return "", 0
        value = float(weights[place, source])
        return _share(value), share_level(value, 1.0) if value >= 0.01 else 0

    return Lazily(count, lambda row: Lazily(count, lambda source: cell(count - 1 - row, source)))


def look_lines(
    pattern: AttentionPattern,
    texts: Mapping[int, str],
    place: tuple[int, int, int],
    parts: LogitAttribution | None,
    width: int,
) -> list[Content]:
    """Where one head looks from one token, and what it adds to the followed token's logit there.

    Args:
        pattern: The layer's.
        texts: The tokens' display forms.
        place: The head, the token that looks, and the token under the cursor.
        parts: The logit taken apart at that token, if that was read.
        width: Cells of a line.
    """
    head, at, source = place
    row = pattern.weights[head, at, : at + 1]
    looked = dotted_quote(texts[pattern.token_ids[source]])
    lines = [
        Content.assemble(("looks at ", "$muted"), fit(looked, max(4, width - 15)).rstrip(), f" {_share(row[source])}"),
        Content(""),
        Content.styled("most of all at", "$muted"),
    ]
    for best in np.argsort(-row, kind="stable")[:TOP].tolist():
        name = f"{best} {leading_dot(texts[pattern.token_ids[best]])}"
        lines.append(_share_line(name, float(row[best]), width))
    entropy = float(-np.sum(row * np.log(np.maximum(row, 1e-30))))
    lines += [Content(""), Content.assemble(("entropy ", "$muted"), f"{entropy:.2f} nats")]
    mine = next((item for item in parts.heads if item.layer == pattern.layer), None) if parts is not None else None
    if parts is not None and mine is not None and parts.positions[0] == at and not mine.why:
        target = dotted_quote(parts.texts[parts.target_ids[0]])
        lines += [
            Content.assemble(
                ("adds to ", "$muted"),
                fit(target, max(4, width - 16)).rstrip(),
                f" {signed(float(mine.values[head, 0]), 3)}",
            ),
        ]
    return lines


def _share_line(name: str, value: float, width: int) -> Content:
    room = max(6, width // 2)
    left = max(0, width - room - 6)
    return Content.assemble(fit(name, room), " ", (fit(bar(value, left), left), "$heat-5"), fit_left(_share(value), 5))


def _ranked(named: Sequence[tuple[str, float]], width: int) -> list[Content]:
    ranked = sorted(named, key=lambda item: -abs(item[1]))[:TOP]
    limit = abs(ranked[0][1]) if ranked else 0.0
    return [_bar_line(name, value, limit, width, 10) for name, value in ranked]


def _bar_line(name: str, value: float, limit: float, width: int, room: int) -> Content:
    left = max(0, width - room - NUMBER - 1)
    return Content.assemble(
        fit(name, room), fit_left(signed(value, 2), NUMBER), " ", (signed_bar(value, limit, left), _colour(value))
    )


def _figure(name: str, value: float, width: int) -> Content:
    return Content.assemble((fit(name, max(0, width - 9)), "$muted"), fit_left(signed(value, 2), 9))


def _part_name(part: Part) -> str:
    if part.layer < 0:
        return "embedding"
    return (
        f"L{part.layer} {'whole' if part.kind == 'block' else {'attn': 'attn', 'mlp': 'MLP'}.get(part.kind, part.kind)}"
    )


def _embedding(parts: LogitAttribution) -> float:
    pairs = zip(parts.parts, parts.values[:, 0].tolist(), strict=True)
    return float(sum(value for part, value in pairs if part.kind == "embed"))


def _colour(value: float) -> str:
    return "$sign-6" if value >= 0 else "$sign-2"


def _share(value: float) -> str:
    return "1.00" if value >= 0.995 else f"{value:.2f}".lstrip("0")
