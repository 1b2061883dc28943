"""``mlx-lens-tui generate`` and ``loss``: texts for many prompts, and how well a text is predicted."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lens_tui.records import ArmEnd, Intervention, LensError, Sampling, Token
from lens_tui.records.modes import told

from .long_work import interruptible
from .output import note, print_json, say
from .sources import Vectors, open_model, parse_arm, read_text

if TYPE_CHECKING:
    from lens_tui.lens import LensModel


def generate(
    prompts: str,
    *,
    model: str,
    sae: str,
    arm: str,
    sampling: Sampling,
    rows: int,
    text_key: str,
    raw: bool,
    as_json: bool,
) -> None:
    """Write on from every prompt, all steered as ``arm`` says, and print each in its turn as soon as it is there."""
    texts = read_prompts(prompts, text_key)
    with open_model(model) as lens, interruptible() as asked:
        steering = _steering(lens, arm, sae, model)
        batch = lens.stream_batch(texts, sampling=sampling, interventions=steering, raw=raw, completion_batch_size=rows)
        came: list[list[Token]] = [[] for _ in texts]
        ends: dict[int, ArmEnd] = {}
        printed, stopped = 0, False
        for event in batch:
            if isinstance(event, Token):
                came[event.arm].append(event)
            else:
                ends[event.arm] = event
            while printed in ends:
                _show(lens, texts[printed], came[printed], ends[printed], steering, as_json)
                printed += 1
            if asked():
                stopped = True
                batch.close()
                break
        for at in range(printed, len(texts) if stopped else printed):
            if came[at]:
                text = "".join(token.text for token in came[at])
                end = ends.get(at, ArmEnd(at, "stopped", len(came[at]), text))
                _show(lens, texts[at], came[at], end, steering, as_json)
    if stopped:
        note(f"mlx-lens-tui: stopped; {len(ends)} of {len(texts)} prompts have ended.")
        raise SystemExit(asked.status)


def read_prompts(prompts: str, text_key: str) -> list[str]:
    """The prompts of a file, or of standard input for ``-``, where each line is one, or an object with ``text_key``.

    Raises :class:`LensError` where there is none.
    """
    if prompts != "-":
        from lens_tui.tasks.features import read_texts

        return read_texts(prompts, text_key=text_key)
    lines = [line.removesuffix("\r") for line in read_text("-").split("\n")]
    return [_prompt(line, number, text_key) for number, line in enumerate(lines, 1) if line.strip()]


def _prompt(line: str, number: int, text_key: str) -> str:
    if not line.startswith("{"):
        return line
    try:
        text = json.loads(line)[text_key]
    except (ValueError, KeyError, RecursionError):
        text = None
    if not isinstance(text, str):
        raise LensError(
            f"Line {number} of standard input is no object with a text under {text_key!r}.", "Name the key: --text-key."
        )
    return text


def _steering(lens: LensModel, arm: str, sae: str, model: str) -> tuple[Intervention, ...]:
    return Vectors(lens, sae, model).arm(parse_arm(arm)).interventions if arm else ()


def _show(
    lens: LensModel,
    prompt: str,
    tokens: Sequence[Token],
    end: ArmEnd,
    steering: Sequence[Intervention],
    as_json: bool,
) -> None:
    if as_json:
        print_json(
            {
                "model": lens.info.name,
                "index": end.arm,
                "prompt": prompt,
                "text": end.text,
                "reason": end.reason,
                "token_ids": [token.token_id for token in tokens],
                "logprobs": [token.logprob for token in tokens],
                "steering": list(_words(steering)),
                "dose": end.dose,
            }
        )
        return
    say(f"── {end.arm}  ({len(tokens)} tokens)")
    say(prompt + end.text)
    say()


def _words(steering: Sequence[Intervention]) -> Iterator[str]:
    for item in steering:
        amount = told(item)
        scale = "" if amount is None else f" {amount[1]:g}"
        yield f"{item.mode}{scale} at layer {item.layer} {item.site}, {item.positions.kind}"


def loss(text: str, *, model: str, sae: str, arm: str, as_json: bool) -> None:
    """Print the mean next-token loss of a text, plain and, with ``arm``, steered."""
    words = read_text(text)
    with open_model(model) as lens:
        steering = _steering(lens, arm, sae, model)
        result = measured(lens, words, steering)
    if as_json:
        print_json(result)
        return
    say(f"loss {result['loss']:.4f} nats a token, perplexity {result['perplexity']:.2f}, {result['n_tokens']} tokens")
    if steering:
        say(f"steered {result['steered_loss']:.4f}, perplexity {result['steered_perplexity']:.2f}: "
            f"{result['delta']:+.4f}")  # fmt: skip
    note(f"{result['model']}, {'; '.join(result['steering']) or 'not steered'}; the first token is not predicted")


def measured(lens: LensModel, text: str, steering: Sequence[Intervention]) -> dict[str, Any]:
    """The loss in nats a predicted token; ``n_tokens`` are those predicted, all but the first."""
    ids = list(lens.tokens.encode(text))
    plain = lens.loss(ids)
    steered = None
    if steering:
        with lens.intervene(*steering):
            steered = lens.loss(ids)
    return {
        "model": lens.info.name,
        "n_tokens": len(ids) - 1,
        "loss": plain,
        "perplexity": _exp(plain),
        "steering": list(_words(steering)),
        "steered_loss": steered,
        "steered_perplexity": None if steered is None else _exp(steered),
        "delta": None if steered is None else steered - plain,
    }


def _exp(loss: float) -> float:
    return math.exp(min(loss, 700.0))
