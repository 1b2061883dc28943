"""The verbs that write on: ``compare``, ``generate``, and ``loss``, which reads what is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from math import fsum
from operator import mul
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lens_tui.records import Arm, ArmEnd, Intervention, LensError, Sampling, Token
from lens_tui.records.arm_syntax import ArmSpec, GateTerm, parse_arm, parse_monitor
from lens_tui.records.chat import Turn, as_prompt, last_words, parse_chats, read_chats
from lens_tui.records.interventions import MOVED_Z, Z, acting_words, moved_of
from lens_tui.records.measures import MOST_LENGTHS
from lens_tui.records.prompt_set import parse_prompts
from lens_tui.records.run import figures, first_difference, kl_level, perplexity_of
from lens_tui.records.sanitise import one_line
from lens_tui.records.wording import many
from lens_tui.tui.format import Trail, figure, kl_key, sparkline

from . import prompt_table as sets
from .output import INTERRUPTED, Asked, fail, in_terminal, interruptible, note, print_json, say, say_shaded, sentences
from .prompt_table import intervention_in_words
from .sources import (
    Chat,
    Json,
    MinP,
    Model,
    SAEName,
    Temp,
    TextKey,
    TopK,
    TopP,
    Vectors,
    open_model,
    open_sae,
    read_conversation,
    read_text,
    within,
)

if TYPE_CHECKING:
    from lens_tui.lens.decode.batch import BatchGeneration
    from lens_tui.lens.decode.compare import Comparison
    from lens_tui.lens.model import LensModel
    from lens_tui.records.run import RunRecord

verbs = typer.Typer()


Arms = Annotated[
    list[str] | None,
    typer.Option(
        "--arm",
        "-a",
        help="[NAME=]SOURCE[@LAYER]*SCALE[:MODE][:POSITIONS], e.g. f2666*22 or random:0@4*22; terms joined by '+'.",
    ),
]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", help="A text that ends an arm and is not part of it; may be repeated.")
]
Monitors = Annotated[
    list[str] | None,
    typer.Option("--monitor", help="Read every token: a feature, or a probe's or vector's file, SOURCE[@LAYER]."),
]
Raw = Annotated[bool, typer.Option("--raw", help="Do not apply the chat template.")]


@verbs.command()
@sentences
def compare(
    prompt: Annotated[str, typer.Argument(help="The prompt; '-' reads standard input.", show_default=False)] = "",
    arm: Arms = None,
    model: Model = "demo",
    sae: SAEName = "",
    max_tokens: Annotated[int, within("max_tokens", "Tokens per arm.")] = 80,
    temp: Temp = 0.0,
    top_p: TopP = 0.0,
    min_p: MinP = 0.0,
    top_k: TopK = 0,
    repetition_penalty: Annotated[float, within("repetition_penalty", "Above 1 repeating is less likely.")] = 0.0,
    seed: Annotated[int, within("seed", "The same seed gives the same text again.")] = 0,
    stop: Stop = None,
    raw: Raw = False,
    chat: Chat = "",
    keep: Annotated[bool, typer.Option("--keep", help="Keep the run in the history, for `runs` and `replay`.")] = False,
    features: Annotated[
        int, typer.Option(min=0, max=256, help="SAE features of every token, as the arm had them (with --json).")
    ] = 0,
    json: Json = False,
    stream: Annotated[
        bool, typer.Option("--stream", help="With --json: a line of JSON for each token as it comes.")
    ] = False,
    prompts: sets.Prompts = "",
    text_key: TextKey = "prompt",
    first: sets.First = None,
    scales: sets.Scales = "",
    seeds: sets.Seeds = "",
    read_back: sets.ReadBackOf = "",
    column: sets.Column = "mean_kl",
    texts: sets.Texts = False,
    rows: sets.Rows = 32,
    monitor: Monitors = None,
) -> None:
    """Write on from a prompt, or a set of them, plain and steered.

    All are written in lock step and printed one below the other, with what the steering cost. With --prompts, or
    --scales or --seeds, a table of every prompt under every arm.
    """
    sampling = Sampling(max_tokens, temp, top_p, min_p, top_k, repetition_penalty, seed=seed, stop=tuple(stop or ()))
    specs = [parse_arm(item, 0.0 if scales else None) for item in arm or []]
    turns: tuple[Turn, ...] = ()
    if chat:
        if prompts or scales or seeds:
            raise LensError("A set of prompts is of texts, not of --chat.", "Leave out one.")
        turns = read_conversation(chat, prompt)
    if prompts or scales or seeds:
        asked = sets.AskedSet(prompts, prompt, text_key, first, scales, seeds, read_back, column, texts, rows)
        sets.compare_set(asked, specs, model, sae, sampling, raw=raw, json=json, stream=stream)
    else:
        if not turns:
            sets.check_prompt(prompt)
        text = last_words(turns) if turns else read_text(prompt)
        options: dict[str, Any] = {"raw": raw, "keep": keep, "features": features, "json": json, "stream": stream}
        options["monitors"] = [parse_monitor(item) for item in monitor or []]
        _compare_one(text, turns, specs, model, sae, sampling, **options)


def _compare_one(
    text: str,
    turns: tuple[Turn, ...],
    specs: Sequence[ArmSpec],
    model: str,
    sae: str,
    sampling: Sampling,
    *,
    raw: bool,
    keep: bool,
    features: int,
    json: bool,
    stream: bool,
    monitors: Sequence[GateTerm] = (),
) -> None:
    """One prompt, or the conversation of ``turns``, under every arm."""
    from lens_tui.tasks.replay import Gathered

    with open_model(model) as lens:
        vectors = Vectors(lens, sae, model)
        named = [Arm("baseline"), *(vectors.arm(spec) for spec in specs)]
        lacks = lens.info.lacks_template and not raw
        with interruptible() as asked, _watched(lens, sae, model, features) as read:
            watched = tuple(item.watched(vectors.monitor(item)) for item in monitors)
            heard: dict[str, Any] = {
                "monitors": [item.monitor for item in watched],
                "progress": lambda *_: _go_on(asked),
            }
            run = lens.compare(as_prompt(text, turns), named, sampling, raw=raw, **heard)
            tokens, ends = _collect(run, stream=json and stream, stop=asked)
            of_arms = read([[token.token_id for token in came] for came in tokens])
        stopped = any(end.reason == "stopped" for end in ends.values())
        result = {**record(text, lens.info.name, run.sampling, named, run, tokens, ends), "stopped": stopped}
        if turns:
            result["messages"] = as_prompt(text, turns)
        for row, found in zip(result["arms"], of_arms, strict=False):
            row["features"] = found
        if monitors:
            result["monitors"] = [item.name for item in run.monitors]
            result["thresholds"] = [item.threshold for item in watched]
            for at, row in enumerate(result["arms"]):
                row["readings"] = run.readings(at).tolist()
        gathered = Gathered(text, named, run, raw, turns, watched, tokens, ends)
        refused = _keep(lambda: gathered.record(lens, vectors.opened), result) if keep else None
    if json:
        print_json({"event": "Run", **result} if stream else result)
    else:
        _print(result, tokens)
        if features:
            note("The features of each token are in what --json writes.")
        if lacks:
            note("the model has no chat template: the prompt was used as it is")
        if keep and not refused:
            note(f"kept as run {result['run']}")
    if refused:
        fail(refused.message, refused.hint)
    if stopped:
        raise SystemExit(asked.status)


def _keep(record: Callable[[], RunRecord], result: dict[str, Any]) -> LensError | None:
    """Keep a run and put its number into ``result``; why that cannot be, where it cannot: it is printed then too."""
    from lens_tui.records.run_store import RunStore

    try:
        result["run"] = RunStore().keep(record())
    except LensError as error:
        refused = LensError(f"The run was not kept. {error.message}", error.hint)
        result |= {"run": None, "error": {"message": refused.message, "hint": refused.hint}}
        return refused
    return None


@contextmanager
def _watched(lens: LensModel, sae: str, model: str, k: int) -> Iterator[Callable[[list[list[int]]], list[Any]]]:
    """What gives, of a run made inside, the ``k`` top features of every token of each arm; with 0 nothing."""
    if not k:
        yield lambda texts: []
        return
    from lens_tui.tasks.run_features import features_read, watching

    opened = open_sae(sae, model)
    with watching(lens, opened, k) as watch:
        yield lambda texts: features_read(lens, opened, watch, texts)


def _collect(run: Comparison, *, stream: bool, stop: Callable[[], bool]) -> tuple[list[list[Token]], dict[int, ArmEnd]]:
    """Tokens and end of each arm, until all have ended or ``stop`` says so: then what came is an end of its own."""
    tokens: list[list[Token]] = [[] for _ in run.arms]
    ends: dict[int, ArmEnd] = {}

    def hear(event: Token | ArmEnd) -> None:
        if isinstance(event, Token):
            tokens[event.arm].append(event)
        else:
            ends[event.arm] = event
        if stream:
            print_json({"event": type(event).__name__, **asdict(event)})

    for event in run:
        hear(event)
        if stop():
            run.close()
            break
    for arm, came in enumerate(tokens):
        if arm not in ends:
            hear(ArmEnd(arm, "stopped", len(came), "".join(token.text for token in came), run.doses(arm)))
    return tokens, ends


def _go_on(asked: Asked) -> None:
    """Nothing is there to be printed before the first token."""
    if asked.status == INTERRUPTED:
        raise KeyboardInterrupt
    if asked():
        raise SystemExit(asked.status)


def record(
    prompt: str,
    model: str,
    sampling: Sampling,
    arms: Sequence[Arm],
    run: Comparison,
    tokens: Sequence[Sequence[Token]],
    ends: dict[int, ArmEnd],
) -> dict[str, Any]:
    """The run as plain data: what was asked, and for each arm its text, tokens, scores and delivered dose.

    ``kl`` is D(arm || plain) and ``reverse_kl`` D(plain || arm) of the next token in nats, both models on the arm's own
    text; ``logprobs`` and ``perplexity`` are to the arm's own model, those with ``plain_`` to the plain model.
    """
    return {
        "model": model,
        "prompt": prompt,
        "prompt_ids": list(run.prompt_ids),
        "sampling": asdict(sampling),
        "batch_rows": run.batch_rows,
        "arms": [
            {
                "name": arm.name,
                "interventions": [intervention_in_words(item) for item in arm.interventions],
                "text": ends[index].text,
                "reason": ends[index].reason,
                "token_ids": [token.token_id for token in tokens[index]],
                **figures(tokens[index]),
                "parts_at": first_difference(tokens[index], tokens[0]) if index else None,
                "dose": ends[index].dose,
            }
            for index, arm in enumerate(arms)
        ],
    }


def _figures_in_words(arm: dict[str, Any]) -> list[str]:
    logprob, own = f"mean logprob {arm['mean_logprob']:.2f}", figure(arm["perplexity"], 1)
    if not arm["interventions"]:
        return [logprob, f"ppl {own}"]
    both = f"ppl {own} to itself, {figure(arm['plain_perplexity'], 1)} to the plain model"
    return [logprob, both, f"mean KL to plain {figure(arm['mean_kl'], 3)} nat"]


def _moved_of(arm: dict[str, Any]) -> str:
    return moved_of(item["site"] for item in arm["interventions"])


def _print(result: dict[str, Any], tokens: Sequence[Sequence[Token]]) -> None:
    """Each arm's figures and text; in a terminal the tokens of a steered arm are shaded by their KL, bars beside it."""
    for arm, came in zip(result["arms"], tokens, strict=True):
        facts = [many(len(arm["token_ids"]), "token")]
        if arm["token_ids"]:
            facts += _figures_in_words(arm)
        if arm["interventions"]:
            facts.append(f"moved {figure(arm['dose'], 3)} {_moved_of(arm)}")
            if arm["parts_at"] is not None:
                facts.append(f"parts at token {arm['parts_at']}")
        for name, values in zip(result.get("monitors", ()), arm.get("readings", ()), strict=True):
            written = values[len(result["prompt_ids"]) :]
            facts.append(f"{name} {figure(fsum(written) / len(written), 2) if written else 'unread'}")
        say(f"── {arm['name']}  ({', '.join(facts)})")
        if arm["interventions"] and in_terminal():
            say(f"KL {_bars(came)}")
        say_shaded([("" if "messages" in result else result["prompt"], 0), *_pieces(came, arm["text"])])
        say()
    if any(arm["interventions"] for arm in result["arms"]):
        key = f"  {kl_key()}" if in_terminal() else ""
        note(f"KL: D(steered ‖ plain) of the next token, both on the text of the arm; the tokens' numbers: --json{key}")
    if any(_moved_of(arm) == Z for arm in result["arms"]):
        note(MOVED_Z)
    for arm in result["arms"]:
        if (arm["dose"] or 0.0) > MOST_LENGTHS:
            note(f"{arm['name']} moves the residual by {arm['dose']:.3g} times its own length: is its scale meant?")
    note(f"model {result['model']}, seed {result['sampling']['seed']}, temp {result['sampling']['temp']:g}")


