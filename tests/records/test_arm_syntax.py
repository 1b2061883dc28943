"""An arm in words: read, refused with the form that is expected, and written so that it is read again."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lens_tui.records import EditPattern, LensError, Positions
from lens_tui.records.arm_syntax import ArmSpec, GateTerm, Term, edge_term, parse_arm, written_arm
from lens_tui.records.interventions import MODES, POSITIONS, mode_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("f1288*22", ArmSpec("f1288*22", (Term("feature", "1288", None, 22.0),))),
        ("1288@4*-2.5", ArmSpec("1288@4*-2.5", (Term("feature", "1288", 4, -2.5),))),
        ("cook=f7*20", ArmSpec("cook", (Term("feature", "7", None, 20.0),))),
        (
            "mix = f7@-1*1e2 + random:3@5*12",
            ArmSpec("mix", (Term("feature", "7", -1, 100.0), Term("random", "3", 5, 12.0))),
        ),
        (
            "a+b/verse.safetensors*8",
            ArmSpec("a+b/verse.safetensors*8", (Term("file", "a+b/verse.safetensors", None, 8.0),)),
        ),
        (
            "f1*1e+2+f2*.5",
            ArmSpec("f1*1e+2+f2*.5", (Term("feature", "1", None, 100.0), Term("feature", "2", None, 0.5))),
        ),
        ("f1@3*.5:norm_match", ArmSpec("f1@3*.5:norm_match", (Term("feature", "1", 3, 0.5, "norm_match"),))),
        ("f1*2:generated", ArmSpec("f1*2:generated", (Term("feature", "1", None, 2.0, "add", "generated"),))),
        (
            "x=f1:project_out+random:0@2*3:last:set",
            ArmSpec(
                "x",
                (
                    Term("feature", "1", None, 0.0, "project_out"),
                    Term("random", "0", 2, 3.0, "set", "last"),
                ),
            ),
        ),
        (
            "x=f1*2:last?f75>1.5+f9@3*-4?a+b/p.safetensors@-2<-.5",
            ArmSpec(
                "x",
                (
                    Term("feature", "1", None, 2.0, "add", "last", gate=GateTerm("feature", "75", None, 1.5)),
                    Term("feature", "9", 3, -4.0, gate=GateTerm("file", "a+b/p.safetensors", -2, -0.5, "below")),
                ),
            ),
        ),
        (
            "k.gguf@all*.5:last",
            ArmSpec("k.gguf@all*.5:last", (Term("file", "k.gguf", None, 0.5, "add", "last", every=True),)),
        ),
        (
            "f1:project_out?random:0@2>0",
            ArmSpec(
                "f1:project_out?random:0@2>0",
                (Term("feature", "1", None, 0.0, "project_out", gate=GateTerm("random", "0", 2, 0.0)),),
            ),
        ),
    ],
)
def test_an_arm_is_read(text: str, expected: ArmSpec) -> None:
    assert parse_arm(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "f1288",
        "f1288*",
        "*22",
        "f1*2+",
        "f1*2+f3",
        "random:*3",
        "random:x*3",
        "f1*nan",
        "f1*2:sideways",
        "f1*2:add:set",
        "f1*2:all:last",
        "f1:generated",
        "f1*2?f3",
        "f1@all*2",
        "f1*2?f3>",
        "f1*2?>1",
        "f1*2?f3>1?f4>2",
        "f1*2?random:x@2>1",
    ],
)
def test_what_is_no_arm_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(LensError) as refused:
        parse_arm(text)
    assert "arm" in str(refused.value)


def test_a_term_without_a_scale_takes_the_one_given() -> None:
    assert parse_arm("f1@2", 1.0).terms == (Term("feature", "1", 2, 1.0),)
    assert parse_arm("f1*2+f3", 1.0).terms == (Term("feature", "1", None, 2.0), Term("feature", "3", None, 1.0))


@pytest.mark.parametrize("text", ["f2666", "f2666@3", "random:0@4", "f7*2+f9", "cook=f2666:generated"])
def test_an_arm_without_a_scale_says_so(text: str) -> None:
    if text == "f7*2+f9":
        assert parse_arm(text, scale=1.0).terms[1].scale == 1.0
    with pytest.raises(LensError, match="it has no scale"):
        parse_arm(text)


@pytest.mark.parametrize(("text", "scale"), [("f2666*bad", "bad"), ("random:0@4*nan", "nan"), ("f7*2+f9*1,5", "1,5")])
def test_a_scale_that_is_no_number_is_named(text: str, scale: str) -> None:
    with pytest.raises(LensError, match=f"'{scale}' behind the '\\*' is not a number"):
        parse_arm(text)


SOURCES: st.SearchStrategy[tuple[Literal["feature", "random", "file"], str]] = st.one_of(
    st.tuples(st.just("feature"), st.integers(0, 10**9 - 1).map(str)),
    st.tuples(st.just("random"), st.integers(0, 10**18 - 1).map(str)),
    st.tuples(st.just("file"), st.sampled_from(["king.gguf", "a+b/verse.safetensors", "run=3/v.npz", "f1.gguf:name"])),
)


LAYERS = st.one_of(st.none(), st.integers(-99, 99))


@st.composite
def gates(draw: st.DrawFn) -> GateTerm:
    (kind, source), threshold = draw(SOURCES), draw(st.floats(allow_nan=False, allow_infinity=False))
    return GateTerm(kind, source, draw(LAYERS), threshold, draw(st.sampled_from(["above", "below"])))


@st.composite
def terms(draw: st.DrawFn) -> Term:
    (kind, source), mode = draw(SOURCES), draw(st.sampled_from([mode.id for mode in MODES]))
    scale = draw(st.floats(allow_nan=False, allow_infinity=False)) if mode_of(mode).amount else 0.0
    layer = draw(LAYERS)
    gate = draw(st.one_of(st.none(), gates()))
    every = kind == "file" and layer is None and draw(st.booleans())
    return Term(kind, source, layer, scale, mode, draw(st.sampled_from(list(POSITIONS))), gate=gate, every=every)


@given(st.sampled_from(["", "cook", "a=b", "at@3", "x*2"]), st.lists(terms(), min_size=1, max_size=3))
def test_what_is_written_is_read_again(name: str, written: list[Term]) -> None:
    read = parse_arm(written_arm(name, written, "arm 1"))
    assert read.terms == tuple(written)
    assert name != "cook" or read.name == name


@pytest.mark.parametrize(
    ("written", "layer", "heads", "positions"),
    [
        ("head:7.4", 7, (4,), "all"),
        ("head:0.4,5:generated", 0, (4, 5), "generated"),
        ("off=head:12.0:user", 12, (0,), "role"),
    ],
)
def test_heads_are_taken_away_by_their_numbers(
    written: str, layer: int, heads: tuple[int, ...], positions: str
) -> None:
    (term,) = parse_arm(written).terms
    record = term.heads_off("x")
    assert (record.layer, record.heads, record.positions.kind, record.mean) == (layer, heads, positions, None)
    assert parse_arm(term.written).terms == (term,)


def test_heads_stand_beside_other_terms_and_have_no_scale() -> None:
    terms = parse_arm("both=head:7.4+f2666*22+head:6.5:generated+random:0@4*2").terms
    assert [term.kind for term in terms] == ["head", "feature", "head", "random"]
    assert [term.source for term in terms] == ["7.4", "2666", "6.5", "0"]
    gated = parse_arm("head:7.4?f75>1.5").terms[0]
    assert gated.gate is not None
    assert gated.written == "head:7.4?f75>1.5"
    for wrong in ("head:7.4*3", "head:7.4@2", "head:7.4:set"):
        with pytest.raises(LensError, match="heads"):
            parse_arm(wrong)


@pytest.mark.parametrize(
    ("written", "layer", "heads", "sources", "looking", "renormalise"),
    [
        ("edge:7.4:5", 7, (4,), (5,), Positions(), True),
        ("off=edge:0.4,5:2,-3:zero:generated", 0, (4, 5), (2, -3), Positions("generated"), False),
        ("edge:3:11,12/0", 3, (), (0,), Positions("indices", (11, 12)), True),
        ("edge:3.1:user:assistant", 3, (1,), "user", Positions("role", role="assistant"), True),
    ],
)
def test_edges_are_cut_by_their_numbers(
    written: str, layer: int, heads: tuple[int, ...], sources: Any, looking: Positions, renormalise: bool
) -> None:
    (term,) = parse_arm(written).terms
    record = term.edge_cut("x")
    assert (record.layer, record.heads, record.positions, record.renormalise) == (layer, heads, looking, renormalise)
    named = Positions("role", role=sources) if isinstance(sources, str) else Positions("indices", sources)
    assert record.sources == named
    assert parse_arm(term.written).terms == (term,)
    assert edge_term(record, None) == term


def test_edges_stand_beside_other_terms_and_what_no_edge_is_is_refused() -> None:
    terms = parse_arm("both=edge:7.4:5+f2666*22+edge:6:0:zero+head:6.5+edge:1.1:3/2?f75>1.5").terms
    assert [term.kind for term in terms] == ["edge", "feature", "edge", "head", "edge"]
    assert terms[-1].gate is not None
    for wrong in ("edge:7.4", "edge:7.4:5*3", "edge:7.4:5/2:last", "edge:7.4:5@2", "edge:x:5", "edge:7.4:nobody"):
        with pytest.raises(LensError, match="cannot be read") as caught:
            parse_arm(wrong)
        assert "edge:LAYER.HEAD:SOURCE" in (caught.value.hint or "")
    weights = EditPattern(id="w", layer=1, weights=np.eye(3, dtype=np.float32)[None])
    assert edge_term(weights, None) is None


def test_an_arm_is_not_called_as_the_plain_one_is() -> None:
    with pytest.raises(LensError, match="has the name of the plain one"):
        parse_arm("baseline=f1*2")
    assert parse_arm("baseline.safetensors*2").terms[0].source == "baseline.safetensors"
    written = written_arm("baseline", parse_arm("a=f1*2").terms, "arm 1")
    assert parse_arm(written).terms == parse_arm("f1*2").terms
