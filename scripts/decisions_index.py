"""Write docs/decisions/README.md, the list of decisions by their titles; `--check` only compares."""

import re
import sys
from pathlib import Path

from generated import main

PAGE = Path(__file__).parents[1] / "docs" / "decisions" / "README.md"
HEAD = """# Decisions

What was chosen, what instead, and what it costs, ten lines each. This page is written by `make docs`.
"""


def page() -> str:
    """The whole page."""
    lines = []
    for path in sorted(PAGE.parent.glob("[0-9]*.md")):
        title = path.read_text(encoding="utf-8").partition("\n")[0]
        number, said = re.findall(r"# (\d+):? (.+)", title)[0]
        lines.append(f"- {number} [{said}]({path.name})")
    return "\n".join([HEAD, *lines, ""])


if __name__ == "__main__":
    sys.exit(main(PAGE, page))
