"""Write glossary.md from the entries in ``lens_tui/records/glossary.py``: ``python docs/make_glossary.py``."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))


def main() -> None:
    """Write the page."""
    from lens_tui.records.glossary import as_markdown

    (HERE / "glossary.md").write_text(as_markdown(), encoding="utf-8")


if __name__ == "__main__":
    main()
