"""Labelling in a terminal, for machines without a browser."""

import sys
from collections.abc import Callable

import click

from datablame.errors import RequestError, problem
from datablame.view.labelling import KEYS, Labelling

_HELP = "  ".join(f"{key} {label}" for key, label in KEYS.items()).replace("unscored", "cannot tell")


def label_in_terminal(labelling: Labelling, say: Callable[[str], None]) -> None:
    """Show one output after another and take single keys, until all are labelled or the person leaves.

    Raises RequestError where there is no terminal.
    """
    if not sys.stdin.isatty():
        raise RequestError(problem("view", "no terminal"))
    note = ""
    while (item := labelling.shown())["number"] is not None:
        say(_text(item, note))
        key = click.getchar().lower()
        if key in KEYS:
            labelling.label(item["number"], KEYS[key], note)
        elif key == "s":
            labelling.skip(item["number"])
        elif key == "u":
            labelling.undo()
        elif key == "n":
            note = click.prompt("note", default="", show_default=False)
            continue
        elif key in ("q", "\x1b"):
            return
        note = ""


def _text(item: dict[str, str], note: str) -> str:
    rubric = [f"rubric: {item['rubric']}"] if item["rubric"] else []
    parts = [
        f"\n{item['done']} of {item['total']} labelled",
        f"{item['behaviour']}: {item['description']}",
        *rubric,
        f"\nprompt:\n{item['prompt']}",
        f"\noutput:\n{item['text']}\n",
        *([f"note: {note}"] if note else []),
        f"{_HELP}  u undo  s skip  n note  q leave",
    ]
    return "\n".join(parts)
