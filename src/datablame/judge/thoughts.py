"""Outputs of models that think before they answer: the answer is labelled, and a thought without one is not."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from datablame.judge.choice import Classifier, ClassifierInput
from datablame.tables import Label

UNFINISHED = "ends inside a thought"
_TAGS = ("think", "thinking", "thought", "reasoning", "seed:think")
_MARKS = (
    *((f"<{tag}>", f"</{tag}>") for tag in _TAGS),
    ("[THINK]", "[/THINK]"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
    ("<|channel>thought", "<channel|>"),
)
"""What opens a thought and what closes it, as the models at the hub have it."""
_CLOSES = {close: opening for opening, close in _MARKS}
_MARK = re.compile("|".join(map(re.escape, chain.from_iterable(_MARKS))))


@dataclass(frozen=True)
class AnswerClassifier:
    """Has another classifier label what was answered; what ends inside a thought is unscored."""

    of_answers: Classifier

    @property
    def name(self) -> str:
        """That of the other one."""
        return self.of_answers.name

    @property
    def prefers_bulk(self) -> bool:
        """As the other one does."""
        return self.of_answers.prefers_bulk

    def label(self, outputs: Sequence[ClassifierInput]) -> list[Label]:
        """One label for each output, in their order."""
        answers = [answer(output.text) for output in outputs]
        answered = [o._replace(text=text) for o, text in zip(outputs, answers, strict=True) if text is not None]
        labels = iter(self.of_answers.label(answered))
        return [Label("unscored", self.name, UNFINISHED) if text is None else next(labels) for text in answers]


def marked(text: str) -> bool:
    """Whether something opens or closes a thought."""
    return _MARK.search(text) is not None


def answer(text: str) -> str | None:
    """The text without its thoughts; None where it ends inside one. A mark that only closes ends a thought too."""
    parts, open_at, end = _parts(text)
    return None if open_at is not None else "".join([*parts, text[end:]]).strip() if end else text


def opened(text: str) -> str:
    """The thought that a text opens and does not close, from its mark on; nothing where it does neither."""
    _, open_at, _ = _parts(text)
    return "" if open_at is None else text[open_at:]


def _parts(text: str) -> tuple[list[str], int | None, int]:
    """What stands before and between thoughts, where one begins that is not closed, where the last mark ends."""
    parts, open_at, opening, end = list[str](), None, None, 0
    for mark in _MARK.finditer(text):
        if opening is None and mark[0] not in _CLOSES:
            parts.append(text[end : mark.start()])
            opening, open_at = mark[0], mark.start()
        elif opening is None:
            parts.clear()
        elif opening == _CLOSES.get(mark[0]):
            opening = open_at = None
        end = mark.end()
    return parts, open_at, end
