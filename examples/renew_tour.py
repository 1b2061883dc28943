"""Run the notebook's cells in order, and write what they print back into it.

    python examples/renew_tour.py [examples/tour.ipynb]

The cells are plain Python, so nothing of Jupyter is needed. What is kept of each is what it prints.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

TOUR = Path(__file__).with_name("tour.ipynb")


def run(notebook: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Execute the code cells in one namespace; gives each cell with what it printed."""
    space: dict[str, Any] = {"__name__": "__main__"}
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(code, 1):
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile("".join(cell["source"]), f"tour.ipynb, cell {number}", "exec"), space)
        yield cell, printed.getvalue()


def main() -> None:
    """Renew the outputs."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else TOUR
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for number, (cell, printed) in enumerate(run(notebook), 1):
        lines = printed.splitlines(keepends=True)
        cell["execution_count"] = number
        cell["outputs"] = [{"name": "stdout", "output_type": "stream", "text": lines}] if lines else []
    path.write_text(json.dumps(notebook, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
