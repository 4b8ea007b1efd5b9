"""One person's labels of a run's outputs: which ones, in which order, and each on disk before the next is shown."""

import contextlib
import json
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from datablame.engine.files import locked_file
from datablame.engine.phase import Tables
from datablame.errors import RequestError, problem
from datablame.report.human_labels import (
    HumanLabel,
    Output,
    OutputKey,
    file_of,
    outputs_of,
    read_labels,
    standing,
    text_hash,
)
from datablame.report.wording import plain
from datablame.seeds import stream_key
from datablame.tables import LABELS, LabelName
from datablame.world.world import World, load

Item = tuple[OutputKey, Output]
KEYS: Mapping[str, LabelName] = {str(number): label for number, label in enumerate(LABELS, 1)}
"""What a person presses."""


@dataclass
class Labelling:
    """What one person has labelled of a plan, and what is left; an item goes by its number in the plan."""

    file: IO[str]
    annotator: str
    world: World
    plan: Sequence[Item]
    left: deque[int]
    said: list[int]
    """What has a label, in the order in which it was given."""

    @property
    def current(self) -> int | None:
        """What is shown; None where nothing is left."""
        return self.left[0] if self.left else None

    def label(self, number: int, label: LabelName, note: str = "") -> None:
        """Write what the person says of the current item; nothing where it is another one (a key pressed twice)."""
        if number == self.current:
            self._write(number, label, note)
            self.said.append(self.left.popleft())

    def undo(self) -> None:
        """Take the last label back, also one of an earlier day, and show its item again."""
        if self.said:
            self._write(self.said[-1], None, "")
            self.left.appendleft(self.said.pop())

    def skip(self, number: int) -> None:
        """Put the current item behind all others; nothing is written."""
        if number == self.current:
            self.left.rotate(-1)

    def shown(self) -> dict[str, Any]:
        """What the person may see: neither arm, nor alpha, nor what the classifier says."""
        progress = {"done": len(self.said), "total": len(self.plan), "undo": bool(self.said)}
        if self.current is None:
            return {"number": None, **progress}
        key, output = self.plan[self.current]
        behaviour = next(each for each in self.world.behaviours if each.id == output.behaviour)
        texts = {
            "behaviour": behaviour.id,
            "description": behaviour.description,
            "rubric": behaviour.rubric,
            "prompt": next(prompt.text for prompt in self.world.prompts if prompt.id == key.prompt_id),
            "text": output.text,
        }
        return {"number": self.current, **progress, **{name: _lines(text) for name, text in texts.items()}}

    def _write(self, number: int, label: LabelName | None, note: str) -> None:
        key, output = self.plan[number]
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.file.write(HumanLabel(key, text_hash(output.text), label, note, self.annotator, now).line())
        self.file.flush()
        os.fsync(self.file.fileno())


def _lines(text: str) -> str:
    """Text as it is, line by line, without what could steer a console or reverse what is read."""
    return "\n".join(plain(line) for line in text.split("\n"))


@contextlib.contextmanager
def labelling(root: Path, annotator: str, samples: int) -> Iterator[Labelling]:
    """Hold a person's file and go on where it ends.

    Raises RequestError where the name is none, the run has no outputs, or the file is damaged or being written.
    """
    if re.fullmatch(r"[a-z0-9][a-z0-9-]{0,39}", annotator) is None:
        raise RequestError(problem("view", "no annotator", name=annotator))
    world, path = load(root), root / file_of(annotator)
    plan = planned(outputs_of(Tables(root)), world.seed)[:samples]
    if not plan:
        raise RequestError(problem("view", "no outputs", root=root))
    try:
        file = locked_file(path, wait=False)
    except BlockingIOError:
        raise RequestError(problem("view", "labelled now", path=path)) from None
    with file:
        try:
            _mend(file, path)
            numbers = {(key, text_hash(output.text)): number for number, (key, output) in enumerate(plan)}
            given = [(row.key, row.text_sha256) for row in standing(read_labels(path))]
            said = [numbers[each] for each in given if each in numbers]
            left = deque(sorted(set(range(len(plan))) - set(said)))
            yield Labelling(file, annotator, world, plan, left, said)
        finally:
            if not path.stat().st_size:
                path.unlink()


def _mend(file: IO[str], path: Path) -> None:
    """End the last line, or take it away where a kill has torn it."""
    whole, _, last = path.read_bytes().rpartition(b"\n")
    if not last:
        return
    try:
        json.loads(last)
        file.write("\n")
        file.flush()
    except ValueError:
        os.ftruncate(file.fileno(), len(whole) + 1 if whole else 0)


def planned(outputs: Mapping[OutputKey, Output], seed: int) -> list[Item]:
    """All outputs in random order, the first of them balanced over the classifier's labels, and these over arms.

    The order hangs on the seed alone, not on the person: people who label as many label the same.
    """
    queues: dict[str, dict[str, list[Item]]] = {}
    for item in sorted(outputs.items(), key=lambda item: stream_key("label", seed, *astuple(item[0]))):
        queues.setdefault(item[1].predicted, {}).setdefault(item[0].arm, []).append(item)
    return _rounds({label: _rounds(arms, seed, label) for label, arms in queues.items()}, seed, "")


def _rounds(queues: Mapping[str, Sequence[Item]], seed: int, of: str) -> list[Item]:
    """One item of each queue in turn, in every round in another order, so that no place tells a queue."""
    made: list[Item] = []
    for turn in range(max(map(len, queues.values()), default=0)):
        names = sorted(queues, key=lambda name: stream_key("round", seed, of, turn, name))
        made += [queues[name][turn] for name in names if turn < len(queues[name])]
    return made
