"""Beginnings written for this project, five a domain, from which the bundled model writes its own texts."""

from __future__ import annotations

PROMPTS: dict[str, tuple[str, ...]] = {
    "bible": (
        "And it came to pass, that",
        "Then said the king unto his servants,",
        "Blessed is the man that",
        "1 Now these are the names of the children of",
        "And the priest shall take the lamb, and",
    ),
    "dialogue": (
        "User: I want to book a table for two.\nAssistant:",
        "User: Can you find me a flight to Denver next Friday?\nAssistant:",
        "User: What will the weather be like in the morning?\nAssistant:",
        "User: I'd like a large iced coffee, please.\nAssistant:",
        "User: Please send some money from my savings account.\nAssistant:",
    ),
    "encyclopedia": (
        "The river rises in the mountains of",
        "A volcano is",
        "The bicycle was invented",
        "The town lies on the coast of",
        "In mathematics, a group is",
    ),
    "fairytales": (
        "There was once a king who had",
        "Far away in the deep forest lived an old woman who",
        "The youngest son set out one morning to",
        "\"Little bird,\" said the princess,",
        "The tin cup stood on the shelf and said to the kettle,",
    ),
    "history_law": (
        "The Constitution gives Congress the power",
        "Fellow citizens, in the year that has passed",
        "The war had left the farmers",
        "By the common law, a subject who",
        "The colonists refused to pay",
    ),
    "novels": (
        "The old man opened the door and",
        "Mrs. Harding laid down her letter and looked at",
        "It was late in the autumn when the ship",
        "\"You have not told me,\" said the detective,",
        "The train drew slowly out of the station, and she",
    ),
    "poetry": (
        "O lonely harbour of the winter sea,\n",
        "The roses fade, and",
        "I sing the open fields,\n",
        "When night comes down upon the hill,\n",
        "Love, that was young and",
    ),
    "python": (
        "# shelf.py\nimport os\n",
        "def read_lines(path, encoding=\"utf-8\"):\n",
        "class Queue:\n    \"\"\"",
        "    for name in sorted(self._items):\n",
        "import re\nimport sys\n\ndef main(argv):\n",
    ),
    "recipes": (
        "Ingredients:\n\n- 2 cups flour\n-",
        "Onion soup\n\nIngredients:\n\n",
        "To make a good white sauce, melt",
        "Wash the potatoes and cut them",
        "Directions:\n\n1. Heat the oven to",
    ),
    "science": (
        "A star forms when",
        "Bacteria that live without oxygen",
        "The Moon always shows the same face because",
        "When light from a distant galaxy",
        "The cell wall protects",
    ),
    "shakespeare": (
        "KING HENRY: My lords, the",
        "NURSE: Good madam, I",
        "[Enter two Soldiers]\n\nFirst Soldier:",
        "CLOWN: Sir, a fool",
        "PRINCE: Now is the hour when",
    ),
    "stories": (
        "Once upon a time, there was a little",
        "One day, Ben and his sister found",
        "Mia had a red ball that",
        "The big brown bear was hungry, so",
        "It was raining, and the puppy",
    ),
    "techdocs": (
        "The SELECT statement is used to",
        "To install the package, run",
        "The function returns a list of",
        "Changed in this version: the option",
        "A transaction that has been started",
    ),
}  # fmt: skip
"""By domain of the corpus. None of them is taken from it."""
