"""The verbs of kept runs: ``runs list``, ``show``, ``export`` and ``tally``, and ``replay``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lens_tui.records import LensError, Token, paths
from lens_tui.records.paths import expanded
from lens_tui.records.read_files import FileAbsent
from lens_tui.records.run import figures
from lens_tui.records.sanitise import one_line
from lens_tui.records.wording import many
from lens_tui.tui.format import figure

from .output import (
    Asked,
    check_target,
    interruptible,
    kept_when,
    note,
    note_none,
    print_json,
    print_none,
    print_written,
    say,
    say_made_with,
    say_row,
    sentences,
)
from .sources import Json, asked_adapter, asked_dequantize, open_sae

if TYPE_CHECKING:
    from lens_tui.lens.model import LensModel
    from lens_tui.records.judgements import Contest, Judgement
    from lens_tui.records.run import RunRecord
    from lens_tui.records.run_store import RunStore
    from lens_tui.sae.load_sae import SAE
    from lens_tui.tasks.replay import Replay

verbs = typer.Typer()
runs = typer.Typer(help="Runs that were kept: list, show, export and tally them.", no_args_is_help=True)

Run = Annotated[str, typer.Argument(help="The number of a kept run, or a file it was exported to as JSON.")]


_NONE = LensError("No run has been kept yet.", "The app keeps every run, and so does `compare --keep`.")


def _store() -> RunStore:
    from lens_tui.records.run_store import RunStore

    if not paths.database_kept():
        raise _NONE
    return RunStore()


def open_run(named: str) -> RunRecord:
    """A run by its number in the history or by its file. Raises :class:`LensError` where there is none."""
    if not named.isdecimal() or len(named) > 18:
        from lens_tui.tasks.run_export import read_run

        try:
            return read_run(named)
        except FileAbsent as error:
            raise LensError(
                f"There is no run and no file {one_line(repr(named), 120)}.",
                "`mlx-lens-tui runs list` lists the runs by number; a file is one that `runs export` wrote as JSON.",
            ) from error
    found = _store().get(int(named))
    if found is None:
        raise LensError(f"There is no run {named} in the history.", "`mlx-lens-tui runs list` lists them.")
    return found


@runs.command("list")
@sentences
def list_runs(
    words: Annotated[
        str, typer.Argument(help="Only runs whose prompt, texts and names of arms hold these words.")
    ] = "",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many, newest first.")] = 50,
    json: Json = False,
) -> None:
    """List the runs that were kept, newest first."""
    if not paths.database_kept():
        print_none("runs", _NONE, as_json=json)
        return
    store = _store()
    store.broken()
    found = store.list(words, limit)
    if json:
        print_json({"model": None, "runs": [asdict(row) for row in found]})
        return
    for row in found:
        arms = ", ".join(one_line(name, 40) for name in row.arms[1:]) or "baseline alone"
        model, prompt = one_line(row.model, 40), one_line(row.prompt, 60)
        say_row(f"{row.id:>6}  {kept_when(row.created)}  {row.state:<7}  {model}  {arms}  {prompt!r}")
    if not found:
        note_none("run", words, lambda: store.list("", 1))


@runs.command()
@sentences
def show(run: Run, json: Json = False) -> None:
    """Show a run: prompt, texts, figures, judgements."""
    from lens_tui.tasks.run_export import as_data

    record = open_run(run)
    judged = _judged(record.id)
    if json:
        print_json({**as_data(record), "judgements": [asdict(item) for item in judged]})
        return
    made, sampling = record.made_with, record.sampling
    say(f"run {record.id or run}  {record.state}  {record.model}")
    most = many(sampling.max_tokens, "token")
    say(f"seed {sampling.seed}, temp {sampling.temp:g}, at most {most}{', raw' * record.raw}")
    say_made_with(made)
    if made.adapter:
        say(f"LoRA: {made.adapter}")
    say()
    for turn in record.turns:
        say(f"{turn.role}: {turn.content}\n")
    for kept in record.arms:
        found = figures(kept.tokens)
        facts = [many(len(kept.tokens), "token"), *_facts(found, steered=not kept.arm.is_baseline)]
        say(f"── {kept.arm.name}  ({', '.join(facts)})")
        say(record.before + kept.text)
        say()
    for item in judged:
        say(f"judged blind: {'a tie' if item.chosen is None else record.arms[item.chosen].arm.name + ' preferred'}")


def _facts(found: dict[str, Any], *, steered: bool) -> list[str]:
    if found["perplexity"] is None:
        return []
    own = f"ppl {figure(found['perplexity'], 1)}"
    if not steered or found["mean_kl"] is None:
        return [own]
    return [f"{own} to itself, {figure(found['plain_perplexity'], 1)} to the plain model",
            f"mean KL to plain {figure(found['mean_kl'], 3)} nat"]  # fmt: skip


def _judged(run: int) -> list[Judgement]:
    from lens_tui.records.judgements import JudgementStore

    return JudgementStore(_store()).list(run) if run else []


@runs.command()
@sentences
def export(
    run: Run,
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            help="The folder to write into, or a file such as run.md; '-' prints one format.",
            show_default=False,
        ),
    ] = "",
    formats: Annotated[str, typer.Option("--format", "-f", help="Which of json, md, csv, svg and py.")] = "",
    name: Annotated[str, typer.Option(help="The files' name, without suffix.")] = "",
    json: Json = False,
) -> None:
    """Write a run as JSON, Markdown, CSV, SVG and Python.

    The JSON can be replayed; the Python makes the run again and compares the tokens. Without --out the files go to the
    folder of exports among the app's data; an --out that ends in .json, .md, .csv, .svg or .py is that one file.
    """
    from lens_tui.tasks.run_export import FORMATS, file_format, formats_of, write, write_file

    place = expanded(out)
    single = file_format(place)
    record, asked = open_run(run), formats_of(formats or single or " ".join(FORMATS))
    check_target(out, single, asked, name, example="py", as_json=json)
    if out == "-":
        say(FORMATS[asked[0]](record).removesuffix("\n"))
        return
    if single:
        files = [write_file(record, place)]
    else:
        files = write(record, place if out else paths.exports_folder(), name, asked)
    print_written({"model": record.model, "run": record.id}, files, as_json=json)


@runs.command("tally")
@sentences
def tally_runs(
    run: Annotated[list[str] | None, typer.Argument(help="Only judgements of these runs, by number.")] = None,
    json: Json = False,
) -> None:
    """Count the blind judgements of each arm.

    How often each was preferred, with the 95 % interval (Wilson).
    """
    from lens_tui.records.judgements import JudgementStore, tally

    if not run and not paths.database_kept():
        print_none("contests", _NONE, as_json=json)
        return
    store = _store()
    wanted = {open_run(named).id for named in run or ()}
    judged = [item for item in JudgementStore(store).list() if not wanted or item.run in wanted]
    records = {number: store.get(number) for number in {item.run for item in judged}}
    pairs = ((record, item) for item in judged if (record := records[item.run]) is not None)
    contests = tally(pairs)
    if json:
        print_json({"model": None, "contests": [{**asdict(one), "chance": one.chance} for one in contests]})
        return
    for contest in contests:
        _say_contest(contest)
    if not contests:
        note("Nothing has been judged yet: B on Generate shows lanes without their names.")


def _say_contest(contest: Contest) -> None:
    seen = f"{many(contest.prompts, 'prompt')}, {many(contest.seeds, 'seed')}"
    say(f"── {contest.model}: {contest.judged} judgements, {contest.ties} ties, {seen}")
    width = max(len(one_line(arm.name, 40)) for arm in contest.arms)
    for arm in contest.arms:
        share = "" if arm.share is None else f"{arm.share:6.1%}  [{arm.low:.1%}, {arm.high:.1%}]"
        say(f"{one_line(arm.name, 40):<{width}}  {arm.preferred:>4}  {share}  {'; '.join(arm.acts)}".rstrip())
    note(f"share of judgements that were no tie, 95 % interval after Wilson (1927); by chance {contest.chance:.1%}")
    say()


@verbs.command()
@sentences
def replay(
    run: Run,
    model: Annotated[str, typer.Option("--model", "-m", help="Another model, or another place of the same.")] = "",
    json: Json = False,
) -> None:
    """Make a run again and say whether the tokens are the same.

    Where they are not: the first token that differs, and what may be the cause. The exit status is 1 then.
    """
    from lens_tui.tasks.replay import held_against, run_again

    record = open_run(run)
    with _model_of(record, model) as lens, interruptible() as asked:
        again = run_again(
            lens,
            record,
            lambda name: _sae_of(record, name),
            heard=lambda _: not asked(),
            progress=lambda *_: _go_on(asked),
        )
    found = held_against(record, again)
    if json:
        print_json(_result(record, again, found))
    else:
        _print(again, found)
    if asked.status:
        raise SystemExit(asked.status)
    if not found.same:
        raise SystemExit(1)


def _go_on(asked: Asked) -> None:
    """Nothing is there to be printed before the first token."""
    if asked():
        raise SystemExit(asked.status)


def _model_of(record: RunRecord, model: str) -> LensModel:
    """The model of a run, with its weights held and its LoRA as then, unless ``--dequantize``, ``--adapter`` differ."""
    from lens_tui.lens.model import LensModel
    from lens_tui.tasks.made_with import held_as

    source = model or record.made_with.source or record.model
    if not source:
        raise LensError("The run does not say which model made it.", "Name it: --model.")
    adapter = asked_adapter.get() or record.made_with.adapter
    return LensModel(source, dequantize=asked_dequantize.get() or held_as(record.made_with), adapter=adapter)


def _sae_of(record: RunRecord, name: str) -> SAE:
    if name not in record.made_with.saes:
        raise LensError(f"The run does not say where its SAE {one_line(name, 60)!r} is.", "It cannot be made again.")
    return open_sae(record.made_with.saes[name], record.model)


def _result(record: RunRecord, again: RunRecord, found: Replay) -> dict[str, Any]:
    return {
        "model": again.model,
        "run": record.id or None,
        "same": found.same,
        "sentence": found.sentence(),
        "tokens": found.n_tokens,
        "prompt_at": found.prompt_at,
        "differences": [
            {
                "arm": item.arm,
                "index": item.index,
                "was": _of_token(item.was),
                "now": _of_token(item.now),
                "margin": item.margin,
            }
            for item in found.differences
        ],
        "causes": list(found.causes),
        "made_with": asdict(record.made_with),
        "now_with": asdict(again.made_with),
        "arms": [
            {"name": kept.arm.name, "text": kept.text, "token_ids": [token.token_id for token in kept.tokens]}
            for kept in again.arms
        ],
        "stopped": again.state != "done",
    }


def _of_token(token: Token | None) -> dict[str, Any] | None:
    return None if token is None else {"id": token.token_id, "token": token.token, "logprob": token.logprob}


def _print(again: RunRecord, found: Replay) -> None:
    places: dict[str, int] = {item.arm: item.index for item in found.differences}
    for kept in again.arms:
        at = places.get(kept.arm.name)
        how = "the same" if at is None else f"differs from token {at}"
        say(f"── {kept.arm.name}  ({many(len(kept.tokens), 'token')}, {how})")
        say(again.before + kept.text)
        say()
    say(found.sentence())
    for cause in found.causes[2:]:
        say(cause)
