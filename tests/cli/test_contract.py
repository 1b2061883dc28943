"""What a script may rely on: one JSON object a call, with its model, an error as JSON too, the exit statuses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from lens_tui import LensModel
from lens_tui.cli.command import app
from lens_tui.records.cause_plan import PatchPlan
from lens_tui.records.sanitise import sanitise_token
from lens_tui.records.store import Store
from lens_tui.tasks.causes import answer, keep_cause
from tests.folders import llama_folder, sae_folder, transcoder_folder
from tests.hub import FakeHub, use_hub

# Text with all that a terminal would act on, and a file name of it.
NASTY = "the \u202ecat\u2066 \x9b31m\x7f \u2028\u2029\u200b\u200d\ufeff sat"
TRAIN = ["--layer", "1", "--width", "16", "-k", "2", "-n", "256", "--batch", "64", "--rows", "4", "--context", "24"]

VERBS: dict[str, list[str]] = {
    "compare": [NASTY, "-a", "f3*2", "--max-tokens", "2", "--keep", "SAE"],
    "runs list": [],
    "runs show": ["1"],
    "runs export": ["1", "-o", "OUT"],
    "runs tally": [],
    "replay": ["1"],
    "features": [NASTY, "-k", "2", "SAE"],
    "info": [],
    "config": ["--check", "SETTINGS"],
    "keys": [],
    "glossary": ["fvu"],
    "completion": ["zsh"],
    "lens": [NASTY, "--attribute"],
    "patch": ["the cat sat", "the dog sat", "--metric", "kl", "-l", "1"],
    "graph": [NASTY, "-t", "TRANSCODERS", "--check", "1"],
    "causes list": [],
    "causes show": ["1"],
    "causes export": ["1", "-o", "OUT"],
    "causes delete": ["1", "--yes"],
    "loss": [NASTY, "-a", "f3*2", "SAE"],
    "generate": ["PROMPT", "-a", "f3*2", "--max-tokens", "2", "SAE"],
    "feature": ["3", "SAE"],
    "search": ["sea", "SAE"],
    "contrast": ["LINES", "LINES", "SAE"],
    "capture": ["LINES", "-o", "OUT", "-l", "1", "-a", "f3*2", "SAE"],
    "train-sae": ["LINES", "-o", "OUT", *TRAIN],
    "index": ["LINES", "-o", "OUT", "--shard", "0/2", "--context", "24", "SAE"],
    "index-merge": ["SHARD", "OTHER", "-o", "OUT", "SAE"],
    "check-sae": ["", "SAE"],
    "dose": [NASTY, "-a", "f3*2", "--scales", "1", "--max-tokens", "2", "--texts", "2", "--controls", "0", "SAE"],
    "scale": ["-a", "f3", "--by", "relative_norm", "SAE"],
    "vector contrast": [NASTY, "-p", "the dog ran", "-n", "the cat sat", "-l", "1", "-o", "VECTOR"],
    "vector random": ["-l", "1", "--seed", "3", "-o", "VECTOR"],
    "vector token": ["id:7", "-l", "1", "-o", "VECTOR"],
    "vector feature": ["3", "-o", "VECTOR", "SAE"],
    "vector sum": [NASTY, "f3", "random:0@1*0.5", "-o", "VECTOR", "SAE"],
    "behaviour": ["ASKED", "-a", "f3*2", "SAE"],
    "bake": ["-a", "random:1@1*0.5", "-o", "OUT", "--texts", "1"],
    "probe train": ["LABELLED", "-n", NASTY, "-l", "1", "--permutations", "2", "-o", "PROBE"],
    "probe evaluate": ["PROBE", "LABELLED"],
    "probe apply": ["PROBE", NASTY],
    "probe list": [],
    "jlens fit": ["LINES", "-n", "2", "--context", "12", "--skip", "2"],
    "jlens show": [NASTY],
    "jlens vector": ["id:7", "-l", "0", "-o", "JVECTOR"],
    "jlens swap": [NASTY, "id:7", "id:9", "-l", "0"],
    "lists keep": ["a list", "3", "f5", "SAE"],
    "lists list": [],
    "lists show": ["a list", "SAE"],
    "lists export": ["a list", "-o", "OUT", "SAE"],
    "lists delete": ["a list", "SAE"],
    "lists restore": ["a list", "SAE"],
    "labels set": ["3", NASTY, "SAE"],
    "labels show": ["SAE"],
    "labels search": ["sat", "SAE"],
    "labels export": ["FOLDER", "-f", "delphi", "SAE"],
    "labels import": ["FOLDER", "-f", "delphi", "SAE"],
    "models fetch": ["org/tiny"],
    "models list": [],
    "models remove": ["org/tiny", "--yes"],
    "publish": ["VECTOR", "org/vector", "--yes"],
    "pull": ["org/vector"],
}
"""Every verb with arguments that it can do something with, in an order in which each finds what it needs."""

MAY_NOT_FIT = {"check-sae": 1}
WITHOUT_A_MODEL = (
    "config",
    "causes list",
    "causes delete",
    "keys",
    "glossary",
    "completion",
    "lists list",
    "probe list",
    "models fetch",
    "models list",
    "models remove",
    "publish",
    "pull",
    "runs list",
    "runs tally",
)
OF_A_RUN = ("runs show", "runs export", "causes show", "causes export")


def verbs(group: Any = None, before: str = "") -> Iterator[str]:
    """The verbs that there are, as the parser knows them."""
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from verbs(command, f"{before}{name} ")
        else:
            yield f"{before}{name}"


STAY = {"serve", "mcp"}
"""Verbs that answer others until they are ended, and have tests of their own."""


def test_every_verb_is_walked() -> None:
    assert set(verbs()) == set(VERBS) | STAY


@pytest.mark.parametrize("verb", sorted(set(VERBS) | STAY))
def test_every_argument_and_option_is_explained(verb: str) -> None:
    command: Any = typer.main.get_command(app)
    for word in verb.split():
        command = command.commands[word]
    assert [option.name for option in command.params if not option.help] == []


@pytest.mark.parametrize("group", [[], ["vector"], ["labels"], ["models"], ["probe"], ["jlens"], ["runs"], ["causes"]])
def test_no_line_of_the_help_is_cut(group: list[str]) -> None:
    done = CliRunner().invoke(app, [*group, "--help"], env={"COLUMNS": "80"})
    assert done.exit_code == 0
    assert "..." not in done.stdout.replace("[ARGS]...", "")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("contract")
    lines = root / "lines.txt"
    lines.write_text("The ship sailed over the cold sea and the waves rose.\n" * 12)
    (root / "settings.toml").write_text('[look]\ntint = "bars"\n')
    prompt = root / "prompt.txt"
    prompt.write_text(NASTY + "\n", encoding="utf-8")
    labelled = root / "labelled.jsonl"
    labelled.write_text(
        "".join(f'{{"text": "{"the cat" if at % 2 else "a dog"} {at}", "label": {at % 2}}}\n' for at in range(8))
    )
    asked = root / "asked.jsonl"
    asked.write_text(
        json.dumps({"question": "Is it?", "answer_matching_behavior": " yes", "answer_not_matching_behavior": " no"})
    )
    names = {
        "MODEL": str(llama_folder(root / "tiny")),
        "SAE": str(sae_folder(root / "layer_1_width_64")),
        "TRANSCODERS": str(transcoder_folder(root / "transcoders")),
        "LINES": str(lines),
        "PROMPT": str(prompt),
        "FOLDER": str(root / "labels"),
        "LABELLED": str(labelled),
        "ASKED": str(asked),
        "PROBE": str(root / "probe.safetensors"),
        "JVECTOR": str(root / "jvector.safetensors"),
        "VECTOR": str(root / "vector.safetensors"),
        "SETTINGS": str(root / "settings.toml"),
        "home": str(root / "home"),
    }
    return names


def typed(verb: str, work: dict[str, str], **changes: str) -> list[str]:
    names = {**work, **changes}
    words: list[str] = verb.split()
    for word in VERBS[verb]:
        words += ["-s", names["SAE"]] if word == "SAE" else [names.get(word, word)]
    return words


def invoke(arguments: list[str]) -> Any:
    done = CliRunner().invoke(app, arguments)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def keep_a_map(model: str) -> None:
    """What Causes does: the app alone keeps maps and graphs."""
    lens = LensModel(model)
    found = answer(lens, PatchPlan(NASTY, NASTY.replace("sat", "ran"), metric="kl", by="head"))
    with Store() as store:
        assert keep_cause(store, lens.info, found).kept == 1


@pytest.fixture(scope="module")
def walked(work: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each verb says with ``--json``, one after the other."""
    said: dict[str, Any] = {}
    tiny = {file.name: file.read_bytes() for file in Path(work["MODEL"]).iterdir()}
    with pytest.MonkeyPatch.context() as patch, FakeHub({"org/tiny": tiny}).serve() as hub:
        patch.setenv("LENS_TUI_HOME", work["home"])
        use_hub(patch, hub.url, tmp_path_factory.mktemp("hub"))
        patch.setenv("HF_TOKEN", hub.token)
        keep_a_map(work["MODEL"])
        shards = ["", ""]
        for verb in VERBS:
            out = str(tmp_path_factory.mktemp("out") / "made")
            model = [] if verb in (*WITHOUT_A_MODEL, *OF_A_RUN) else ["-m", work["MODEL"]]
            words = [*typed(verb, work, OUT=out, SHARD=shards[0], OTHER=shards[1]), *model, "--json"]
            said[verb] = invoke(words)
            if verb == "index":
                other = invoke([word.replace("0/2", "1/2") for word in words])
                shards = [json.loads(done.stdout)["parts"][0] for done in (said[verb], other)]
    return said


