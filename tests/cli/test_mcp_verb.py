"""``mlx-lens-tui mcp``, by the SDK's own client: every tool, controls, progress, giving up, a clean stdout."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import pytest

from lens_tui import Add, LensModel, bake
from lens_tui.cli.agent_desk import Desk
from lens_tui.cli.agent_tools import compared
from lens_tui.cli.compare_verbs import measured
from lens_tui.lens.probes.probe_texts import train_probes
from lens_tui.lens.read.logits import logit_lens
from lens_tui.records import LensError, Sampling
from lens_tui.records.sanitise import one_line
from tests.folders import D_MODEL, llama_folder, sae_folder
from tests.hostile.test_screen import HOSTILE

if TYPE_CHECKING:
    from mcp import Client

TOOLS = {
    "model_info", "generate", "compare", "loss", "dose", "make_vector", "features", "feature", "search", "patch",
    "capture_info", "explain", "probe", "lens",
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("agent")
    return str(llama_folder(root / "tiny")), str(sae_folder(root / "sae"))


@asynccontextmanager
async def talking(folders: tuple[str, str]) -> AsyncIterator[Client]:
    from mcp import Client  # a second, which only a process that gets one of these tests is to pay

    from lens_tui.cli.agent_server import make_server

    desk = Desk(*folders)
    try:
        async with Client(make_server(desk)) as client:
            yield client
    finally:
        desk.close()


@asynccontextmanager
async def speaking(command: list[str]) -> AsyncIterator[Client]:
    from mcp import Client, StdioServerParameters

    given = StdioServerParameters(command=command[0], args=command[1:], env=dict(os.environ), cwd=Path.cwd())
    async with Client(given) as client:
        yield client


async def call(client: Client, tool: str, **arguments: Any) -> Any:
    done = await client.call_tool(tool, arguments)
    assert not done.is_error, done.content
    found = done.structured_content
    assert found is not None
    return found.get("result", found) if set(found) == {"result"} else found


async def test_every_tool_is_typed_and_answers(folders: tuple[str, str]) -> None:
    async with talking(folders) as client:
        listed = (await client.list_tools()).tools
        assert {tool.name for tool in listed} == TOOLS
        for tool in listed:
            assert tool.description
            assert tool.output_schema is not None
        facts = await call(client, "model_info")
        assert (facts["n_layers"], facts["sae"]["layer"]) == (3, 1)
        told = await call(client, "explain", words="dose")
        assert told[0]["unit"]
        found = await call(client, "features", text="the cat", top_k=3)
        assert len(found["tokens"][-1]["features"]) == 3
        page = await call(client, "feature", number="f3")
        assert page["feature"] == 3
        assert "labels" in await call(client, "search", words="sea")
        grid = await call(client, "patch", clean="the cat sat", corrupted="the dog sat", metric="kl", by="layer")
        assert grid["random"] is not None
        with LensModel(folders[0]) as lens, lens.capture(1) as seen:
            lens.forward("the cat")
            norms = np.linalg.norm(np.array(seen[1].astype(mx.float32))[0], axis=-1)
        (info,) = await call(client, "capture_info", text="the cat", layers=[1])
        assert info["mean_norm"] == pytest.approx(float(norms.mean()), rel=1e-3)


async def test_controls_are_on_unless_they_are_switched_off(folders: tuple[str, str]) -> None:
    async with talking(folders) as client:
        asked: dict[str, Any] = {"prompt": "the cat", "steering": "f3*2", "max_tokens": 6}
        found = await call(client, "compare", **asked)
        assert [arm["kind"] for arm in found["arms"]] == ["baseline", "steering", "flipped", "random", "random"]
        drawn = [arm["mean_kl"] for arm in found["arms"] if arm["kind"] == "random"]
        assert found["kl_over_random"] == pytest.approx(found["arms"][1]["mean_kl"] / np.mean(drawn))
        assert found["arms"][2]["does"] != found["arms"][1]["does"]
        off = await call(client, "compare", **asked, controls=False)
        assert [arm["kind"] for arm in off["arms"]] == ["baseline", "steering"]
        assert off["arms"][1]["text"] == found["arms"][1]["text"]
        written = await call(client, "generate", prompts=["the cat", "a dog"], steering="f3*2", max_tokens=6)
        assert written["texts"][0]["text"] == found["arms"][1]["text"]
        lost = await call(client, "loss", texts=["the cat sat on the mat"], steering="f3*2")
        assert (len(lost["random_deltas"]), lost["flipped_delta"] is not None) == (3, True)
        assert lost["delta"] == pytest.approx(lost["steered_loss"] - lost["loss"])
        dosed = await call(client, "dose", prompt="the cat", steering="f3", scales=[1.0, 2.0], max_tokens=4, texts=2)
        assert [len(point["random_delta"]) for point in dosed["points"]] == [1, 1]
        made = await call(
            client, "make_vector", name="pets", toward=["a cat", "a dog"], away=["a car", "a ship"], layer=1
        )
        again = await call(client, "compare", prompt="the", steering=f"{made['file']}*2", max_tokens=3)
        assert again["arms"][1]["dose"] > 0


async def test_probes_and_the_lens_are_the_library_s(folders: tuple[str, str]) -> None:
    texts = ["the cat sat", "a dog ran", "the cat ran", "a dog sat", "the car broke", "a ship sank"]
    labels = [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    async with talking(folders) as client:
        found = await call(client, "probe", name="pets", texts=texts, labels=labels)
        read = await call(client, "lens", text="the cat", layers=[0, 2], top_k=2)
        gated = await call(client, "compare", prompt="the", steering=f"f3*2?{found['file']}>-9999", max_tokens=3)
    assert gated["arms"][1]["dose"] > 0
    with LensModel(folders[0]) as model:
        report = train_probes(model, "pets", texts, labels)
        grid = logit_lens(model, "the cat", layers=[0, 2], top_k=2)
    assert [row["held_out"] for row in found["layers"]] == [probe.held_out.value for probe in report.probes]
    assert [row["p"] for row in found["layers"]] == [probe.held_out.p for probe in report.probes]
    assert found["best"] == report.best.layer
    assert [row["layer"] for row in read["layers"]] == [0, 2]
    assert [token["id"] for token in read["tokens"]] == list(grid.token_ids)


async def test_what_is_wrong_is_said_and_costs_nothing(folders: tuple[str, str]) -> None:
    bad: list[tuple[str, dict[str, Any]]] = [
        ("compare", {"prompt": "a", "steering": "nonsense"}),
        ("compare", {"prompt": "a", "steering": ""}),
        ("compare", {"prompt": "a", "steering": "f3*2", "max_tokens": 10**9}),
        ("compare", {"prompt": "a", "steering": "f999999*2"}),
        ("capture_info", {"text": "a", "layers": [99]}),
        ("probe", {"name": "p", "texts": ["a", "b"], "labels": [1.0]}),
        ("probe", {"name": "p", "texts": ["a", "b", "c", "d"], "labels": [0.0, 1.0, 0.0, 1.0], "kind": "\x1b[31m"}),
        ("lens", {"text": "a", "layers": [99]}),
        ("lens", {"text": "a", "target": "\x1b[31m none such"}),
        ("explain", {"words": "\x1b[31m nothing"}),
        ("generate", {"prompts": ["a"] * 65}),
        ("generate", {"prompts": "not a list"}),
    ]
    said = {
        ("generate", '{"prompts": "a"}'): "prompts of generate is wrong: input should be a valid list.",
        ("generate", "{}"): "generate needs the argument prompts.",
        (
            "compare",
            '{"prompt": "a", "steering": "f3*2", "n_random": 99}',
        ): "n_random of compare is wrong: input should be less than or equal to 16.",
        ("loss", '{"texts": ["a"], "steer": "f3*2"}'): (
            "loss has no argument 'steer'. It takes texts, steering, controls, n_random, seed."
        ),
        ("model_info", '{"\\u001b[31m": 1}'): "model_info has no argument '\u241b[31m'. It takes none.",
        ("feature", '{"number": "x"}'): "'x' is not a feature number. Write it as 1288 or f1288.",
    }
    for text in HOSTILE:
        bad += [(text.encode("utf-8", "replace").decode(), {}), ("loss", {text: text}), ("feature", {"number": text})]
        bad += [("compare", {"prompt": "a", "steering": text + "!"}), ("capture_info", {"text": "a", "layers": [text]})]
        bad += [("capture_info", {"text": "a", "layers": [1], "site": text}), ("explain", {"words": text + "!"})]
    async with talking(folders) as client:
        for name, arguments in bad:
            done = await client.call_tool(name, arguments)
            assert done.is_error, (name, arguments)
            text = getattr(done.content[0], "text", "")
            assert text
            assert "Traceback" not in text
            assert one_line(text, len(text)) == text
            assert len(text) < 2000
        for (name, given), sentence in said.items():
            done = await client.call_tool(name, json.loads(given))
            assert done.is_error
            assert getattr(done.content[0], "text", "") == sentence
        assert (await call(client, "generate", prompts=["the cat"], max_tokens=2))["texts"][0]["n_tokens"] == 2


async def test_progress_is_told_and_a_call_can_be_given_up(folders: tuple[str, str]) -> None:
    async with talking(folders) as client:
        told: list[tuple[float, float | None]] = []
        begun = asyncio.Event()

        async def hear(progress: float, total: float | None, message: str | None) -> None:
            told.append((progress, total))
            begun.set()

        arguments = {"prompts": ["the cat"], "max_tokens": 12}
        await client.call_tool("generate", arguments, progress_callback=hear)
        assert told
        assert all(0 < done <= 12 == total for done, total in told)
        begun.clear()
        long = client.call_tool("generate", {"prompts": ["the cat"] * 8, "max_tokens": 1024}, progress_callback=hear)
        task = asyncio.ensure_future(long)
        await asyncio.wait_for(begun.wait(), 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # The next one does not wait for all that the first had been asked for.
        assert (await call(client, "generate", prompts=["a"], max_tokens=2))["texts"]
        assert told[-1][0] < 8 * 1024


def test_a_comparison_refuses_before_it_runs() -> None:
    with pytest.raises(LensError, match="max_tokens is 5000"):
        compared(None, "a", "f3*2", Sampling(max_tokens=5000), controls=True, n_random=1, raw=True)  # type: ignore[arg-type]


async def test_the_process_speaks_the_protocol_alone(folders: tuple[str, str]) -> None:
    model, sae = folders
    command = [sys.executable, "-m", "lens_tui", "mcp", "-m", model, "-s", sae]
    async with speaking(command) as client:
        assert (await call(client, "model_info"))["n_layers"] == 3


async def test_what_is_asked_for_before_the_verb_reaches_the_model(folders: tuple[str, str], tmp_path: Path) -> None:
    adapter = str(tmp_path / "lora")
    bake(folders[0], [Add(id="a", layer=1, vector=np.ones(D_MODEL), scale=3.0)], adapter, form="peft")  # type: ignore[arg-type]
    text = "the cat sat on the mat"
    losses: list[Any] = []
    for before in ([], ["--adapter", adapter], ["--adapter", "nowhere/lora"]):
        command = [sys.executable, "-m", "lens_tui", *before, "mcp", "-m", folders[0]]
        async with speaking(command) as client:
            done = await client.call_tool("loss", {"texts": [text]})
            losses.append(getattr(done.content[0], "text", "") if done.is_error else done.structured_content)
    for plain, loaded in ((losses[0], LensModel(folders[0])), (losses[1], LensModel(folders[0], adapter=adapter))):
        assert plain["loss"] == pytest.approx(measured(loaded, [text], ())["loss"], abs=1e-4)
    assert losses[0]["loss"] != pytest.approx(losses[1]["loss"], abs=1e-2)
    assert "nowhere/lora" in losses[2]


def test_nothing_but_the_protocol_is_on_standard_output(folders: tuple[str, str]) -> None:
    command = [sys.executable, "-m", "lens_tui", "mcp", "-m", folders[0], "-s", folders[1]]
    hello = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
    }
    asked = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "model_info", "arguments": {}}}
    ready = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write("".join(json.dumps(line) + "\n" for line in (hello, ready, asked)).encode())
        server.stdin.flush()
        lines = [json.loads(server.stdout.readline()) for _ in range(2)]
        server.stdin.close()
        rest = server.stdout.read()
        assert server.wait(60) == 0
    assert {line["id"] for line in lines} == {1, 2}
    assert all(json.loads(line)["jsonrpc"] == "2.0" for line in rest.splitlines())
