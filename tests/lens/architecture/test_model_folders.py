"""Folders of models by anybody: whatever lies in them is a model or one sentence."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx_lm import utils

from lens_tui import LensError, LensModel
from lens_tui.records import Request, read_files
from lens_tui.records.model_folder import check_sidecars, read_config, read_weights
from tests.folders import llama_folder
from tests.lens import tiny

ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
NUMBERS = [0, -1, 1, 7, True, 1.5, 10**12, 10**30, 2**31, 1e300, float("nan"), float("inf"), -float("inf")]
OTHERS: list[Any] = ["x", "", None, [], {}, [1, "x"], "nan", "\x1b[31m\u202e", "x" * 10_000]


def refused(folder: Path) -> str:
    """What is said of a folder, "" for a model that computes a loss."""
    said = ""
    try:
        LensModel(str(folder)).loss([1, 17, 5])
    except LensError as error:
        said = str(error)
    assert len(said) < 600
    assert said.isprintable()
    return said


def test_any_value_of_any_field_is_a_model_or_one_sentence(tmp_path: Path) -> None:
    """Seeded: another seed is another run of the same kind."""
    drawn = random.Random(7)
    folder = llama_folder(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    more = [
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "head_dim",
        "layer_types",
        "sliding_window",
        "quantization",
    ]
    fields = [*config, *more, "quantization_config", "text_config", "attention_bias", "architectures"]
    loaded = 0
    for _ in range(60):
        changed = {**config, drawn.choice(fields): drawn.choice([*NUMBERS, *OTHERS])}
        (folder / "config.json").write_text(json.dumps(changed))
        loaded += not refused(folder)
    assert 2 < loaded < 50


def test_any_bytes_in_any_file_are_a_model_or_one_sentence(tmp_path: Path) -> None:
    drawn = random.Random(11)
    good = llama_folder(tmp_path / "good")
    files = ("config.json", "tokenizer_config.json", "model.safetensors")
    for number in range(24):
        folder = tmp_path / f"m{number}"
        shutil.copytree(good, folder)
        file = folder / drawn.choice(files)
        data = bytearray(file.read_bytes())
        for _ in range(3):
            data[drawn.randrange(min(len(data), 2000))] = drawn.randrange(256)
        file.write_bytes(data[: drawn.randrange(len(data))] if number % 3 == 0 else data)
        refused(folder)


WHOLE = {
    "null": b"null",
    "a list": b"[]",
    "a text": b'"x"',
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 50_000,
    "not UTF-8": b'{"a": "\xff"}',
    "UTF-16": "{}".encode("utf-16"),
    "empty": b"",
    "digits": b'{"hidden_size":' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("data", WHOLE.values(), ids=WHOLE)
def test_other_json_in_place_of_a_configuration(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(LensError) as error:
        read_config(tmp_path)
    assert len(str(error.value)) < 400


def pipe(file: Path) -> None:
    os.mkfifo(file)


def device(file: Path) -> None:
    file.symlink_to("/dev/zero")


def sparse(file: Path) -> None:
    with file.open("wb") as opened:
        opened.truncate(50 << 30)


@pytest.mark.parametrize("place", [pipe, device, sparse, Path.mkdir])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
def test_what_is_no_file_is_not_opened(tmp_path: Path, name: str, place: Callable[[Path], None]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / name).unlink(missing_ok=True)
    place(tmp_path / name)
    if name != "config.json" and place is Path.mkdir:
        return  # a folder hides nothing: what is missing is said on loading
    with pytest.raises(LensError):
        {"config.json": read_config, "model.safetensors": read_weights}.get(name, check_sidecars)(tmp_path)


def test_a_tokenizer_of_another_kind_is_refused_before_anyone_parses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = llama_folder(tmp_path / "m")
    file = folder / "tokenizer.json"
    whole = json.loads(file.read_text())
    monkeypatch.setattr(utils, "load_tokenizer", lambda *_, **__: pytest.fail("parsed"))
    monkeypatch.setattr(utils, "load_model", lambda *_, **__: pytest.fail("built"))
    other = ",".join(f'"{number}":1' for number in range(300_000))
    for text, lacks in (
        ("{" + other + "}", '"model"'),
        ('{"model":{' + other + "}}", '"vocab"'),
        (json.dumps({**whole, "model": None}), '"vocab"'),
    ):
        file.write_text(text)
        assert f"tokenizer.json has no {lacks}" in refused(folder)


def test_a_key_is_found_where_two_pieces_of_a_file_meet(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    for first in range(read_files._PIECE - 12, read_files._PIECE + 3):
        head = '{"a":"'
        file.write_text(head + "x" * (first - len(head) - 2) + '","model":{"vocab":{}}}')
        assert file.read_bytes().index(b'"model"') == first
        check_sidecars(tmp_path)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("x.gguf", "GGUF"),
        ("pytorch_model.bin", "PyTorch"),
        ("consolidated.safetensors", "not named"),
        ("a", "no weights"),
    ],
)
def test_weights_that_mlx_lm_does_not_load_are_named(tmp_path: Path, name: str, says: str) -> None:
    folder = llama_folder(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / name)
    assert says in refused(folder)


def test_a_header_that_lies_is_found_before_the_weights_are_read(tmp_path: Path) -> None:
    for number, facts in enumerate(
        [
            {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 16]},
            {"dtype": "F32", "shape": [1] * 100_000, "data_offsets": [0, 4]},
            {"dtype": "F32", "shape": [4], "data_offsets": [0, 1 << 40]},
            {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
            [],
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        header = json.dumps({"w": facts}).encode()
        (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
        with pytest.raises(LensError, match=r"model\.safetensors"):
            read_weights(folder)


# -- chat templates ----------------------------------------------------------

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
PLACES: dict[str, Callable[[Path], Any]] = {
    "chat_template.json": lambda f: (f / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE})),
    "chat_template.jinja": lambda f: (f / "chat_template.jinja").write_text(TEMPLATE),
    "several": lambda f: (f / "chat_template.json").write_text(
        json.dumps({"chat_template": [{"name": "default", "template": TEMPLATE}, {"name": "tools", "template": "x"}]})
    ),
    "processor": lambda f: (f / "processor_config.json").write_text(json.dumps({"chat_template": TEMPLATE})),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_chat_template_is_found_wherever_it_lies(tmp_path: Path, place: Callable[[Path], Any]) -> None:
    folder = llama_folder(tmp_path / "tiny-instruct")
    facts = json.loads((folder / "tokenizer_config.json").read_text())
    facts.pop("chat_template")  # the bundled model's, of dialogues
    (folder / "tokenizer_config.json").write_text(json.dumps(facts))
    bare = LensModel(str(folder))
    assert bare.info.lacks_template
    with pytest.raises(LensError, match="no chat template"):
        bare.tokens.prompt([{"role": "user", "content": "hi"}])
    place(folder)
    lens = LensModel(str(folder))
    assert lens.info.has_chat_template
    assert not lens.info.lacks_template
    assert lens.tokens.decode(lens.tokens.prompt("hi").ids) == "<user>hi"


def test_a_template_without_end_is_ended(tmp_path: Path) -> None:
    folder = llama_folder(tmp_path / "m")
    (folder / "chat_template.jinja").write_text(ENDLESS)
    with pytest.raises(LensError, match="does not terminate"):
        LensModel(str(folder)).generate("hi", max_tokens=1)
    assert sys.gettrace() is None or "pytest_cov" in sys.modules


def test_a_tokenizer_that_fails_on_a_text_says_so(tmp_path: Path) -> None:
    folder = llama_folder(tmp_path / "m")
    facts = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**facts, "model_max_length": "x"}))
    with pytest.raises(LensError, match="tokenizer cannot take this text"):
        LensModel(str(folder)).generate("hi", max_tokens=1)


def test_the_lack_of_a_chat_template_is_said_under_the_lanes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lens_tui.cli.compare_verbs import compare

    for name, said in (("tiny-instruct", True), ("tiny-base", False)):
        compare("hi", model=str(llama_folder(tmp_path / name)), max_tokens=2)
        assert ("no chat template" in capsys.readouterr().err) == said


# -- ids that stand for no token ---------------------------------------------


def padded() -> LensModel:
    """A vocabulary of 8200 over a tokenizer of 8192 tokens, the last eight rows of the head by far the largest."""
    model = tiny.llama(vocab=8200)
    head = np.array(model.lm_head.weight)
    head[8192:] = 40.0 * head[:8]
    import mlx.core as mx

    model.lm_head.weight = mx.array(head)
    return LensModel.from_model(model, tiny.tokenizer())


def test_ids_that_stand_for_no_token_are_never_chosen_nor_listed() -> None:
    from lens_tui import attribute_logits, logit_lens

    lens = padded()
    ids = [1, 17, 5, 80]
    assert int(np.array(lens.forward(ids))[0, -1].argmax()) >= 8192  # the model itself prefers them
    for temp in (0.0, 1.5):
        tokens = list(lens.stream(ids, max_tokens=6, top=5, temp=temp, seed=3))
        assert all(token.token_id < 8192 for token in tokens)
        assert all(candidate.token_id < 8192 for token in tokens for candidate in token.top)
        assert all(len(token.top) == 5 for token in tokens)
    batch = lens.stream_batch([Request(tuple(ids)), Request(tuple(ids[:3]))], max_tokens=4, temp=1.0)
    list(batch)
    assert all(max(row.token_ids) < 8192 for row in batch.records)
    direction = np.array(lens.model.lm_head.weight)[8193]
    promoted, suppressed = lens.promoted(direction, 10)
    assert all(word.token_id < 8192 for word in (*promoted, *suppressed))
    read = logit_lens(lens, ids, top_k=5)
    assert read.top_ids.max() < 8192
    assert read.target_ids.max() < 8192
    assert max(attribute_logits(lens, ids).target_ids) < 8192


def test_few_files_that_may_be_open_are_enough() -> None:
    """mlx-lm asks for 4096 on import. As root, who may ask for more than the limit, the refusal is played."""
    code = (
        "import resource\n"
        "ask = resource.setrlimit\n"
        "def strict(kind, limits):\n"
        "    if limits[1] > 1024: raise ValueError('not allowed to raise maximum limit')\n"
        "    ask(kind, limits)\n"
        "resource.setrlimit = strict\n"
        "from lens_tui import LensModel\n"
        "print(LensModel('demo').info.name)\n"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, preexec_fn=limit, check=False)
    assert done.stdout.strip() == "demo", done.stderr[-300:]