@pytest.mark.parametrize("verb", VERBS)
def test_json_is_one_safe_object_with_its_model(verb: str, walked: dict[str, Any], work: dict[str, str]) -> None:
    done = walked[verb]
    assert done.exit_code in (0, MAY_NOT_FIT.get(verb, 0)), done.output
    line, rest = done.stdout.split("\n")
    assert rest == ""
    assert sanitise_token(line) == line
    assert not set("\u200b\u200c\u200d") & set(line)
    result = json.loads(line)
    assert result["model"] in ((None,) if verb in WITHOUT_A_MODEL else (work["MODEL"], Path(work["MODEL"]).name))
    assert "error" not in result
    if "SAE" in VERBS[verb] and not verb.startswith(
        ("index", "vector", "compare", "dose", "behaviour", "scale", "loss", "generate", "capture")
    ):
        assert result["sae_id"].startswith("sae-")
        assert result["sae"]


@pytest.mark.parametrize(
    ("verb", "where"),
    [
        *((verb, "prompt") for verb in ("compare", "generate", "dose")),
        *((verb, "name") for verb in ("vector contrast", "vector sum")),
    ],
)
def test_what_was_given_comes_back_character_for_character(verb: str, where: str, walked: dict[str, Any]) -> None:
    assert json.loads(walked[verb].stdout)[where] == NASTY


