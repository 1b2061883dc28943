"""Taking a run elsewhere: the form that asks where it is written, and the command that makes it again."""

from __future__ import annotations

import os
from pathlib import Path

from lens_tui.records import LensError, paths
from lens_tui.records.paths import expanded
from lens_tui.records.run import RunRecord
from lens_tui.records.sanitise import one_line
from lens_tui.records.vector_formats import keep_vector
from lens_tui.tasks.run_command import as_command, set_command
from lens_tui.tasks.run_export import FORMATS, default_name, formats_of, write, write_chat, write_prompts
from lens_tui.tui.host import LensHost
from lens_tui.tui.run_text import RunText
from lens_tui.tui.set_text import SetText

from .form import Field, FormScreen, filled


def command_of(run: RunText | SetText) -> str:
    """The command that makes a run or a set again; the files that it names are written."""
    if isinstance(run, SetText):
        job, folder = run.job, paths.exports_folder()
        path = job.path if job.path in ("", "bundled") else str(expanded(job.path).absolute())
        prompts = job.prompts[: job.first]
        return set_command(
            run.record(),
            prompts,
            path,
            job.first if path else None,
            job.seeds,
            keep_vector,
            lambda items: write_prompts(items, folder),
        )
    return as_command(run.record(), keep_vector, _kept, lambda turns: write_chat(turns, paths.exports_folder()))


def _kept(run: RunRecord) -> Path:
    return write(run, paths.exports_folder(), formats=("json",))[0]


def ask_export(lens: LensHost, run: RunText) -> None:
    """Ask for folder, name and formats, and write the run there."""
    record = run.record()

    def take(values: dict[str, str] | None) -> None:
        if values is None:
            return
        folder = expanded(values["where"].strip())
        try:
            files = write(record, folder, values["name"], formats_of(values["as"]))
        except LensError as error:
            lens.show_error(error.message, error.hint)
            return
        suffixes = ", ".join(file.suffix for file in files)
        lens.say(f"Wrote {one_line(files[0].stem)} ({suffixes}) to {one_line(str(folder.absolute()))}")

    fields = [
        Field("where", "folder", str(paths.exports_folder()), "a folder; it is made if it is not there", filled),
        Field("name", "name", default_name(record), "a number follows where it is taken", filled),
        Field("as", "as", " ".join(FORMATS), f"some of {' '.join(FORMATS)}", _formats),
    ]
    note = f"The folder you came from is {one_line(os.environ.get('PWD', os.curdir), 120)}"
    lens.push_screen(FormScreen("Export the run", fields, note), take)


def _formats(text: str) -> str:
    try:
        formats_of(text)
    except LensError as error:
        return error.hint.removeprefix("Use ").rstrip(".")
    return ""
