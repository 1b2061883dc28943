"""``mlx-lens-tui mcp``: the tools of an agent over the Model Context Protocol, by its official SDK, on stdio."""

# No `from __future__ import annotations`: the SDK makes each tool's schema of its annotations as they are.

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from pydantic import Field, ValidationError

from lens_tui import __version__
from lens_tui.records import LensError, Sampling
from lens_tui.records.sanitise import one_line, sanitise

from . import agent_tools as tools
from .agent_desk import Desk, Work
from .agent_tools import CaptureInfo, CompareResult, GenerateResult, LossResult, ModelFacts

T = TypeVar("T")
GUIDE = (
    "Ask one language model what goes on inside it. Begin with model_info. A steering is written SOURCE[@LAYER]*SCALE, "
    "terms joined by +: f2666*22 (feature of the SAE), verse*8 (a bundled vector), /path/of/a/vector*8 (a file that "
    "make_vector gave), random:0@4*22. Believe no effect that a random direction of the same length has too: compare, "
    "loss and dose bring such controls by themselves. KL and losses are in nats. explain says what a number is."
)
Arm = Annotated[str, Field(description="A steering such as f2666*22, verse*8:generated or random:0@4*22; '' for none")]
Tokens = Annotated[int, Field(description="Tokens to write at most", ge=1, le=1024)]
Controls = Annotated[bool, Field(description="Run the controls too: the sign turned, random directions")]
Random = Annotated[int, Field(description="Random directions of the same length", ge=1, le=16)]


class LensTools(MCPServer):
    """The SDK's server, in which what is wrong with a call is one sentence, and an argument nobody knows is wrong."""

    async def call_tool(self, name: str, arguments: dict[str, Any], context: Any = None) -> Any:
        """Call a tool.

        Raises:
            ToolError: What is wrong with the call, in one sentence.
        """
        tools = {tool.name: tool for tool in await self.list_tools()}
        if name not in tools:
            raise ToolError(f"There is no tool {one_line(name, 60)!r}. There are {', '.join(tools)}.")
        known = list(tools[name].input_schema.get("properties", {}))
        if unknown := sorted(set(arguments) - set(known)):
            takes = f"It takes {', '.join(known)}." if known else "It takes none."
            raise ToolError(f"{name} has no argument {one_line(unknown[0], 60)!r}. {takes}")
        try:
            return await super().call_tool(name, arguments, context)
        except UnexpectedToolError:
            raise
        except ToolError as error:
            wrong = error.__cause__
            said = _wrong_argument(name, wrong) if isinstance(wrong, ValidationError) else str(wrong or error)
            raise ToolError(sanitise(said)) from error


def _wrong_argument(tool: str, error: ValidationError) -> str:
    first = error.errors()[0]
    where = one_line(".".join(map(str, first["loc"])), 60)
    if first["type"] == "missing":
        return f"{tool} needs the argument {where}."
    return f"{where} of {tool} is wrong: {first['msg'][0].lower()}{one_line(first['msg'][1:], 200)}."


def make_server(desk: Desk) -> MCPServer:
    """The server over a desk, with all its tools."""
    server: MCPServer = LensTools("mlx-lens-tui", instructions=GUIDE, version=__version__, log_level="WARNING")

    async def ask(context: Context, work: Callable[[Work], T]) -> T:
        try:
            found, warned = await desk.ask(work, context.report_progress)
        except LensError as error:
            raise ToolError(str(error)) from None
        for said in warned:
            if isinstance(found, dict):
                found.setdefault("warnings", []).append(said)
        return found

    _writing(server, ask)
    _measuring(server, ask)
    _probing(server, ask)
    _features(server, ask)
    _inside(server, ask)
    return server