@pytest.mark.parametrize("verb", VERBS)
def test_an_error_is_json_too_and_one_sentence(verb: str, work: dict[str, str], tmp_path: Path) -> None:
    nowhere = str(tmp_path / "no\u202ewhere")
    gone = dict.fromkeys(("SHARD", "OTHER", "SAE", "LINES", "PROMPT", "FOLDER"), nowhere)
    arguments = typed(verb, work, OUT=str(tmp_path / "o"), **gone)
    done = invoke([*arguments, "-m", nowhere, "--json"])
    assert done.exit_code == 2, done.output
    error = json.loads(done.stdout)["error"]
    assert set(error) == {"message", "hint"}
    assert error["message"]
    for text in (error["message"], error["hint"], done.stderr.rstrip("\n")):
        assert sanitise_token(text) == text
    assert done.stderr == f"mlx-lens-tui: {error['message']} {error['hint']}".rstrip() + "\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compare", "x", "--nonsense\x1b[31m\u202e"], "No such option"),
        (["lens"], "Missing argument"),
        (["compare"], "no prompt"),
        (["compare", "x", "a\u202e\u2028b", "\x9b31m"], "extra argument"),
        (["no\u202everb"], "No such command"),
        (["compare", "x", "--max-tokens", "\u202e3"], "--max-tokens"),
    ],
)
def test_what_the_parser_refuses_is_said_as_a_verb_says_it(arguments: list[str], words: str) -> None:
    done = invoke([*arguments, "--json"])
    assert done.exit_code == 2
    assert words in done.stderr
    assert sanitise_token(done.stderr.rstrip("\n")) == done.stderr.rstrip("\n")
    assert words in json.loads(done.stdout)["error"]["message"]
    plain = invoke(arguments)
    assert (plain.exit_code, plain.stdout, plain.stderr) == (2, "", done.stderr)


