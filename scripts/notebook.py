"""Write lda_attribution_notebook.ipynb from its jupytext source; `--check` only compares."""

import json
import sys
from pathlib import Path
from typing import Any

import jupytext
from generated import main

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "notebooks" / "lda_attribution_notebook.py"
NOTEBOOK = ROOT / "lda_attribution_notebook.ipynb"


def notebook() -> str:
    """The notebook's text: no outputs, and a cell's id is its place, so that equal sources give equal bytes."""
    made: Any = jupytext.reads(SOURCE.read_text(encoding="utf-8"), fmt="py:percent")
    metadata = {"kernelspec": made.metadata["kernelspec"], "language_info": {"name": "python"}}
    cells = [_cell(place, cell) for place, cell in enumerate(made.cells)]
    written = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(written, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _cell(place: int, cell: Any) -> dict[str, Any]:
    own: dict[str, Any] = {"outputs": [], "execution_count": None} if cell.cell_type == "code" else {}
    source = cell.source.splitlines(keepends=True)
    return {"cell_type": cell.cell_type, "id": f"cell-{place:02d}", "metadata": {}, "source": source, **own}


if __name__ == "__main__":
    sys.exit(main(NOTEBOOK, notebook))