def _writing(server: MCPServer, ask: Any) -> None:
    @server.tool()
    async def model_info(context: Context) -> ModelFacts:
        """What model this is: layers, sites, the SAE, and the vectors with names, each with the scale it works at."""
        found: ModelFacts = await ask(context, tools.model_facts)
        return found

    @server.tool()
    async def generate(
        context: Context,
        prompts: list[str],
        steering: Arm = "",
        max_tokens: Tokens = 64,
        temperature: float = 0.0,
        seed: int = 0,
        raw: bool = False,
    ) -> GenerateResult:
        """Write on from prompts, all in one batch, plain or steered. raw leaves the chat template out."""
        sampling = Sampling(max_tokens=max_tokens, temp=temperature, seed=seed)
        found: GenerateResult = await ask(
            context, lambda work: tools.generated(work, prompts, steering, sampling, raw=raw)
        )
        return found

    @server.tool()
    async def compare(
        context: Context,
        prompt: str,
        steering: Arm,
        max_tokens: Tokens = 48,
        temperature: float = 0.0,
        seed: int = 0,
        controls: Controls = True,
        n_random: Random = 2,
        raw: bool = False,
    ) -> CompareResult:
        """Write under a steering beside the plain model, and beside its controls: its sign turned, random directions.

        Each arm has its text, the KL of its next-token distributions against the plain model's on the same text, the
        plain model's perplexity of it, and the dose: how far the residual was moved as a share of its length.
        """
        sampling = Sampling(max_tokens=max_tokens, temp=temperature, seed=seed)
        found: CompareResult = await ask(
            context,
            lambda work: tools.compared(
                work, prompt, steering, sampling, controls=controls, n_random=n_random, raw=raw
            ),
        )
        return found


def _measuring(server: MCPServer, ask: Any) -> None:
    @server.tool()
    async def loss(
        context: Context,
        texts: list[str],
        steering: Arm = "",
        controls: Controls = True,
        n_random: Random = 3,
        seed: int = 0,
    ) -> LossResult:
        """How well the model predicts texts (nats a token), and what a steering and its controls cost there."""
        found: LossResult = await ask(
            context, lambda work: tools.losses(work, texts, steering, controls=controls, n_random=n_random, seed=seed)
        )
        return found

    @server.tool()
    async def dose(
        context: Context,
        prompt: str,
        steering: Arm,
        scales: list[float],
        controls: Annotated[int, Field(description="Random directions at each scale; 0: no controls", ge=0, le=16)] = 1,
        max_tokens: Tokens = 40,
        texts: Annotated[int, Field(description="Texts that the loss is measured on", ge=1, le=64)] = 8,
    ) -> dict[str, Any]:
        """A steering at several scales: its text, loss, KL, perplexity and repetition at each, and where they turn."""
        found: dict[str, Any] = await ask(
            context,
            lambda work: tools.dosed(
                work, prompt, steering, scales, controls=controls, max_tokens=max_tokens, texts=texts
            ),
        )
        return found

    @server.tool()
    async def make_vector(
        context: Context,
        name: Annotated[str, Field(min_length=1, max_length=60)],
        toward: list[str],
        away: list[str],
        layer: int | None = None,
    ) -> dict[str, Any]:
        """A steering vector from texts toward and away from something: the difference of their mean activations.

        With as many of each and no layer, all layers are ranked by how well they tell held-out pairs apart. The answer
        has the file: write FILE*SCALE as a steering, with a scale of a tenth to a half of residual_norm.
        """
        found: dict[str, Any] = await ask(context, lambda work: tools.vector_made(work, name, toward, away, layer))
        return found


def _probing(server: MCPServer, ask: Any) -> None:
    @server.tool()
    async def probe(
        context: Context,
        name: Annotated[str, Field(min_length=1, max_length=60)],
        texts: list[str],
        labels: Annotated[list[float], Field(description="0 or 1 for each text; any numbers with kind ridge")],
        kind: Annotated[str, Field(description="logistic, mean_difference or ridge")] = "logistic",
        over: Annotated[str, Field(description="last, mean or every (token)")] = "last",
        save: bool = True,
    ) -> dict[str, Any]:
        """At which layers a label of texts can be read, on examples held out, beside labels dealt at random.

        The best layer's probe is kept: its file can steer (FILE*SCALE) and gate (f2666*22?FILE>0).
        """
        found: dict[str, Any] = await ask(
            context, lambda work: tools.probed(work, name, texts, labels, kind=kind, over=over, save=save)
        )
        return found


