"""``mlx-lens-tui compare``: the Generate screen without the screen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lens_tui.records import Arm, ArmEnd, Sampling, Token
from lens_tui.records.modes import told

from .long_work import Asked, interruptible
from .output import INTERRUPTED, note, print_json, say
from .sources import Vectors, open_model, parse_arm, read_text

if TYPE_CHECKING:
    from lens_tui.lens import Comparison


def compare(
    prompt: str,
    arms: Sequence[str],
    *,
    model: str,
    sae: str,
    sampling: Sampling,
    raw: bool,
    as_json: bool,
    stream: bool,
) -> None:
    """Run the comparison and print it; ``stream`` prints each token as a line of JSON as well."""
    text = read_text(prompt)
    specs = [parse_arm(arm) for arm in arms]

    with open_model(model) as lens:
        vectors = Vectors(lens, sae, model)
        named = [Arm("baseline"), *(vectors.arm(spec) for spec in specs)]
        lacks = lens.info.lacks_template and not raw
        with interruptible() as asked:
            run = lens.compare(text, named, sampling, raw=raw, progress=lambda *_: _go_on(asked))
            tokens, ends = _collect(run, stream=as_json and stream, stop=asked)
        stopped = any(end.reason == "stopped" for end in ends.values())
        result = {**record(text, lens.info.name, sampling, named, run, tokens, ends), "stopped": stopped}
    if as_json:
        print_json({"event": "Run", **result} if stream else result)
    else:
        _print(result)
        if lacks:
            note("the model has no chat template: the prompt went in as it is")
    if stopped:
        raise SystemExit(asked.status)


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
                "interventions": [_intervention(item) for item in arm.interventions],
                "text": ends[index].text,
                "reason": ends[index].reason,
                "token_ids": [token.token_id for token in tokens[index]],
                **_figures(tokens[index]),
                "parts_at": _parts_at(tokens[0], tokens[index]) if index else None,
                "dose": ends[index].dose,
            }
            for index, arm in enumerate(arms)
        ],
    }


def _figures(tokens: Sequence[Token]) -> dict[str, Any]:
    logprobs, plain = [token.logprob for token in tokens], [token.plain_logprob for token in tokens]
    forward, reverse = [token.kl for token in tokens], [token.reverse_kl for token in tokens]
    return {
        "logprobs": logprobs,
        "plain_logprobs": plain,
        "kl": forward,
        "reverse_kl": reverse,
        "mean_logprob": _mean(logprobs),
        "perplexity": _perplexity(_mean(logprobs)),
        "plain_perplexity": _perplexity(_mean(plain)),
        "mean_kl": _mean(forward),
        "mean_reverse_kl": _mean(reverse),
    }


def _intervention(item: Any) -> dict[str, Any]:
    acting = told(item)
    return {
        "mode": item.mode,
        "layer": item.layer,
        "site": item.site,
        "vector": item.vector.name,
        "origin": {"kind": item.vector.origin.kind, **item.vector.origin.facts},
        "scale": None if acting is None else acting[1],
        "positions": item.positions.kind,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _perplexity(mean_logprob: float | None) -> float | None:
    return None if mean_logprob is None else math.exp(min(700.0, -mean_logprob))


def _number(value: float | None, places: int) -> str:
    return "?" if value is None or value != value else f"{value:.{places}f}"


def _parts_at(baseline: Sequence[Token], other: Sequence[Token]) -> int | None:
    """The first generated token that differs from the baseline's; None if one is a beginning of the other."""
    pairs = zip(baseline, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a.token_id != b.token_id), None)


def _figures_in_words(arm: dict[str, Any]) -> list[str]:
    logprob, own = f"mean logprob {arm['mean_logprob']:.2f}", _number(arm["perplexity"], 1)
    if not arm["interventions"]:
        return [logprob, f"ppl {own}"]
    both = f"ppl {own} to itself, {_number(arm['plain_perplexity'], 1)} to the plain model"
    return [logprob, both, f"mean KL to plain {_number(arm['mean_kl'], 3)} nat"]


def _print(result: dict[str, Any]) -> None:
    for arm in result["arms"]:
        facts = [f"{len(arm['token_ids'])} tokens"]
        if arm["token_ids"]:
            facts += _figures_in_words(arm)
        if arm["interventions"]:
            facts.append(f"moved {_number(arm['dose'], 3)} |h|")
            if arm["parts_at"] is not None:
                facts.append(f"parts at token {arm['parts_at']}")
        say(f"── {arm['name']}  ({', '.join(facts)})")
        say(result["prompt"] + arm["text"])
        say()
    if any(arm["interventions"] for arm in result["arms"]):
        note("KL: D(steered ‖ plain) of the next token, both on the text of the arm; the tokens' numbers: --json")
    note(f"model {result['model']}, seed {result['sampling']['seed']}, temp {result['sampling']['temp']:g}")