@pytest.mark.parametrize("verb", ["compare", "features", "lens", "search", "labels set", "vector contrast"])
def test_an_argument_that_is_no_utf8_is_one_sentence(verb: str, work: dict[str, str], tmp_path: Path) -> None:
    arguments = ["caf\udce9" if word == NASTY else word for word in typed(verb, work)]
    arguments = [*arguments, "-m", work["MODEL"]] if "caf\udce9" in arguments else [*arguments, "-m", "caf\udce9"]
    done = invoke([*arguments, "--json"])
    assert done.exit_code == 2, done.output
    assert "'caf⟨U+DCE9⟩' is not UTF-8" in json.loads(done.stdout)["error"]["message"]


def test_standard_input_is_taken_byte_for_byte_and_must_be_utf8(work: dict[str, str]) -> None:
    arguments = ["compare", "-", "-m", work["MODEL"], "--max-tokens", "1", "--json"]
    text = "the cat\r\nsat e\u0301 \u202e\u0085 日本\r\n"
    done = CliRunner().invoke(app, arguments, input=text.encode())
    assert json.loads(done.stdout)["prompt"] == text
    done = CliRunner().invoke(app, arguments, input=b"caf\xe9 the")
    assert done.exit_code == 2
    assert json.loads(done.stdout)["error"]["message"] == "Standard input is not UTF-8 at byte 3."


