"""The jobs of the pages in docs/screens/, as the keys that do them from the start of ``mlx-lens-tui --demo``.

``make.py`` plays each on the real app and takes its picture; ``docs/make_screens.py`` writes their table, with the
number of keys counted from here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Job:
    """What a person wants, and the keys for it.

    ``keys`` are Textual's names of keys; a part that begins with ``'`` is text that is typed, a key a character.
    ``picture`` is the name of the SVG that shows its end, empty for none.
    """

    screen: str
    wanted: str
    keys: tuple[str, ...]
    picture: str = ""

    @property
    def parts(self) -> tuple[tuple[str, ...], ...]:
        """Textual's keys of each part."""
        return tuple(
            tuple(_NAMED.get(char, char) for char in part[1:]) if part[0] == "'" else (part,) for part in self.keys
        )

    @property
    def presses(self) -> tuple[str, ...]:
        """Every key of the job, one by one."""
        return tuple(key for part in self.parts for key in part)

    @property
    def written(self) -> str:
        """The keys as a page shows them, in code."""
        return " ".join(f"`{part[1:] if part[0] == chr(39) else _SHOWN.get(part, part)}`" for part in self.keys)


_NAMED = {" ": "space", "|": "vertical_line", ".": "full_stop"}
_SHOWN = {
    **{"down": "↓", "up": "↑", "enter": "⏎", "escape": "esc", "plus": "+", "minus": "-", "slash": "/"},
    **{"right_square_bracket": "]", "left_square_bracket": "[", "question_mark": "?", "right_curly_bracket": "}"},
}

COOKING = "'stir it|boil it|bake it|chop it"
TALES = "'he ran|she sat|he saw|she hid"

JOBS: tuple[Job, ...] = (
    Job("load", "See what the loaded model needs and which SAEs it has", ("1",), "load"),
    Job("load", "Attach another SAE", ("1", "tab", "enter")),
    Job("steer", "See the vector bench", ("2",), "steer"),
    Job("steer", "Measure the dose-response of a vector", ("2", "v"), "dose"),
    Job(
        "steer",
        "Which layer tells dialogues from stories: a probe of labelled texts",
        ("2", "a", "9", "'examples/dialogue_or_story.jsonl", "enter"),
        "steer-probe",
    ),
    Job("steer", "The kinds of vector that can be added", ("2", "a"), "steer-add"),
    Job("generate", "Compare two steered arms with the baseline", ("r",), "generate"),
    Job("generate", "The same at a higher scale", ("r", "plus", "plus", "plus")),
    Job("generate", "A prompt of your own", ("i", "ctrl+u", "'The king", "enter")),
    Job("generate", "The features of what every arm writes, live", ("F", "r"), "generate-features"),
    Job("generate", "Read every token with a feature", ("A", "down", "'2666", "enter", "r"), "generate-monitor"),
    Job(
        "generate",
        "Three scales of a vector on five prompts",
        ("S", "down", "down", "'5", "down", "'9 19 38", "enter"),
        "generate-set",
    ),
    Job(
        "generate",
        "The same on five prompts of your own",
        (
            *("S", "down", "'The king", "enter", "'The sea", "enter", "'We met", "enter", "'Rain fell", "enter"),
            *("'She said", "down", "down", "'9 19 38", "enter"),
        ),
    ),
    Job("generate", "Judge the arms blind, twice, and see the tally", ("B", "1", "2", "v"), "generate-blind"),
    Job("generate", "Judge them blind on three prompts of a set", ("S", "down", "down", "'3", "enter", "B", "'121")),
    Job(
        "generate",
        "Talk to the model, and see the prompt as it reads it",
        ("C", "i", "ctrl+u", "'I need a train to Leeds.", "enter", "c"),
        "generate-chat",
    ),
    Job("features", "The top features of a token", ("4",)),
    Job(
        "features",
        "The top features of a token that an arm wrote",
        ("r", "4", "right_square_bracket", "right_square_bracket", "h", "h", "h"),
        "features",
    ),
    Job("features", "Find a feature by words and steer with it", ("4", "slash", "'bible", "enter", "s")),
    Job(
        "features",
        "The features that tell two sets of texts apart",
        ("4", "D", COOKING, "down", "down", TALES, "enter"),
        "features-contrast",
    ),
    Job("features", "Mark two features and keep them as a list", ("4", "space", "j", "space", "w", "'doors", "enter")),
    Job("features", "Write your label of a feature", ("4", "L", "'doors", "enter")),
    Job("lens", "What each layer would say", ("5",), "lens"),
    Job("lens", "What each layer and part adds to the logit", ("5", "V"), "lens-adds"),
    Job("lens", "Where the heads of a layer look", ("5", "V", "V"), "lens-heads"),
    Job("lens", "Follow a token through the layers, and steer by it there", ("5", "j", "enter", "s")),
    Job("causes", "Which layer and token carry an answer", ("6", "enter"), "causes"),
    Job("causes", "Which heads carry it", ("6", "V", "enter"), "causes-heads"),
    Job("causes", "Trace it by noise", ("6", "V", "V", "enter"), "causes-trace"),
    Job("causes", "What led to the next token: a graph", ("6", "V", "V", "V", "enter"), "causes-graph"),
    Job("causes", "Check its strongest edge", ("6", "V", "V", "V", "enter", "c")),
    Job("causes", "Take the strongest head away in a run", ("6", "V", "enter", "s", "r")),
    Job("history", "Make a run again, token for token", ("r", "H", "r")),
    Job("history", "Two runs side by side", ("r", "plus", "H", "space", "j", "space"), "history-two"),
    Job("history", "See the runs", ("r", "plus", "H"), "history"),
    Job("history", "Export a run in five formats", ("r", "e", "enter")),
)
