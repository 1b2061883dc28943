"""A run reduced from its events: sums, divergence, diffs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from lens_tui.records import AblateHeads, Add, Arm, EditPattern, Intervention, Positions, Sampling, Token
from lens_tui.records.run import pieces
from lens_tui.tui.lane_text import cells, stats
from lens_tui.tui.run_text import ArmText, RunText
from lens_tui.tui.screens.run_settings import fitting
from lens_tui.tui.session import Session, SessionStore, plan
from lens_tui.tui.token_shades import changed_levels, token_levels
from lens_tui.tui.widgets import lane
from lens_tui.worker import events as ev
from tests.fakes import unit_vector


def token(arm: int, index: int, token_id: int, logprob: float = -1.0, kl: float | None = 0.5) -> Token:
    return Token(index, token_id, f"t{token_id}", f"t{token_id}", logprob, arm, kl)


def run_of(*lanes: list[int], ends: bool = True) -> RunText:
    run = RunText(1, "p", Sampling(), tuple(ArmText(n, Arm(str(n))) for n in range(len(lanes))))
    for step in range(max(map(len, lanes))):
        for arm, ids in enumerate(lanes):
            if step < len(ids):
                run.apply(ev.TokenEvent(1, token(arm, step, ids[step], kl=0.0 if arm == 0 else 0.5)))
            if ends and step == len(ids) - 1:
                run.apply(ev.ArmDone(1, arm, "stop", len(ids)))
    return run


def test_whether_a_text_thinks_is_seen_at_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []

    def counted(tokens: Sequence[Token], reason: str) -> list[str]:
        looked.append(len(tokens))
        return pieces(tokens, reason)

    monkeypatch.setattr(lane, "pieces", counted)
    monkeypatch.setattr(ArmText, "pieces", property(lambda text: counted(text.tokens, text.reason)))
    run = run_of(list(range(300)), ends=False)
    plain, thinking = run.arms[0], ArmText(1, Arm("a"))
    assert not lane.Lane._thinks(run, plain)
    thinking.tokens = [replace(plain.tokens[0], text=text) for text in ("\n", "<th", "ink>", *["a"] * 300)]
    assert lane.Lane._thinks(run, thinking)
    assert max(looked) < 20  # asked with every frame: not all of a long text each time


def test_means_are_of_the_arms_own_tokens() -> None:
    arm = ArmText(1, Arm("a"))
    for index, (logprob, kl) in enumerate([(-1.0, 0.2), (-2.0, None), (-0.5, 0.6)]):
        arm.add(token(1, index, index, logprob, kl))
    assert arm.mean_logprob is not None
    assert math.isclose(arm.mean_logprob, -3.5 / 3)
    assert math.isclose(arm.perplexity or 0, math.exp(3.5 / 3))
    assert math.isclose(arm.mean_kl or 0, 0.4)
    assert arm.plain_perplexity is None
    arm.add(replace(token(1, 3, 3, -0.5, 0.6), reverse_kl=0.9, plain_logprob=-4.0))
    assert math.isclose(arm.mean_reverse_kl or 0, 0.9)
    assert math.isclose(arm.plain_perplexity or 0, math.exp(4.0))
    assert ArmText(0, Arm("b")).perplexity is None
    arm.add(token(1, 4, 3, -1e9))
    assert math.isfinite(arm.perplexity or math.inf)


def test_where_texts_part() -> None:
    run = run_of([1, 2, 3, 4], [1, 2, 9, 4], [1, 2, 3, 4], [1, 2], [1, 2, 3, 4, 5])
    assert [arm.parted for arm in run.arms] == [None, 2, None, 2, 4]
    going = run_of([1, 2, 3], [1, 2], ends=False)
    assert going.arms[1].parted is None


def test_the_diff_is_by_alignment_once_both_have_ended() -> None:
    run = run_of([1, 2, 3, 4], [1, 9, 2, 3, 4])
    assert token_levels(run.arms[1], "diff", run.baseline) == [0, 7, 0, 0, 0]
    assert token_levels(run.arms[1], "diff", run.baseline, 2) == [0, 0, 0]
    going = run_of([1, 2, 3, 4], [1, 9, 2, 3, 4], ends=False)
    assert token_levels(going.arms[1], "diff", going.baseline) == [0, 7, 7, 7, 7]
    assert changed_levels([], [1, 2]) == [7, 7]


def test_levels_follow_kl_and_surprise() -> None:
    arm = ArmText(1, Arm("a"))
    arm.add(token(1, 0, 1, logprob=-20.0, kl=None))
    arm.add(token(1, 1, 1, logprob=-0.01, kl=16.5))
    assert token_levels(arm, "kl", arm) == [0, 7]
    for index, kl in enumerate((0.001, 0.016, 0.1, 1.0), 2):
        arm.add(token(1, index, 1, kl=kl))
    assert token_levels(arm, "kl", arm, 2) == [0, 1, 3, 5]  # a hundredth of a nat is told from one
    assert token_levels(arm, "surprise", arm)[:2] == [7, 0]


def test_the_plan_keeps_the_numbers_of_the_bench() -> None:
    store = SessionStore(Session(prompt="hi"))
    for number in (1, 3):
        store.add_steer(unit_vector(f"v{number}"), arm=number)
    store.edit_steer(store.session.steers[0].id, enabled=False)
    assert [(number, arm.name) for number, arm in plan(store.session)] == [(0, "baseline"), (3, "v3")]
    run = RunText.begin(4, store.session)
    assert run.index_of(3) == 1
    assert run.arm_of(1) is None
    assert run.going


def test_a_dial_is_kept_with_the_token_it_began_at() -> None:
    run = run_of([1], [1], ends=False)
    run.apply(ev.Dialed(1, 1, 1, ()))
    assert run.arms[1].dials == [(1, ())]
    run.apply(ev.JobDone(1, stopped=True))
    assert run.state == "stopped"


@pytest.mark.parametrize(
    ("record", "unit"),
    [
        (AblateHeads(id="h", layer=7, heads=(4,)), "‖z‖"),
        (EditPattern(id="e", layer=7, heads=(4,), sources=Positions("indices", (5,))), "‖z‖"),
        (Add(id="a", layer=4, vector=unit_vector("dog"), scale=1.0), "‖h‖"),
    ],
)
def test_what_was_moved_is_a_share_of_the_residual_or_of_what_heads_hand_on(record: Intervention, unit: str) -> None:
    arm = ArmText(1, Arm("arm", (record,)), reason="length", dose=0.26)
    assert f"moved 0.26 {unit}" in stats(arm, 8, 120)
    assert cells(arm)[6] == ("0.26 ‖z‖" if unit == "‖z‖" else "0.26")


@pytest.mark.parametrize("width", range(60, 150, 9))
def test_the_line_of_settings_leaves_out_whole_facts_and_the_least_needed_first(width: int) -> None:
    chat, facts = (
        "● chat ○ raw C · ",
        ["seed 7 · temp 0.7", " · run 2 of 3", " · changed: r runs it", " · shade: KL", ", in nats"],
    )
    kept = "".join(text for text, _ in fitting([(fact, "") for fact in (chat, *facts)], width))
    left = [facts, facts[:4], [facts[0], *facts[2:4]], [facts[0], facts[2]], facts[:1]]
    assert kept == next(text for text in (chat + "".join(some) for some in left) if len(text) <= width)