def _features(server: MCPServer, ask: Any) -> None:
    @server.tool()
    async def features(context: Context, text: str, top_k: Annotated[int, Field(ge=1, le=64)] = 5) -> dict[str, Any]:
        """The SAE's strongest features at every token of a text, with their labels."""
        found: dict[str, Any] = await ask(context, lambda work: tools.features_of(work, text, top_k))
        return found

    @server.tool()
    async def feature(
        context: Context, number: str, examples: Annotated[int, Field(ge=1, le=50)] = 8
    ) -> dict[str, Any]:
        """All that is known of a feature: labels, tokens it promotes, examples where it is most active, neighbours."""
        found: dict[str, Any] = await ask(context, lambda work: tools.feature_page(work, number, examples))
        return found

    @server.tool()
    async def search(context: Context, words: str, top_k: Annotated[int, Field(ge=1, le=200)] = 20) -> dict[str, Any]:
        """Features by words: in their labels, and among the tokens that they promote."""
        found: dict[str, Any] = await ask(context, lambda work: tools.searched(work, words, top_k))
        return found


def _inside(server: MCPServer, ask: Any) -> None:
    @server.tool()
    async def lens(
        context: Context,
        text: str,
        steering: Arm = "",
        target: Annotated[str, Field(description="The token to follow (' door', or id:17); '' for each next one")] = "",
        layers: list[int] | None = None,
        top_k: Annotated[int, Field(ge=1, le=32)] = 3,
    ) -> dict[str, Any]:
        """What every layer would predict at every token of a text: the logit lens."""
        found: dict[str, Any] = await ask(
            context, lambda work: tools.lens_read(work, text, steering, target, layers, top_k)
        )
        return found

    @server.tool()
    async def patch(
        context: Context,
        clean: str,
        corrupted: str,
        answer: str = "",
        wrong: str = "",
        by: Annotated[str, Field(description="layer-position, layer or head")] = "layer-position",
        metric: Annotated[
            str, Field(description="logit-difference, log-probability, probability, kl or rank")
        ] = "logit-difference",
        controls: Controls = True,
    ) -> dict[str, Any]:
        """Which part of the model makes the difference between two prompts of one length: activation patching.

        answer and wrong are the tokens that clean and corrupted lead to (' door', or id:17). An effect of 0 is the
        corrupted run, 1 the clean one; effects below noise_floor are what random patches of the same length do.
        """
        found: dict[str, Any] = await ask(
            context,
            lambda work: tools.patched_between(
                work, clean, corrupted, answer, wrong, by=by, metric=metric, controls=controls
            ),
        )
        return found

    @server.tool()
    async def capture_info(
        context: Context, text: str, layers: list[int], site: str = "resid_post", steering: Arm = ""
    ) -> list[CaptureInfo]:
        """What the activations of a text are like at some layers: lengths, and how much they point one way."""
        found: list[CaptureInfo] = await ask(
            context, lambda work: tools.captured_info(work, text, layers, site, steering)
        )
        return found

    @server.tool()
    async def explain(words: str) -> list[dict[str, Any]]:
        """What a number of this program is, its unit and its source: kl, dose, fvu, l0, noise floor, ..."""
        try:
            return tools.explained(words)
        except LensError as error:
            raise ToolError(sanitise(str(error))) from None


def run_stdio(model: str, sae: str) -> None:
    """Serve an agent over standard input and output until it closes them."""
    desk = Desk(model, sae)
    try:
        make_server(desk).run("stdio")
    finally:
        desk.close()
