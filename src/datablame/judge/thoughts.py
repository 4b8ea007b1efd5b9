"""Outputs of models that think before they answer: the answer is labelled, and a thought without one is not."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from datablame.judge.choice import Classifier, ClassifierInput
from datablame.tables import Label

UNFINISHED = "ends inside a thought"
_TAGS = ("think", "thinking", "thought", "reasoning", "seed:think")
_PAIRS = (
    *((f"<{tag}>", f"</{tag}>") for tag in _TAGS),
    ("[THINK]", "[/THINK]"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought", "<channel|>"),
)
"""What opens a thought and what closes it, as the models at the hub have it."""
_CHANNEL = r"<\|channel\|>{}[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>"
_MARKS = (
    *(tuple(map(re.escape, pair)) for pair in _PAIRS),
    # Harmony: whatever is not said in the final channel is a thought, a tool's call too.
    (_CHANNEL.format(r"(?!final\b)"), _CHANNEL.format(r"final\b")),
)
_MARK = re.compile("|".join(f"(?P<o{n}>{opening})|(?P<c{n}>{close})" for n, (opening, close) in enumerate(_MARKS)))


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
        kind, number = str(mark.lastgroup)[0], str(mark.lastgroup)[1:]
        if opening is None and kind == "o":
            parts.append(text[end : mark.start()])
            opening, open_at = number, mark.start()
        elif opening is None:
            parts.clear()
        elif kind == "c" and opening == number:
            opening = open_at = None
        end = mark.end()
    return parts, open_at, end
