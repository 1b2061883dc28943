"""The verbs as a script would call them, on the bundled model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from lens_tui import LensModel, blas, demo, load_sae
from lens_tui.cli.command import app
from lens_tui.records import paths
from tests.cli.test_terminal_verbs import on_a_terminal
from tests.terminals import Terminal


def run(*arguments: str) -> Result:
    """A verb in this process, which has MLX imported by now; what it ends with is the exit's status."""
    return CliRunner().invoke(app, arguments)


def started(*arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """The command as a shell starts it."""
    command = [sys.executable, "-c", "from lens_tui.cli import main; main()", *arguments]
    return subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=300)


def test_compare_prints_one_json_value_with_every_arm() -> None:
    done = started("compare", "The old man opened the door and", "-a", "cook=f1288*22", "--max-tokens", "12", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    base, steered = result["arms"]
    assert [base["name"], steered["name"]] == ["baseline", "cook"]
    assert base["text"] != steered["text"]
    assert len(base["token_ids"]) == len(steered["token_ids"]) == len(steered["kl"]) == 12
    assert base["kl"] == base["reverse_kl"] == [0.0] * 12
    assert (base["plain_logprobs"], result["batch_rows"]) == (base["logprobs"], 3)
    assert base["dose"] is None
    assert steered["dose"] > 0.1
    assert steered["interventions"][0]["layer"] == 4
    assert base["token_ids"][: steered["parts_at"]] == steered["token_ids"][: steered["parts_at"]]
    assert base["token_ids"][steered["parts_at"]] != steered["token_ids"][steered["parts_at"]]


def test_the_lanes_and_a_dose_response_say_the_same_of_one_steering() -> None:
    prompt, arm = "The old man opened the door and", "f1288*22"
    lanes = json.loads(run("compare", prompt, "-a", arm, "--max-tokens", "12", "--json").stdout)["arms"]
    few = ("--scales", "1", "--max-tokens", "12", "--texts", "1", "--json")
    dose = json.loads(run("dose", prompt, "-a", arm, *few).stdout)
    (point,) = dose["points"]
    assert tuple(lanes[1]["token_ids"]) == tuple(point["token_ids"])
    assert lanes[1]["kl"] == pytest.approx(point["on_own"]["reverse"], abs=1e-3)
    assert lanes[1]["reverse_kl"] == pytest.approx(point["on_own"]["forward"], abs=1e-3)
    assert lanes[1]["mean_kl"] == pytest.approx(point["kl_own"], abs=1e-3)
    assert lanes[1]["plain_perplexity"] == pytest.approx(point["ppl_unsteered"], rel=1e-3)
    assert lanes[1]["perplexity"] == pytest.approx(point["ppl_steered"], rel=1e-3)
    assert lanes[0]["perplexity"] == pytest.approx(dose["baseline"]["ppl"], rel=1e-3)


def test_compare_stops_at_a_text() -> None:
    arguments = ["compare", "The old man opened the door and", "--max-tokens", "12", "--json"]
    whole = json.loads(run(*arguments).stdout)["arms"][0]["text"]
    stop = whole[9:13]
    result = json.loads(run(*arguments, "--stop", "never this", "--stop", stop).stdout)
    assert result["arms"][0]["text"] == whole[: whole.index(stop)]
    assert result["arms"][0]["reason"] == "stop"
    assert result["sampling"]["stop"] == ["never this", stop]


def test_compare_streams_a_line_for_each_token_and_the_same_run_at_the_end() -> None:
    arguments = ["compare", "Once", "-a", "random:3@4*20", "--max-tokens", "4", "--json"]
    lines = [json.loads(line) for line in run(*arguments, "--stream").stdout.splitlines()]
    assert [line["event"] for line in lines].count("Token") == 8
    last = lines[-1]
    assert last.pop("event") == "Run"
    assert last == json.loads(run(*arguments).stdout)


def test_compare_says_it_in_words_on_a_pipe_and_reads_standard_input() -> None:
    done = started("compare", "-", "--max-tokens", "5", given="Once upon a time")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("── baseline")
    assert "Once upon a time" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("no_color", ["", "1"])
def test_a_terminal_shades_tokens_by_their_kl_with_bars_as_a_twin(
    no_color: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("COLORTERM", "truecolor")
    arguments = ["compare", "The old man opened the door and", "-a", "cook=f1288*22", "--max-tokens", "8"]
    plain = run(*arguments).stdout.splitlines()
    command = [sys.executable, "-c", "from lens_tui.cli import main; main()", *arguments]
    with Terminal(command, tmp_path) as terminal:
        assert terminal.end() == 0
    shown = terminal.written.decode().splitlines()
    bars = next(line for line in shown if line.startswith("KL ") and "plain" not in line)
    assert len(bars) == len("KL ") + 8
    assert set(bars.removeprefix("KL ")) <= set("▁▂▃▄▅▆▇█")
    shown.remove(bars)
    shaded = shown[shown.index("") + 2]
    assert shaded.startswith("The old man opened the door and")
    assert (shaded.count("\x1b[38;2;") > 4) == (not no_color)
    assert [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in shown][: len(plain)] == plain
    assert "▂0.01 ▄0.1 ▆1 █10 nat" in "".join(shown[len(plain) :])


def shown_on_a_terminal(arguments: list[str], patch: pytest.MonkeyPatch) -> list[str]:
    """The lines that a verb of this process writes to a terminal of 100 columns."""
    for name, value in {"COLUMNS": "100", "LINES": "30", "TERM": "xterm-256color"}.items():
        patch.setenv(name, value)
    status, shown = on_a_terminal(arguments, patch)
    assert status == 0
    return shown.splitlines()


def test_a_terminal_has_a_bar_for_each_activation_and_no_line_is_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["features", "Stir the soup", "-k", "3"]
    piped = run(*arguments).stdout.splitlines()
    shown = shown_on_a_terminal(arguments, monkeypatch)
    data = json.loads(run(*arguments, "--json").stdout)
    items = [
        (token["position"], item) for token in data["tokens"] if not token["special"] for item in token["features"]
    ]
    most = max(item["score"] for _, item in items)
    rows = [line for line in shown if re.search(r" \d+ +\d+\.\d\d ", line)]
    assert len(rows) == len(items)
    for line, (_, item) in zip(rows, items, strict=True):
        assert len(line) <= 100
        whole, part = divmod(round(8 * 8 * item["score"] / most), 8)
        assert line.count("█") == whole
        assert len(re.findall("[▏▎▍▌▋▊▉]", line)) == bool(part)
    assert not re.search("[█▏▎▍▌▋▊▉]", "".join(piped))
    assert any(len(line) > 100 for line in piped), "a pipe has every letter"


def test_a_terminal_shades_examples_by_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.delenv("NO_COLOR", raising=False)
    arguments = ["feature", "2666", "-k", "2"]
    piped = run(*arguments).stdout.splitlines()
    shown = shown_on_a_terminal(arguments, monkeypatch)
    examples = [line for line in shown if "«" in line]
    assert len(examples) == 2
    assert all("\x1b[38;2;" in line for line in examples)
    bare = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in examples]
    assert bare == [line for line in piped if "«" in line]


def test_features_are_what_the_library_gives() -> None:
    text = "Stir the soup and add salt."
    result = json.loads(run("features", text, "-k", "3", "--json").stdout)
    lens = LensModel("demo")
    sae = load_sae(str(demo.sae_paths()[demo.default_sae()]))
    ids = lens.tokens.encode(text)
    with lens.capture([4]) as captured:
        lens.forward(list(ids))
    dense = np.array(sae.encode(captured[4][0]))
    assert [token["id"] for token in result["tokens"]] == list(ids)
    for row, token in zip(dense, result["tokens"], strict=True):
        for item in token["features"]:
            assert item["activation"] == pytest.approx(float(row[item["id"]]), rel=1e-5)
        assert [item["activation"] for item in token["features"]] == pytest.approx(sorted(row)[::-1][:3], rel=1e-5)
    assert result["tokens"][0]["special"]
    assert result["l0"] == pytest.approx(float((dense[1:] > 0).sum(axis=1).mean()))
    assert 0 < result["fvu"] < 0.6


def test_features_are_printed_with_labels_and_dense_ones_are_marked() -> None:
    from lens_tui.tasks.knowledge import index_of, label_texts

    text = "The old man opened the door"
    tokens = json.loads(run("features", text, "-k", "4", "--json").stdout)["tokens"]
    items = [item for token in tokens if not token["special"] for item in token["features"]]
    info = load_sae(str(demo.sae_paths()[demo.default_sae()])).info
    index, names = index_of(info), label_texts(info, [item["id"] for item in items])
    assert index is not None
    for item in items:
        assert item["density"] == pytest.approx(index.count[item["id"]] / index.n_counted)
        assert item["label"] == names.get(item["id"])
    done = run("features", text, "-k", "4")
    lines = [line for line in done.stdout.splitlines() if "(special)" not in line]
    assert len(lines) == len(items)
    assert any(item["density"] > 0.2 for item in items)
    for line, item in zip(lines, items, strict=True):
        assert f"{item['id']:>6} {item['score']:7.2f}" in line
        assert ("≋" in line) == (item["density"] > 0.2)
        assert (item["label"] is None) == (item["description"] is not None)
        assert line.endswith(item["label"] or item["description"])
    assert "≋ dense" in done.stderr
    found = run("search", "door").stdout.splitlines()
    assert any(line.split()[:1] == ["5327"] and "  ≋ 39%  Vivid physical action" in line for line in found)


def test_dense_features_can_be_left_out() -> None:
    text = "The old man opened the door"
    every, some = (
        json.loads(run("features", text, "-k", "4", "--json", *more).stdout) for more in ((), ("--hide-dense",))
    )
    assert (every["hide_dense"], some["hide_dense"]) == (False, True)
    hidden = 0
    for all_of, left in zip(every["tokens"], some["tokens"], strict=True):
        kept = [item["id"] for item in all_of["features"] if item["density"] <= 0.2]
        hidden += len(all_of["features"]) - len(kept)
        assert [item["id"] for item in left["features"]][: len(kept)] == kept
        assert len(left["features"]) == len(all_of["features"]) == 4
        assert all(item["density"] <= 0.2 for item in left["features"])
    assert hidden
    assert "dense features left out" in run("features", text, "--hide-dense").stderr


def test_info_tells_of_the_machine_and_of_a_model() -> None:
    machine = json.loads(run("info", "--json").stdout)
    assert machine["versions"]["mlx-lens-tui"]
    assert "demo" in machine["models"]
    model = json.loads(run("info", "--model", "demo", "--json").stdout)
    assert (model["n_layers"], model["d_model"]) == (8, 384)
    assert "resid_post" in model["sites"]
    if blas.state().fast:
        assert machine["blas"] == blas.state().says
        assert model["weights"] == "float32, dequantised on loading"


def test_how_weights_are_held_is_the_options_or_the_settings() -> None:
    arguments = ("info", "--model", "demo", "--json")
    file = paths.folder("config") / "settings.toml"
    file.parent.mkdir(parents=True)
    file.write_text('[models]\ndequantize = "never"\n')
    assert json.loads(run(*arguments).stdout)["weights"] == ""
    turned = json.loads(run("--dequantize", "always", *arguments).stdout)
    assert turned["weights"] == "float32, dequantised on loading"
    assert turned["quantization"] == "8-bit, group 128"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compare", "x", "-a", "f99999*22"], "There is no feature 99999"),
        (["compare", "x", "-a", "random:0*3"], "has no layer"),
        (["compare", "x", "-a", "random:0@40*3"], "40"),
        (["compare", " "], "empty"),
        (["compare", "x", "-a", "nonsense"], "cannot be read"),
        (["features", "x", "--sae", "/nowhere/at/all"], "no SAE"),
        (["info", "--model", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_status_2(arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert_refused(done.exit_code, done.stderr, words)


@pytest.mark.parametrize(
    ("arguments", "words"), [([], "needs a terminal"), (["compare", "x", "-a", "nonsense"], "cannot be read")]
)
def test_so_it_is_of_the_command(arguments: list[str], words: str) -> None:
    done = started(*arguments, given="")
    assert_refused(done.returncode, done.stderr, words)


def assert_refused(status: int, said: str, words: str) -> None:
    assert status == 2
    assert words in said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_neither_mlx_nor_textual(option: str) -> None:
    code = (
        "import sys\nfrom lens_tui.cli import main\n"
        f"sys.argv = ['mlx-lens-tui', {option!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "assert not {'mlx', 'textual', 'numpy', 'transformers'} & set(sys.modules), 'too much'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "mlx-lens-tui" in done.stdout


def test_compare_gives_the_features_of_what_each_arm_wrote() -> None:
    result = json.loads(
        run("compare", "The old man", "-a", "f2666*22", "--max-tokens", "11", "--features", "3", "--json").stdout
    )
    lens, sae = LensModel("demo"), load_sae(str(demo.sae_paths()[demo.default_sae()]))
    plain = result["arms"][0]
    with lens.capture([4]) as captured:
        lens.forward([*result["prompt_ids"], *plain["token_ids"]])
        hidden = captured[4][0, len(result["prompt_ids"]) :]
    every = np.array(sae.encode(hidden))
    assert len(plain["features"]) == 11
    for row, token in zip(every, plain["features"], strict=True):
        assert [item["activation"] for item in token] == pytest.approx(sorted(row)[::-1][:3], rel=1e-3)
        assert [row[item["id"]] for item in token] == pytest.approx([item["activation"] for item in token], rel=1e-3)
    assert any(item["id"] == 2666 for token in result["arms"][1]["features"] for item in token)


def test_what_an_edited_head_moved_is_not_called_a_share_of_the_residual() -> None:
    for arm, unit in (("edge:6.1:2", "‖z‖"), ("head:6.1", "‖z‖"), ("cookery*15", "‖h‖")):
        done = CliRunner().invoke(app, ["compare", "The old man sat on the", "-a", arm, "--max-tokens", "2"])
        assert re.search(rf"moved \d\.\d+ {unit}", done.output)
        assert ("not comparable with other edits" in done.output) == (unit == "‖z‖")
