"""What a lane says of an arm: what is done to it, its figures in a line or in columns, a step's candidates. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import exp

from textual.content import Content

from lens_tui.records import Add, Candidate, Intervention
from lens_tui.records.gates import gate_sign
from lens_tui.records.interventions import POSITIONS, Z, amount_of, moved_of, positions_text
from lens_tui.records.measures import distinct
from lens_tui.records.sanitise import one_line
from lens_tui.records.vector_sets import grouped, multiplier
from lens_tui.records.wording import many

from .format import NEWLINE, bar, figure, fit, leading_dot, nats, signed
from .run_text import ArmText
from .set_text import has_amount

HEADS = ("tokens", "KL nat", "reverse", "ppl plain", "ppl own", "distinct-2", "moved ‖h‖", "parts at")
"""The columns of :func:`cells`."""


def candidate_row(item: Candidate, width: int, chosen: bool) -> Content:
    """``▸ ·Paris  .61 ██████``: a candidate, its probability, and that as a bar."""

    share = exp(min(0.0, item.logprob))
    name_width = max(6, min(18, width - 16))
    bar_width = max(0, min(20, width - name_width - 9))
    return Content.assemble(
        ("▸ " if chosen else "  ", "$accent"),
        (fit(visible(item.text), name_width), "bold" if chosen else ""),
        f" {share:5.3f} ".replace("0.", " ."),
        (bar(share, bar_width), "$heat-5"),
    ).truncate(width)


def visible(token: str) -> str:
    """A token's text with its leading blank as a dot, so that it can be seen."""
    return leading_dot(token.replace("\n", NEWLINE))


def quoted(token: str) -> str:
    """A token between quotes, for a sentence."""
    return f"“{token.replace(chr(10), NEWLINE)}”"


PEAKS = re.compile(r" · \d+\.\d×max")
"""What of :func:`strength` is left out first."""


def strength(interventions: Sequence[Intervention]) -> str:
    """What is done to an arm, short: ``+8.0 · 2.0×max`` for one vector, ``+8.0, -3.0 if verse>0.5`` for several.

    Behind the amounts stand the positions, where it is not done to all tokens: ``+8.0 · generated only · 2.0×max``.
    """
    live = [item for item in interventions if item.enabled]
    if not live:
        return ""

    parts = [", ".join(amount_text(group[0]) if len(group) == 1 else _of_set(group) for group in grouped(live))]
    where = {positions_text(item.positions) for item in live}
    if where != {POSITIONS["all"]}:
        parts.append(where.pop() if len(where) == 1 else "positions differ")
    peak = getattr(getattr(live[0], "vector", None), "max_activation", None) if len(live) == 1 else None
    if peak and isinstance(live[0], Add):
        parts.append(f"{live[0].scale / peak:.1f}×max")
    return " · ".join(parts)


def _of_set(records: Sequence[Intervention]) -> str:
    """A set of vectors: its one scale, on how many layers."""
    amount = f"{multiplier(records) or 0.0:+g} on {many(len(records), 'layer')}"
    return amount if records[0].gate is None else f"{amount} {one_line(gate_sign(records[0].gate), 40)}"


_SIGNS = {"set": "= ", "at_most": "≤ ", "at_least": "≥ "}


def amount_text(item: Intervention) -> str:
    """What one intervention does, with its gate: ``+8.0``, ``= 3.0 if verse>0.5``."""
    return _push(item) if item.gate is None else f"{_push(item)} {one_line(gate_sign(item.gate), 40)}"


def _push(item: Intervention) -> str:
    if item.mode == "project_out":
        return "projected out"
    amount = amount_of(item)
    value = getattr(item, "value", None) if amount is None else amount
    if value is None:
        return item.mode.replace("_", " ")
    return f"{signed(value, 2)} ‖h‖" if item.mode == "norm_match" else _SIGNS.get(item.mode, "") + signed(value)


def stats(text: ArmText, max_tokens: int, width: int) -> str:
    """How long a text is, how likely, to its own model and to the plain one, and how far the arm was moved.

    As much of it as the width holds; the perplexity of a steered arm always says whose it is.
    """
    moved = "" if text.dose is None else f"{text.dose:.2f} {moved_of(item.site for item in text.interventions)}"
    own = "" if text.perplexity is None else f"ppl {text.perplexity:.1f}" + (" own" if text.number else "")
    plain = text.plain_perplexity if text.number else None
    both = own if plain is None else f"{own}, {plain:.1f} plain"
    logp = "" if text.mean_logprob is None else f"logp {text.mean_logprob:.2f}"
    length, whole = f"{len(text.tokens)}", f"{len(text.tokens)}/{max_tokens}"
    for facts in (
        (whole, logp, both, moved and f"moved {moved}"),
        (whole, both, moved and f"moved {moved}"),
        (whole, both, moved),
        (length, both, moved),
        (both, moved),
        (length, own, moved),
        (length, own),
    ):
        line = " · ".join(fact for fact in facts if fact)
        if len(line) <= width:
            break
    return line


def amount_of_arm(arm: ArmText) -> str:
    """The scale of an arm behind a blank, by which arms of one vector are told apart; nothing where its name has it."""
    amount = strength(arm.interventions).partition(" · ")[0]
    return f" {amount}" if amount and not has_amount(arm.arm.name, amount) else ""


def cells(arm: ArmText) -> tuple[str, ...]:
    """An arm's numbers in the order of ``HEADS``; ``–`` for what is not known, or has no meaning for the baseline."""
    if not arm.reason:
        return ("…", *[""] * (len(HEADS) - 1))
    steered = arm.number > 0
    return (
        str(len(arm.tokens)),
        nats(arm.mean_kl) if steered else "–",
        nats(arm.mean_reverse_kl) if steered else "–",
        figure(arm.plain_perplexity if steered else arm.perplexity, 1),
        figure(arm.perplexity, 1),
        figure(distinct([token.token_id for token in arm.tokens], 2), 2),
        figure(arm.dose, 2) + (f" {Z}" if moved_of(item.site for item in arm.interventions) == Z else ""),
        "–" if arm.parted is None else str(arm.parted),
    )
