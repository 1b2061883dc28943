"""A captured data set is what the library reads of each text, whole or taken up where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import LensModel
from lens_tui.lens import room
from lens_tui.lens.read.activations import Windowing, text_activations
from lens_tui.records import LensError, Positions
from lens_tui.records.remote import OutFolder
from lens_tui.tasks import capture as captures
from lens_tui.tasks.capture import MANIFEST, CaptureReport, capture_texts, shard_spans
from tests.lens import tiny

TEXTS = [
    "The old man opened the door and saw that the sea had come up to the house in the night.",
    "Stir the soup.",
    "A letter lay on the table; nobody had read it, and the lamp beside it was still burning when they came home.",
    "Rain.",
    "She counted the boats twice.",
]
PLACES = [(1, "resid_post"), (-1, "mlp_out")]
SMALL: dict[str, Any] = {"context": 12, "rows": 2, "shard_bytes": 10_000}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return file


def model(**options: Any) -> LensModel:
    return LensModel.from_model(tiny.llama(vocab=8192, **options), tiny.tokenizer())


def shards(report: CaptureReport) -> dict[str, Any]:
    """All shards in one, token after token."""
    parts: list[dict[str, mx.array]] = [mx.load(shard) for shard in report.shards]  # type: ignore[misc]
    assert all(list(part) and set(part) == set(report.tensors) for part in parts)
    return {name: mx.concatenate([part[name] for part in parts]) for name in report.tensors}


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("options", [{}, {"dtype": mx.bfloat16}])
@pytest.mark.parametrize("shard_bytes", [1, 10_000, 25_000, 10_000_000])
def test_a_shard_ends_with_the_block_that_fills_it(
    options: dict[str, Any], shard_bytes: int, text: Path, tmp_path: Path
) -> None:
    out, lens = tmp_path / "out", model(**options)
    report = capture_texts(lens, text, out, PLACES, **{**SMALL, "shard_bytes": shard_bytes})
    held = json.loads((out / MANIFEST).read_text())
    windowing = Windowing(context=12, rows=2, packed=False, shuffle=False)
    source = text_activations(lens, text, PLACES, windowing=windowing)[0]
    blocks = [sum(values.nbytes for values in block.values.values()) for block in source.blocks(0, source.n_blocks)]
    ends = np.cumsum([shard["blocks"] for shard in held["shards"]]).tolist()
    assert ends[-1] == len(blocks)
    for file, begin, end in zip(report.shards, [0, *ends], ends, strict=False):
        arrays: dict[str, mx.array] = mx.load(file)  # type: ignore[assignment]
        size = sum(values.nbytes for name, values in arrays.items() if name.startswith("layer."))
        assert size == sum(blocks[begin:end])
        assert size - blocks[end - 1] < shard_bytes
        assert size >= shard_bytes or end == len(blocks)
    some = {**held, "shards": held["shards"][: len(ends) // 2]}
    spans = dict(enumerate(zip([0, *ends], ends, strict=False)))
    assert shard_spans(source, some, shard_bytes) == {n: spans[n] for n in spans if n >= len(ends) // 2}


@pytest.mark.parametrize("options", [{}, {"dtype": mx.bfloat16}, {"bits": 4}])
def test_every_token_of_every_text_is_there_with_what_it_reads_alone(
    options: dict[str, Any], text: Path, tmp_path: Path
) -> None:
    lens = model(**options)
    report = capture_texts(lens, text, tmp_path / "out", PLACES, **SMALL)
    assert len(report.shards) > 1
    assert not report.stopped
    held = shards(report)
    assert report.n_tokens == len(held["token_ids"])
    ids, documents, offsets = (np.array(held[name]) for name in ("token_ids", "documents", "offsets"))
    bos = lens.tokens.bos
    assert bos is not None
    dtype = lens.registry.decoder.dtype
    for number, words in enumerate(TEXTS):
        whole = list(lens.tokens.encode(words))[1:]
        mine = documents == number
        assert ids[mine & (offsets >= 0)].tolist() == whole
        for start in range(0, len(whole), 11):
            window = [bos, *whole[start : start + 11]]
            at = np.flatnonzero(mine & (offsets >= start) & (offsets < start + 11))
            first = at[0] - 1  # BOS
            assert (ids[first], offsets[first]) == (bos, -1)
            for layer, site in ((1, "resid_post"), (3, "mlp_out")):
                found = held[f"layer.{layer}.{site}"]
                assert found.dtype == dtype
                ours = np.array(found[int(first) : int(at[-1]) + 1].astype(mx.float32))
                alone = np.array(lens.residuals(window, layer, site=site).astype(mx.float32))
                np.testing.assert_allclose(ours, alone, atol=1e-4 if dtype == mx.float32 else 0.05 * abs(alone).max())
    assert np.array(held["special"]).tolist() == (ids == bos).tolist()


def test_stopped_and_taken_up_it_writes_the_same_bytes(text: Path, tmp_path: Path) -> None:
    lens = model()
    whole = capture_texts(lens, text, tmp_path / "whole", PLACES, **SMALL)
    said: list[int] = []
    report = capture_texts(lens, text, tmp_path / "cut", PLACES, **SMALL, progress=lambda now: said.append(now.block))
    before = bytes_of(tmp_path / "cut")
    assert before == bytes_of(tmp_path / "whole")
    assert said == list(range(1, said[-1] + 1))
    # Killed between a shard and the manifest, or with the last shards gone: they are written again.
    manifest = json.loads((tmp_path / "cut" / MANIFEST).read_text())
    manifest["shards"] = manifest["shards"][:1]
    (tmp_path / "cut" / MANIFEST).write_text(json.dumps(manifest))
    capture_texts(lens, text, tmp_path / "cut", PLACES, **SMALL)
    assert bytes_of(tmp_path / "cut") == before
    Path(report.shards[1]).unlink()
    capture_texts(lens, text, tmp_path / "cut", PLACES, **SMALL)
    assert bytes_of(tmp_path / "cut") == before
    # Finished, nothing is computed again.
    lens.registry.between = lambda: pytest.fail("computed")
    again = capture_texts(lens, text, tmp_path / "cut", PLACES, **SMALL, progress=lambda _: pytest.fail("read"))
    assert (again.n_tokens, again.stopped) == (whole.n_tokens, False)


def test_a_stop_keeps_what_was_read(text: Path, tmp_path: Path) -> None:
    lens = model()
    whole = capture_texts(lens, text, tmp_path / "whole", PLACES, **SMALL)
    asked = iter([False, True])
    report = capture_texts(lens, text, tmp_path / "cut", PLACES, **SMALL, should_stop=lambda: next(asked))
    assert report.stopped
    assert 0 < report.n_tokens < whole.n_tokens
    done = capture_texts(lens, text, tmp_path / "cut", PLACES, **SMALL)
    assert not done.stopped
    ours, theirs = shards(done), shards(whole)
    for name in whole.tensors:
        np.testing.assert_array_equal(np.array(ours[name]), np.array(theirs[name]))


def test_steered_windows_are_steered_at_their_own_ends(text: Path, tmp_path: Path) -> None:
    lens = model()
    record = tiny.add(5.0, layer=1, positions=Positions("last"))
    plain = shards(capture_texts(lens, text, tmp_path / "plain", PLACES, **SMALL))
    moved = shards(capture_texts(lens, text, tmp_path / "moved", PLACES, interventions=[record], **SMALL))
    far = np.linalg.norm(np.array(moved["layer.1.resid_post"] - plain["layer.1.resid_post"]), axis=1)
    special = np.array(plain["special"])
    ends = np.append(special[1:], True)  # the next window begins
    assert ((far > 1.0) == ends).all()
    np.testing.assert_allclose(far[ends], 5.0, rtol=1e-3)
    assert lens.hooked == ()


def test_what_cannot_be_is_one_sentence(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lens = model()
    capture_texts(lens, text, tmp_path / "out", PLACES, **SMALL)
    for changed, says in (
        ({"places": [(0, "resid_post")]}, "differ in places"),
        ({"interventions": [tiny.add(1.0)]}, "differ in interventions"),
        ({"context": 16}, "differ in context"),
    ):
        asked: dict[str, Any] = {"places": PLACES, **SMALL, **changed}
        with pytest.raises(LensError, match=says):
            capture_texts(lens, text, tmp_path / "out", **asked)
    with pytest.raises(LensError, match="no layer 9"):
        capture_texts(lens, text, tmp_path / "new", [(9, "resid_post")])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.safetensors").write_bytes(b"")
    with pytest.raises(LensError, match="holds other files"):
        capture_texts(lens, text, tmp_path / "other", PLACES)
    for damage in ("[]", "{", '{"shards": 3}'):
        (tmp_path / "out" / MANIFEST).write_text(damage)
        with pytest.raises(LensError):
            capture_texts(lens, text, tmp_path / "out", PLACES, **SMALL)
    monkeypatch.setattr(room, "SMALL", 1)
    monkeypatch.setattr(room, "memory_left", lambda: 2 * 10_000 + 24 * 128 * 4 - 1)
    with pytest.raises(LensError, match=r"A capture of 2 places over 24 tokens .*shard_bytes"):
        capture_texts(lens, text, tmp_path / "new", PLACES, **SMALL)


def test_no_more_than_a_shard_waits_in_memory(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    write = captures.write_shard

    def watched(folder: OutFolder, number: int, blocks: Any) -> dict[str, Any]:
        sizes.append(sum(values.nbytes for block in blocks for values in block.values.values()))
        return write(folder, number, blocks)

    monkeypatch.setattr(captures, "write_shard", watched)
    capture_texts(model(), text, tmp_path / "out", PLACES, **SMALL)
    block = 2 * 12 * 128 * 4
    assert max(sizes) < 10_000 + block
