"""Contenders take turns, and only their own work is in their time: against a clock that the test turns."""

from __future__ import annotations

from benchmarks.turns import medians, take_turns, timed


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


def test_what_is_done_before_is_not_in_the_time_and_what_is_done_after_is() -> None:
    clock = FakeClock()
    contender = timed(
        lambda: clock.passes(2.0), clock=clock, before=lambda: clock.passes(50.0), after=lambda: clock.passes(0.5)
    )
    assert contender() == 2.5
    assert timed(lambda: clock.passes(3.0), clock=clock)() == 3.0


def test_every_contender_has_a_turn_before_any_has_its_next_and_every_second_turn_goes_backwards() -> None:
    order: list[str] = []

    def named(name: str) -> float:
        order.append(name)
        return 1.0

    take_turns({name: lambda name=name: named(name) for name in "abc"}, 3, unmeasured=1)  # type: ignore[misc]
    assert order == list("abc" + "cba" + "abc" + "cba")


def test_first_turns_are_not_counted_and_the_rest_are_in_their_order() -> None:
    answers = {"a": iter([9.0, 1.0, 3.0, 2.0]), "b": iter([8.0, 30.0, 10.0, 20.0])}
    found = take_turns({name: lambda each=each: next(each) for name, each in answers.items()}, 3)  # type: ignore[misc]
    assert found == {"a": [1.0, 3.0, 2.0], "b": [30.0, 10.0, 20.0]}


def test_a_machine_that_slows_down_leaves_the_ratio_as_it_is() -> None:
    clock, speed = FakeClock(), [1.0]

    def works(units: float) -> None:
        clock.passes(units / speed[0])
        speed[0] *= 0.99

    contenders = {"one": timed(lambda: works(1.0), clock=clock), "two": timed(lambda: works(2.0), clock=clock)}
    found = medians(contenders, 41)
    assert abs(found["two"] / found["one"] - 2.0) < 0.05


def test_one_turn_that_was_disturbed_does_not_move_the_median() -> None:
    answers = iter([0.0, 1.0, 1.1, 500.0, 0.9, 1.0])
    assert medians({"a": lambda: next(answers)}, 5)["a"] == 1.0