@pytest.mark.usefixtures("shell_signals")
def test_ctrl_c_prints_what_came_so_far(work: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    from lens_tui.cli import compare_verbs as verb
    from lens_tui.records import Token

    arguments = ["compare", "the cat", "-a", "random:0@1*2", "-m", work["MODEL"], "--max-tokens", "40"]
    whole = json.loads(invoke([*arguments, "--json"]).stdout)
    assert whole["stopped"] is False

    heard = 0

    class Ask(type):
        """Stands for the class of tokens in the verb, which asks of each event whether it is one."""

        def __instancecheck__(cls, event: object) -> bool:
            nonlocal heard
            if found := isinstance(event, Token):
                heard += 1
                if heard == 7:
                    signal.raise_signal(signal.SIGINT)
            return found

    monkeypatch.setattr(verb, "Token", Ask("Token", (), {}))
    done = invoke([*arguments, "--json"])
    assert done.exit_code == 130
    result = json.loads(done.stdout)
    assert result["stopped"] is True
    for arm, all_of_it in zip(result["arms"], whole["arms"], strict=True):
        n = len(arm["token_ids"])
        assert 3 <= n < 40
        assert arm["token_ids"] == all_of_it["token_ids"][:n]
        assert arm["reason"] == "stopped"
    heard = 0
    done = invoke(arguments)
    assert done.exit_code == 130
    assert done.stdout.startswith("── baseline")


def test_ctrl_c_before_there_is_anything_is_an_error_of_status_130(
    work: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lens_tui.cli import read_verbs as verb

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(verb, "open_sae", interrupted)
    done = invoke([*typed("features", work), "-m", work["MODEL"], "--json"])
    assert done.exit_code == 130
    assert json.loads(done.stdout)["error"]["message"] == "Stopped."


def test_a_defect_is_no_refusal(work: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    from lens_tui.cli import read_verbs as verb

    def broken(*_: object) -> None:
        raise TypeError("\x1b[31mboom")

    monkeypatch.setattr(verb, "open_sae", broken)
    done = invoke([*typed("features", work), "-m", work["MODEL"], "--json"])
    assert done.exit_code == 70
    assert "␛[31mboom" in json.loads(done.stdout)["error"]["message"]
    assert "Traceback" in done.stderr
    assert "\x1b" not in done.stderr


ASK = "import sys; from lens_tui.cli import main; sys.argv[1:] = {arguments}; main()"


def shell(redirect: str, arguments: list[str], **environment: str) -> tuple[int, bytes, str]:
    command = f'exec "$0" -c "$1" {redirect}'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, ASK.format(arguments=arguments)],
        capture_output=True,
        check=False,
        timeout=300,
        env={**os.environ, **environment},
    )
    return done.returncode, done.stdout, done.stderr.decode()


@pytest.mark.parametrize("arguments", [["labels", "show", "--json"], ["labels", "show"], ["--help"], ["--version"]])
@pytest.mark.parametrize(
    ("redirect", "words"), [("> /dev/full", "No space left on device"), (">&-", "Standard output is closed")]
)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_one_sentence(redirect: str, words: str, arguments: list[str]) -> None:
    code, _, said = shell(redirect, arguments)
    assert code == 2
    assert words in said
    assert len(said.strip().splitlines()) == 1


def test_other_streams_may_be_closed() -> None:
    assert shell("2>&-", ["labels", "show", "1288"])[0] == 0
    code, _, said = shell("<&-", ["lens", "-"])
    assert (code, said.count("\n")) == (2, 1)
    assert "empty" in said


@pytest.mark.parametrize(
    "arguments", [["labels", "search", "é日"], ["labels", "search", "é日", "--json"], ["dose", "-h"]]
)
def test_an_ascii_terminal_gets_ascii(arguments: list[str]) -> None:
    home = {"PYTHONIOENCODING": "ascii", "COLUMNS": "80"}
    setting = shell("", ["labels", "set", "7", "é日", "--json"], **home)
    assert setting[0] == 0
    assert json.loads(setting[1])["label"]["text"] == "é日"
    code, out, _ = shell("", arguments, **home)
    assert code == 0
    assert out.isascii()
    if arguments[0] == "labels":
        assert b"\\xe9\\u65e5" in out or b"\\u00e9\\u65e5" in out


def test_a_reader_that_goes_away_is_no_error() -> None:
    assert shell("| head -c 1 > /dev/null; exit ${PIPESTATUS[0]}", ["labels", "show"])[0] == 0


PAGE = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (`[a-z].*?) \| (.*) \|$", PAGE, re.MULTILINE)
OTHER_FORMS = {
    "config": {"setting", "value", "default", "says", "may_be"},  # of one setting, by name
    "generate": {"monitors", "readings"},  # with --monitor
    "train-sae": {"layers", "replaced_loss"},  # of several layers
    "probe train": {"sae", "features", "weights", "bias", "held_out"},  # with --sparse
}
KEYS = {verb: re.findall(r"`(\w+)`", keys) for verbs, keys in ROWS for verb in re.findall(r"`([a-z -]+)", verbs)}


@pytest.mark.parametrize("verb", VERBS)
def test_the_keys_of_each_verb_are_on_the_page(verb: str, walked: dict[str, Any]) -> None:
    documented = KEYS.get(verb, KEYS.get(verb.split()[0] + " ", []))
    given = set(json.loads(walked[verb].stdout))
    if verb == "info":
        assert {"model", "sites", "dtype"} <= given
    else:
        assert given - set(documented) == set()
        assert (
            set(documented) - given - {"null", "dashboards", "files", "messages"} - OTHER_FORMS.get(verb, set())
            == set()
        )


def test_a_setting_by_name_has_the_keys_of_the_page() -> None:
    given = set(json.loads(invoke(["config", "look.theme", "--json"]).stdout))
    assert given == OTHER_FORMS["config"] | {"model"}


def test_the_statuses_are_on_the_page() -> None:
    from lens_tui.cli import output

    for status in (0, output.USER_ERROR, output.DEFECT, output.INTERRUPTED):
        assert f"| {status} |" in PAGE


def test_generate_prints_a_line_for_each_prompt_in_their_order(work: dict[str, str]) -> None:
    from lens_tui import LensModel

    lens = LensModel(work["MODEL"])
    prompts = ["the ship", "Chop the onions, fry them in butter\u2028 x", "a"]
    typed_in = "the ship\r\n\n" + json.dumps({"prompt": prompts[1]}) + "\na\n"
    common = ["-m", work["MODEL"], "--max-tokens", "5", "--rows", "2", "--json"]
    done = CliRunner().invoke(app, ["generate", "-", *common], input=typed_in.encode())
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["index"], row["prompt"]) for row in rows] == list(enumerate(prompts))
    for row in rows:
        assert row["text"] == lens.generate(row["prompt"], max_tokens=5)
        assert row["reason"] == "length"
        assert len(row["token_ids"]) == len(row["logprobs"]) == 5
    steered = CliRunner().invoke(app, ["generate", "-", *common, "-a", "random:0@1*30"], input=typed_in.encode())
    texts = [json.loads(line)["text"] for line in steered.stdout.splitlines()]
    assert len(texts) == 3
    assert texts != [row["text"] for row in rows]
    bad = CliRunner().invoke(app, ["generate", "-", *common], input=b'{"words": "x"}\n')
    assert (bad.exit_code, "Line 1 of standard input" in bad.stderr) == (2, True)
    empty = CliRunner().invoke(app, ["generate", "-", *common], input=b'the ship\n{"prompt": " "}\n')
    assert (empty.exit_code, "Line 2 of standard input has an empty prompt" in empty.stderr) == (2, True)


