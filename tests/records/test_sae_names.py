"""An SAE typed with the place it reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from lens_tui.records.info import split_place


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("my-sae", ("my-sae", None, None)),
        ("my-sae@4", ("my-sae", 4, "resid_post")),
        ("a/b.pt@12:mlp_out", ("a/b.pt", 12, "mlp_out")),
        ("org@home/x@3:attn_z", ("org@home/x", 3, "attn_z")),
        ("x@four", ("x@four", None, None)),
        ("@4", ("@4", None, None)),
        ("x@-1", ("x@-1", None, None)),
    ],
)
def test_the_place_stands_after_the_last_at(typed: str, meant: tuple[str, int | None, str | None]) -> None:
    assert split_place(typed) == meant


def test_what_exists_is_taken_as_it_stands(tmp_path: Path) -> None:
    folder = tmp_path / "sae@4"
    folder.mkdir()
    assert split_place(str(folder)) == (str(folder), None, None)