def _bars(tokens: Sequence[Token]) -> str:
    """A bar a token, the shade's twin; of a long text each is the mean of equally many tokens."""
    trail = Trail(shutil.get_terminal_size().columns - len("KL "))
    for token in tokens:
        trail.append(0.0 if token.kl is None else token.kl)
    return sparkline([kl_level(mean) for mean in trail.means()])


def _pieces(tokens: Sequence[Token], text: str) -> Iterator[tuple[str, int]]:
    """The tokens' texts with the levels of their KL, as far as ``text`` goes: it ends before a text to stop at."""
    for token in tokens:
        yield text[: len(token.text)], kl_level(token.kl)
        text = text[len(token.text) :]
    yield text, 0


@verbs.command()
@sentences
def generate(
    prompts: Annotated[
        str,
        typer.Argument(
            help="A file with one prompt per line, or .jsonl; '-' reads such lines from standard input.",
            show_default=False,
        ),
    ] = "",
    model: Model = "demo",
    sae: SAEName = "",
    arm: Annotated[str, typer.Option("--arm", "-a", help="Steer them all: SOURCE[@LAYER]*SCALE.")] = "",
    max_tokens: Annotated[int, within("max_tokens", "Tokens a prompt.")] = 80,
    temp: Temp = 0.0,
    top_p: TopP = 0.0,
    min_p: MinP = 0.0,
    top_k: TopK = 0,
    seed: Annotated[int, within("seed", "The seed of every prompt; each gives the same text as it does alone.")] = 0,
    stop: Annotated[
        list[str] | None,
        typer.Option("--stop", help="A text that ends a continuation and is not part of it; may be repeated."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Prompts per forward pass.")] = 32,
    raw: Annotated[bool, typer.Option("--raw", help="Do not apply the chat template.")] = False,
    text_key: TextKey = "prompt",
    chat: Annotated[
        str,
        typer.Option("--chat", help="In place of them a JSON file of messages, or a conversation a line (JSONL)."),
    ] = "",
    monitor: Monitors = None,
    json: Annotated[bool, typer.Option("--json", help="A line of JSON for each prompt, in their order.")] = False,
) -> None:
    """Write on from many prompts or conversations."""
    sampling = Sampling(max_tokens, temp, top_p, min_p, top_k, seed=seed, stop=tuple(stop or ()))
    given = _read_chats(chat, prompts) or read_prompts(prompts, text_key)
    with open_model(model) as lens, interruptible() as asked:
        vectors = Vectors(lens, sae, model)
        steering = vectors.arm(parse_arm(arm)).interventions if arm else ()
        monitors = [vectors.monitor(parse_monitor(item)) for item in monitor or []]
        shared: dict[str, Any] = {"raw": raw, "completion_batch_size": rows, "monitors": monitors}
        batch = lens.stream_batch(given, sampling=sampling, interventions=steering, **shared)

        def show(at: int, tokens: Sequence[Token], end: ArmEnd) -> None:
            read = {item.name: row.tolist() for item, row in zip(monitors, batch.readings(at), strict=True)}
            _show(lens, given[at], tokens, end, steering, read, len(batch.records[at].prompt_ids), json)

        ended, stopped = _in_order(batch, len(given), show, asked)
    if stopped:
        note(f"mlx-lens-tui: stopped; {ended} of {len(given)} prompts have ended.")
        raise SystemExit(asked.status)


def _in_order(
    batch: BatchGeneration, count: int, show: Callable[[int, Sequence[Token], ArmEnd], None], stop: Callable[[], bool]
) -> tuple[int, bool]:
    """Show each prompt's text once it and all before it have ended; how many have, and whether ``stop`` said so.

    What had begun then is shown as far as it came.
    """
    came: list[list[Token]] = [[] for _ in range(count)]
    ends: dict[int, ArmEnd] = {}
    printed, stopped = 0, False
    for event in batch:
        if isinstance(event, Token):
            came[event.arm].append(event)
        else:
            ends[event.arm] = event
        while printed in ends:
            show(printed, came[printed], ends[printed])
            printed += 1
        if stop():
            stopped = True
            batch.close()
            break
    for at in range(printed, count if stopped else printed):
        if came[at]:
            text = "".join(token.text for token in came[at])
            show(at, came[at], ends.get(at, ArmEnd(at, "stopped", len(came[at]), text)))
    return len(ends), stopped


def _read_chats(chat: str, prompts: str) -> list[Any]:
    """The chat messages of ``--chat``. Raises :class:`LensError` where prompts are given too, or neither."""
    if bool(chat) == bool(prompts):
        raise LensError(
            "Prompts and --chat were both given." if chat else "There are no prompts.", "Name a file of one of them."
        )
    if not chat:
        return []
    chats = parse_chats(read_text("-"), "standard input") if chat == "-" else read_chats(chat)
    return [as_prompt("", turns) for turns in chats]


def read_prompts(prompts: str, text_key: str) -> list[str]:
    """The prompts of a file, or of standard input for ``-``, where each line is one, or an object with ``text_key``.

    Raises :class:`LensError` where there is none.
    """
    if prompts != "-":
        from lens_tui.tasks.feature_page import read_texts

        return read_texts(prompts, text_key=text_key)
    return [item.text for item in parse_prompts(read_text("-"), "standard input", key=text_key).items]


def _steering(lens: LensModel, arm: str, sae: str, model: str) -> tuple[Intervention, ...]:
    return Vectors(lens, sae, model).arm(parse_arm(arm)).interventions if arm else ()


def _show(
    lens: LensModel,
    asked: str | list[dict[str, str]],
    tokens: Sequence[Token],
    end: ArmEnd,
    steering: Sequence[Intervention],
    read: Mapping[str, Sequence[float]],
    n_prompt: int,
    as_json: bool,
) -> None:
    if as_json:
        print_json(
            {
                "model": lens.info.name,
                "index": end.arm,
                **({"prompt": asked} if isinstance(asked, str) else {"messages": asked}),
                "text": end.text,
                "reason": end.reason,
                "token_ids": [token.token_id for token in tokens],
                "logprobs": [token.logprob for token in tokens],
                "steering": acting_words(steering),
                "dose": end.dose,
                **({"monitors": list(read), "readings": list(read.values())} if read else {}),
            }
        )
        return
    facts = [many(len(tokens), "token")]
    for name, values in read.items():
        written = values[n_prompt:]
        facts.append(f"{name} {figure(fsum(written) / len(written), 2) if written else 'unread'}")
    say(f"── {end.arm}  ({', '.join(facts)})")
    say((asked if isinstance(asked, str) else "") + end.text)
    say()


@verbs.command()
@sentences
def loss(
    text: Annotated[str, typer.Argument(help="The text; '-' reads standard input.", show_default=False)] = "",
    model: Model = "demo",
    sae: SAEName = "",
    arm: Annotated[str, typer.Option("--arm", "-a", help="Measure the steered model too: SOURCE[@LAYER]*SCALE.")] = "",
    texts: Annotated[
        str,
        typer.Option("--texts", help="Many texts instead: a file with one per line, or .jsonl; each has its own loss."),
    ] = "",
    text_key: TextKey = "text",
    json: Json = False,
) -> None:
    """Measure how well a text is predicted, plain and steered.

    The mean loss of the next token in nats; of several texts the mean over all their predicted tokens.
    """
    if bool(text) == bool(texts):
        raise LensError("The loss is of a text or of a file of --texts.", "Give one of the two.")
    words = read_prompts(texts, text_key) if texts else [read_text(text)]
    with open_model(model) as lens:
        steering = _steering(lens, arm, sae, model)
        result = measured(lens, words, steering)
    if json:
        print_json(result)
        return
    for item in result["texts"] if texts else ():
        steered = "" if item["delta"] is None else f"  {item['delta']:+.4f}"
        say(f"{item['loss']:8.4f}{steered}  {one_line(words[item['index']], 60)}")
    tokens = many(result["n_tokens"], "token")
    say(f"loss {result['loss']:.4f} nats a token, perplexity {result['perplexity']:.2f}, {tokens}")
    if steering:
        say(f"steered {result['steered_loss']:.4f}, perplexity {result['steered_perplexity']:.2f}: "
            f"{result['delta']:+.4f}")  # fmt: skip
    note(f"{result['model']}, {'; '.join(result['steering']) or 'not steered'}; the first token is not predicted")


def measured(lens: LensModel, texts: Sequence[str], steering: Sequence[Intervention]) -> dict[str, Any]:
    """The loss in nats a predicted token, over all of them and of each text; ``n_tokens`` are those predicted."""
    rows = lens.rows(list(texts))
    counts = [len(row) - 1 for row in rows]
    plain, steered = lens.losses(rows), None
    if steering:
        with lens.intervene(*steering):
            steered = lens.losses(rows)
    each = [
        _of_one(count, loss, None if steered is None else steered[at])
        for at, (count, loss) in enumerate(zip(counts, plain, strict=True))
    ]
    total = sum(counts)
    means = [None if some is None else fsum(map(mul, counts, some)) / total for some in (plain, steered)]
    assert means[0] is not None
    return {
        "model": lens.info.name,
        **_of_one(total, means[0], means[1]),
        "steering": acting_words(steering),
        "texts": [{"index": at, **item} for at, item in enumerate(each)],
    }


def _of_one(count: int, loss: float, steered: float | None) -> dict[str, Any]:
    return {
        "n_tokens": count,
        "loss": loss,
        "perplexity": perplexity_of(-loss),
        "steered_loss": steered,
        "steered_perplexity": perplexity_of(None if steered is None else -steered),
        "delta": None if steered is None else steered - loss,
    }