def test_loss_is_the_librarys(work: dict[str, str]) -> None:
    import numpy as np

    from lens_tui import LensModel

    text = "The ship sailed over the cold sea."
    result = json.loads(invoke(["loss", text, "-a", "random:0@1*9", "-m", work["MODEL"], "--json"]).stdout)
    lens = LensModel(work["MODEL"])
    ids = np.array(lens.tokens.encode(text))
    logits = np.array(lens.forward(ids.tolist())[0], np.float64)
    logits -= logits.max(-1, keepdims=True)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    loss = -logprobs[np.arange(len(ids) - 1), ids[1:]].mean()
    assert result["loss"] == pytest.approx(loss, abs=1e-5)
    assert result["perplexity"] == pytest.approx(np.exp(loss), rel=1e-5)
    assert result["n_tokens"] == len(ids) - 1
    assert result["delta"] == pytest.approx(result["steered_loss"] - result["loss"])
    assert abs(result["delta"]) > 1e-3


def test_a_random_vector_is_that_of_its_seed(work: dict[str, str], tmp_path: Path) -> None:
    import numpy as np

    from lens_tui.records.vector_formats import load_one

    out = tmp_path / "r.safetensors"
    invoke(["vector", "random", "-l", "-1", "--seed", "3", "-m", work["MODEL"], "-o", str(out)])
    vector = load_one(out)
    values = np.random.default_rng(3).normal(size=vector.d_model)
    np.testing.assert_allclose(vector.direction, values / np.linalg.norm(values), atol=1e-6)
    assert vector.layer == 2


@pytest.mark.parametrize("number", ["9" * 5000, "²", "\u0663", "-1", ""])
def test_numbers_that_are_none_are_one_sentence(work: dict[str, str], number: str) -> None:
    asked = [
        ["vector", "token", f"id:{number}", "-l", "1"],
        ["lens", "the cat", "-t", f"id:{number}"],
        ["loss", "the cat", "-a", f"f{number}*2", "-s", work["SAE"]],
        ["loss", "the cat", "-a", f"random:{number}@1*2"],
        ["loss", "the cat", "-a", f"f3@{number}x*2", "-s", work["SAE"]],
    ]
    for arguments in asked:
        done = invoke([*arguments, "-m", work["MODEL"], "--json"])
        assert done.exit_code == 2, (arguments, done.output)
        assert set(json.loads(done.stdout)) == {"error"}
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("given", [["--model", "other"], ["--demo"], ["--theme", "dark"]], ids=str)
def test_an_option_of_the_app_before_a_verb_is_refused_for_the_verb_does_not_read_it(given: list[str]) -> None:
    result = CliRunner().invoke(app, [*given, "loss", "some words", "--json"])
    assert result.exit_code == 2
    assert f"{given[0]} before a verb" in result.output


def test_a_run_that_cannot_be_kept_is_printed_all_the_same(work: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "data").write_text("in the way")
    words = ["compare", "the cat", "-m", work["MODEL"], "--max-tokens", "2", "--keep"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENS_TUI_HOME", str(tmp_path))
        said, as_json = invoke(words), invoke([*words, "--json"])
        listed = invoke(["lists", "list"])
    assert (said.exit_code, as_json.exit_code, listed.exit_code) == (2, 2, 0)
    assert "the cat" in said.stdout
    assert said.stderr.splitlines()[-1].startswith("mlx-lens-tui: The run was not kept.")
    result = json.loads(as_json.stdout)
    assert result["run"] is None
    assert result["arms"][0]["text"]
    assert result["error"]["message"].startswith("The run was not kept.")


def test_a_folder_that_is_gone_is_one_sentence(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f'rmdir "{gone}"; exec "$0" -P -m lens_tui info --json'
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(["sh", "-c", script, sys.executable], cwd=gone, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["message"] == "The folder that this was started in is gone."


def test_labels_in_json_are_the_text_that_was_given(walked: dict[str, Any]) -> None:
    assert NASTY in [label["text"] for label in json.loads(walked["labels show"].stdout)["labels"]]
