"""Train, index, find, label and check from the command line, in process, on a small random model."""

from __future__ import annotations

import json
import random
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from lens_tui import FeatureIndex, LensModel, load_sae
from lens_tui.cli.command import app
from lens_tui.cli.output import Meter, interruptible
from lens_tui.records import LensError
from lens_tui.records.features import FeatureExample
from lens_tui.tasks.feature_page import feature_facts
from lens_tui.tasks.knowledge import index_of
from tests.folders import llama_folder

SEA = "The ship sailed over the cold sea and the waves rose."
FOOD = "Chop the onions, fry them in butter, add salt to the soup."
TRAIN = ["--layer", "1", "--width", "48", "-k", "4", "-n", "1280", "--batch", "64", "--rows", "4", "--context", "24"]


def run(*arguments: str, code: int = 0) -> tuple[str, str]:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout, done.stderr


def data(*arguments: str, code: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", code=code)[0])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A model, a text, an SAE that was trained on it and its index, each by its verb."""
    root = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENS_TUI_HOME", str(root / "home"))
        model = str(llama_folder(root / "tiny"))
        shuffle = random.Random(0)
        words = (SEA.split(), FOOD.split())
        texts = [" ".join(shuffle.sample(words[i % 2], 9)) for i in range(60)]
        text = root / "text.jsonl"
        text.write_text("".join(json.dumps({"text": line}) + "\n" for line in texts))
        sae = str(root / "sae")
        report = data("train-sae", str(text), "-m", model, "-o", sae, *TRAIN)
        built = data("index", str(text), "-m", model, "-s", sae, "--full", "--context", "24", "--rows", "4")
        yield {
            "root": root,
            "home": root / "home",
            "model": model,
            "text": text,
            "sae": sae,
            "report": report,
            "index": built,
        }


@pytest.fixture
def work(made: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """With the folders of the module's own home, where its index is."""
    monkeypatch.setenv("LENS_TUI_HOME", str(made["home"]))
    return made


def on(work: dict[str, Any]) -> list[str]:
    return ["-m", work["model"], "-s", work["sae"]]


def test_training_leaves_an_sae_and_says_how_good_it_is(work: dict[str, Any]) -> None:
    report = work["report"]
    assert (report["step"], report["layer"], report["site"], report["stopped"]) == (20, 1, "resid_post", False)
    assert report["final"]["fvu"] < 1
    assert report["loss_recovered"] is not None
    info = load_sae(work["sae"]).info
    assert (info.width, info.layer) == (48, 1)
    assert info.l0 == pytest.approx(report["final"]["l0"], abs=1e-3)
    again = data("train-sae", str(work["text"]), "-m", work["model"], "-o", work["sae"], *TRAIN)
    assert again["final"]["fvu"] == report["final"]["fvu"]
    _, said = run("train-sae", str(work["text"]), "-m", work["model"], "-o", work["sae"], *TRAIN, "--seed", "3", code=2)
    assert "other settings: seed" in said


def test_the_index_is_where_the_app_looks_and_shards_make_the_same(work: dict[str, Any], tmp_path: Path) -> None:
    (entry,) = work["index"]["indexes"]
    whole = FeatureIndex(entry["path"])
    assert whole.path.is_relative_to(work["home"])
    assert entry["counted_tokens"] == whole.n_counted > 300
    arguments = ["index", str(work["text"]), *on(work), "--full", "--context", "24", "--rows", "4", "-o", str(tmp_path)]
    parts = [data(*arguments, "--shard", f"{i}/2")["parts"][0] for i in range(2)]
    (merged,) = data("index-merge", *parts, *on(work), "-o", str(tmp_path))["indexes"]
    other = FeatureIndex(merged["path"])
    assert other.path.name == whole.path.name
    np.testing.assert_array_equal(other.count, whole.count)
    assert other.manifest["files"] == whole.manifest["files"]


def test_a_feature_has_a_page_in_words_and_in_json(work: dict[str, Any]) -> None:
    index = FeatureIndex(work["index"]["indexes"][0]["path"])
    feature = int(index.count.argmax())
    page = data("feature", f"f{feature}", *on(work), "-k", "3", "--convention", "raw")
    assert (page["feature"], page["layer"], page["convention"]) == (feature, 1, "raw")
    assert page["index"]["count"] == int(index.count[feature])
    assert len(page["index"]["examples"]) == 3
    assert len(page["promoted"]) == len(page["suppressed"]) == len(page["neighbours"]) == 10
    text, _ = run("feature", str(feature), *on(work))
    for words in (f"feature {feature} of sae", "promotes", "(norm)", "█", "top examples", "«", "cosine", "jaccard"):
        assert words in text


def test_labels_are_set_found_shown_and_written_in_other_forms(work: dict[str, Any], tmp_path: Path) -> None:
    run("labels", "set", "7", "cold water", *on(work))
    run("labels", "set", "7", "words of the sea", *on(work), "--author", "me")
    run("labels", "set", "9", "kitchen", *on(work))
    assert [row["text"] for row in data("labels", "show", "7", *on(work))["labels"]] == ["words of the sea"]
    assert [row["text"] for row in data("labels", "show", "7", "--history", *on(work))["labels"]] == [
        "words of the sea",
        "cold water",
    ]
    assert [row["feature"] for row in data("labels", "search", "sea", *on(work))["labels"]] == [7]
    found = data("search", "sea", *on(work))
    assert [row["feature"] for row in found["labels"]] == [7]
    assert found["promoting"] is not None
    assert "words of the sea  (mine, me)" in run("search", "sea", *on(work))[0]
    assert "words of the sea" in run("feature", "7", *on(work))[0]
    for form in ("neuronpedia", "delphi"):
        out = tmp_path / form
        assert data("labels", "export", str(out), "-f", form, *on(work))["written"] == 2
        taken = data("labels", "import", str(out), "-f", form, *on(work))
        assert (taken["added"], taken["known"], taken["changed"]) == (0, 2, 0)
    busy = int(FeatureIndex(work["index"]["indexes"][0]["path"]).count.argmax())
    run("labels", "set", str(busy), "busy", *on(work))
    (file,) = data("labels", "export", str(tmp_path / "up"), "-f", "neuronpedia-upload", *on(work))["files"]
    rows = {row["index"]: row for row in json.loads(Path(file).read_text())["features"]}
    assert busy in rows.keys() <= {7, 9, busy}
    assert rows[busy]["explanations"][0]["text"] == "busy"
    assert rows[busy]["activations"]
    run("labels", "set", "9", "", *on(work))
    assert "mine" not in {row["source"] for row in data("labels", "show", "9", *on(work))["labels"]}


def test_a_dashboard_of_another_tool_stands_in_for_an_index(work: dict[str, Any], tmp_path: Path) -> None:
    example = {"bin_min": -1, "bin_max": -1, "tokens": [" a", " b"], "values": [0.5, 2.5], "qualifying_token_index": 1}
    row = {"feature_index": 7, "frac_nonzero": 0.25, "pos_str": [], "pos_values": [], "neg_str": [], "neg_values": []}
    batch = {
        "model_id": "m",
        "layer": 1,
        "sae_set": "s",
        "features": [{**row, "activations": [example, {**example, "tokens": [], "values": []}]}],
    }
    (tmp_path / "batch-0.json").write_text(json.dumps(batch))
    imported = ("labels", "import", str(tmp_path), "-f", "saedashboard", *on(work))
    assert "batch-0.json is of model m, but the SAE sae is of tiny" in run(*imported, code=2)[1]
    assert data(*imported, "--anyway")["dashboards"] == 1
    (tmp_path / "batch-0.json").write_text(json.dumps(batch | {"model_id": "other/Tiny-4bit", "layer": 2}))
    assert "is of layer 2, but the SAE sae is of layer 1" in run(*imported, code=2)[1]
    (tmp_path / "batch-0.json").write_text(json.dumps(batch | {"model_id": "other/Tiny-4bit"}))
    assert data(*imported)["dashboards"] == 1
    info = replace(load_sae(work["sae"]).info, layer=2)  # no index is of that place
    model, sae = LensModel(work["model"]), load_sae(work["sae"])
    known = feature_facts(model, sae, 7, index_of(info)).activity
    assert known is not None
    assert (known.density, known.max, known.corpus) == (0.25, 2.5, "saedashboard")
    assert known.examples == (FeatureExample(-1, -1, 2.5, 1, (" a", " b"), (0.5, 2.5)),)
    assert feature_facts(model, sae, 8, index_of(info)).activity is None
    batch["features"] = [{**row, "feature_index": 48, "activations": []}]
    (tmp_path / "batch-0.json").write_text(json.dumps(batch))
    assert "another SAE" in run(*imported, "--anyway", code=2)[1]


def test_labels_in_json_are_as_stored_and_in_words_safe_to_show(work: dict[str, Any]) -> None:
    hostile = "red \x1b[31mink\u202e"
    told = ("labels", "show", "11", "--history", *on(work))
    run("labels", "set", "11", hostile, *on(work))
    assert [row["text"] for row in data("labels", "search", "red", *on(work))["labels"]] == [hostile]
    run("labels", "set", "11", "ink", *on(work))
    assert [row["text"] for row in data(*told)["labels"]] == ["ink", hostile]
    shown = run(*told)[0]
    assert "ink" in shown
    assert not {"\x1b", "\u202e"} & set(shown)
    run("labels", "set", "11", "", *on(work))


def test_contrast_reads_lines_and_judges_held_out(work: dict[str, Any], tmp_path: Path) -> None:
    for name, line in (("a", SEA), ("b", FOOD)):
        (tmp_path / f"{name}.txt").write_text("\n".join([line] * 8))
    files = [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    result = data("contrast", *files, *on(work), "-k", "5")
    assert (result["texts_a"], result["texts_b"]) == (8, 8)
    best = result["features"][0]
    assert (best["held_out"], best["active_a"]) == (1.0, 1.0)
    assert "chosen on" in run("contrast", *files, *on(work), "--over", "mean")[0]


def test_check_says_what_was_measured_and_its_status_is_the_verdict(work: dict[str, Any]) -> None:
    facts = data("check-sae", SEA, *on(work), code=1 if not _fits(work) else 0)
    assert facts["rows"][0]["place"] == [1, "resid_post"]
    assert {"l0", "fvu", "n_tokens"} <= set(facts["rows"][0])
    assert facts["provenance"]["layer"].startswith("config.json")


def test_a_file_that_is_given_as_a_text_is_said_to_be_read_as_one(
    work: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one-of-the-waves-rose").mkdir()
    (tmp_path / "the cold sea").write_text("")
    said, noted = run("check-sae", "one-of-the-waves-rose", *on(work))
    assert said.startswith("sae\nIt fits ")
    assert "is read as a text, though there is a folder of that name" in noted
    (tmp_path / "waves.txt").write_text("")
    assert "though there is a file of that name" in run("loss", "waves.txt", "-m", work["model"])[1]
    for words in ("the cold sea", "no-such-name", "a" * 300):
        assert "read as a text" not in run("loss", words, "-m", work["model"])[1]


def test_a_search_for_what_is_no_token_says_so(work: dict[str, Any]) -> None:
    assert "none of the words is one token" in run("search", "qqzzxxvv", *on(work))[0]


def _fits(work: dict[str, Any]) -> bool:
    from lens_tui import LensModel
    from lens_tui.tasks.train import check_sae

    return check_sae(LensModel(work["model"]), load_sae(work["sae"]), SEA).fits


@pytest.mark.usefixtures("shell_signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_saves_and_the_same_command_goes_on(
    number: int, work: dict[str, Any], tmp_path: Path, monkeypatch: Any
) -> None:
    out = str(tmp_path / "sae")
    arguments = ["train-sae", str(work["text"]), "-m", work["model"], "-o", out, *TRAIN]
    from lens_tui.cli import sae_verbs as verb

    def interrupt(progress: Any) -> tuple[str, str]:
        if progress.stage == "train" and progress.step >= 1:
            signal.raise_signal(number)
        return progress.stage, ""

    with monkeypatch.context() as patch:
        patch.setattr(verb, "_training_line", interrupt)
        _, said = run(*arguments, code=128 + number)
    assert "Run the same command to continue" in said
    assert not (tmp_path / "sae" / "params.safetensors").exists()
    assert data(*arguments)["final"]["fvu"] == work["report"]["final"]["fvu"]


@pytest.mark.usefixtures("shell_signals")
def test_the_first_ctrl_c_asks_and_the_second_insists() -> None:
    with interruptible() as asked:
        assert not asked()
        signal.raise_signal(signal.SIGINT)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("shell_signals")
def test_a_signal_that_is_said_twice_is_heard_once_and_an_ignored_one_never() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with interruptible() as asked:
        signal.raise_signal(signal.SIGHUP)
        assert not asked()
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert asked.status == 143
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGQUIT)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_terminal_gets_one_line_with_a_bar_and_a_pipe_plain_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told() -> str:
        with Meter() as meter:
            meter.say("read", "1 of 2", 0.5)
            meter.say("write", "x" * 200)
        return capsys.readouterr().err

    assert told() == "read  1 of 2\nwrite  " + "x" * 200 + "\n"
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    bar, cut = told().removeprefix("\r").removesuffix("\n").split("\r")
    assert bar == "read  " + "█" * 10 + " " * 10 + "▏ 1 of 2"
    assert cut == "write  " + "x" * 52


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["feature", "x"], "is not a feature number"),
        (["feature", "99"], "There is no feature 99"),
        (["feature", "1", "--convention", "both"], "Choose norm or raw"),
        (["search", "!?"], "no word to look for"),
        (["labels", "set", "48", "x"], "features 0 to 47"),
        (["labels", "import", "/nowhere"], "There is no file"),
        (["labels", "import", ".", "-f", "csv"], "Choose from neuronpedia"),
        (["labels", "show", "--history"], "Give its number"),
        (["contrast", "TEXT", "TEXT", "--measure", "x"], "Choose auc or difference"),
        (["index", "TEXT", "--shard", "one"], "Write i/n"),
        (["index", "TEXT", "--shard", "2/2"], "no shard 2 of 2"),
        (["index", "/nowhere"], "There is no file or folder"),
        (["check-sae", "a"], "too few tokens"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_status_2(work: dict[str, Any], arguments: list[str], words: str) -> None:
    typed = [str(work["text"]) if word == "TEXT" else word for word in arguments]
    _, said = run(*typed, *on(work), code=2)
    assert words in said
    assert len(said.strip().splitlines()) == 1


def test_prefixes_are_numbers() -> None:
    from lens_tui.cli.sae_verbs import prefixes

    assert prefixes("16, 32") == (16, 32)
    with pytest.raises(LensError, match="not whole numbers"):
        prefixes("16;32")


def test_layers_are_read_as_they_are_written() -> None:
    from lens_tui.records.training import read_layers

    assert read_layers("4", 8) == (4,)
    assert read_layers("-1", 8) == (7,)
    assert read_layers("0-2, 6,-1", 8) == (0, 1, 2, 6, 7)
    assert read_layers("all", 3) == (0, 1, 2)
    for wrong in ("", "x", "1-", "3-1", "8", "-9", "0-8"):
        with pytest.raises(LensError, match="layer"):
            read_layers(wrong, 8)
