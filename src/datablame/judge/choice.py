"""Who judges a study, and at what price: decided once, when it begins; a key that comes or goes changes nothing.

Prices change: `judge.prices` in a study overrides a row of prices.yaml or adds a model. The judge's prompts are cut far
below 100,000 tokens, where some models begin to cost more.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from datablame.config.judge import Judge
from datablame.config.schema import Study
from datablame.engine.files import packaged_yaml
from datablame.engine.phase import Work
from datablame.errors import RequestError, problem
from datablame.tables import Label

T = TypeVar("T")
_logger = logging.getLogger(__name__)

KEY = "ANTHROPIC_API_KEY"
BATCH_SHARE = 0.5
"""Message Batches cost this share of the list price, of every kind of token."""


class Price(NamedTuple):
    """USD per million tokens, and how the model is told not to think; None: it cannot be told."""

    input: float
    output: float
    cache_read: float
    cache_write: float
    no_thinking: Literal["disabled", "between_tools"] | None = "disabled"


class Usage(NamedTuple):
    """Tokens of one call, as the API counts them; `input_tokens` leaves out those read from or written to a cache."""

    input_tokens: int
    output_tokens: int
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0


PRICES: Mapping[str, Price] = {
    model: Price(**price) for model, price in packaged_yaml("datablame.judge", "prices.yaml").items()
}
CLASSIFICATION = Usage(input_tokens=800, output_tokens=25)
"""One label, typically: the instructions, the rubric, a short prompt and an output of a hundred words."""
ATTRIBUTION = Usage(input_tokens=2000, output_tokens=12)
"""One score, typically: the instructions, a training document of 400 words and five outputs of forty."""
COMPARISON = Usage(input_tokens=2800, output_tokens=12)
"""One choice, typically: the same with two training documents."""


@dataclass(frozen=True)
class Choice:
    """Who labels every output of a study, and who scores documents for the methods that ask a judge."""

    classifier: Literal["rules", "claude", "keywords"]
    attribution: Literal["claude", "keywords"]


class ClassifierInput(NamedTuple):
    """What a classifier sees: the behaviour's id, what the user said and what the model answered; no arm, no alpha."""

    behaviour: str
    prompt: str
    text: str


class Classifier(Protocol):
    """Labels outputs, blind to the arm and the alpha that they come from."""

    @property
    def name(self) -> str:
        """Stands beside every label, so that no table mixes classifiers unnoticed."""

    @property
    def prefers_bulk(self) -> bool:
        """Whether it had better be asked once about everything, for each answer takes hours."""

    def label(self, outputs: Sequence[ClassifierInput]) -> list[Label]:
        """One label for each output, in their order."""


def api_key() -> str:
    """The key of the environment without the white space around it, empty without one.

    Raises RequestError, which does not show it, where it holds what no header of a request may.
    """
    key = os.environ.get(KEY, "").strip()
    for what, holds in {
        "a line break": any(character in key for character in "\r\n"),
        "a space": any(character.isspace() for character in key),
        "a quotation mark": any(character in key for character in "\"'`"),
        "characters that are no ASCII": not key.isascii(),
        "a control character": not key.isprintable(),
    }.items():
        if holds:
            raise RequestError(problem("judge", "broken_key", key=KEY, what=what))
    return key


def has_key() -> bool:
    """Whether the environment holds a key; RequestError where it cannot be one."""
    return bool(api_key())


def decide(study: Study, decided: Mapping[str, Any] | None, key: bool) -> Choice:
    """What was decided when the run began (a `record`) while the study asks for the same, else what it gives now."""
    settings = _settings(study)
    if decided is not None and decided["requested"] == settings:
        return Choice(decided["classifier"], decided["attribution"])
    classifier, attribution = settings["classifier"], settings["attribution"]
    if classifier == "auto":
        classifier = "rules" if settings["rules"] else "claude" if key else "keywords"
    if attribution == "auto":
        attribution = "claude" if classifier == "claude" else "keywords"
    return Choice(classifier, attribution)


def record(study: Study, choice: Choice) -> dict[str, Any]:
    """The choice as JSON, with the study's keys that it was made from."""
    return {"requested": _settings(study), **asdict(choice)}


def confirm(study: Study, choice: Choice, decided: Mapping[str, Any] | None, key: bool) -> None:
    """Say who judges, loudly where a stand-in does.

    Raises RequestError where Claude is asked for without a key, or by a model whose price nobody knows.
    """
    prices_of(study, choice)
    judge, new = study.judge, decided != record(study, choice)
    labels, scores = choice.classifier == "claude", choice.attribution == "claude"
    if (labels or scores) and new and not key:
        raise RequestError(problem("judge", "no_key", study=study.name, key=KEY))
    standin = choice.classifier == "keywords" and judge.classifier == "auto"
    instead = f"NO {KEY} IS SET: KEYWORDS LABEL EVERY OUTPUT OF THIS STUDY, and score documents in place of a judge"
    late = "keywords have labelled this study since it began and go on; begin in another --out for Claude"
    both = "outcome classifier and attribution judge are both Claude: they may share their errors"
    for holds, level, message in (
        (standin and not key, logging.WARNING, instead),
        (standin and key and not new, logging.WARNING, f"{KEY} is set, but {late}"),
        (labels, logging.INFO, f"outputs are labelled by {judge.model}, for the whole study"),
        (scores, logging.INFO, f"documents are scored by {judge.attribution_model}, for the whole study"),
        (labels and scores, logging.WARNING, both),
    ):
        if holds:
            _logger.log(level, message)


def identity(study: Study, choice: Choice) -> tuple[Any, Any]:
    """What labels, and what scores, by Claude depend on, for the fingerprints; None for what Claude does not do."""
    from datablame.judge.claude import digests

    prompts = digests()
    labels = {**study.judge.model_dump(include={"model", "max_tokens"}), "prompt": prompts["label"]}
    settings = study.judge.model_dump(include={"attribution_model", "max_tokens", "repeats", "rounds"})
    scores = {**settings, "prompt": prompts["score"], "comparison": prompts["compare"]}
    return labels if choice.classifier == "claude" else None, scores if choice.attribution == "claude" else None


def build(study: Study, choice: Choice, work: Work) -> Classifier:
    """The classifier of a study whose choice it is, of answers without the thoughts before them.

    Claude's replies are kept in the run folder of `work`.

    Raises RequestError for `rules` without a file, or which no prompt triggers, `keywords` with a behaviour that has
    none that could mark an output, or Claude without a key.
    """
    from datablame.judge.thoughts import AnswerClassifier

    return AnswerClassifier(_of_answers(study, choice, work))


def _of_answers(study: Study, choice: Choice, work: Work) -> Classifier:
    from datablame.judge import claude, keywords, rules

    if choice.classifier == "claude":
        behaviours = {behaviour.id: behaviour for behaviour in study.behaviours}
        return claude.ClaudeClassifier(behaviours, claude.asker(study, choice, work), study.judge.model)
    if choice.classifier == "keywords":
        return keywords.KeywordClassifier.of(study.behaviours)
    if study.judge.rules is None:
        raise RequestError(problem("judge", "no_rules", study=study.name))
    loaded = rules.RulesClassifier.load(study.judge.rules)
    assert study.prompts is not None
    prompts = [*study.prompts.attribution, *study.prompts.held_out]
    for behaviour in study.behaviours:
        if not any(loaded.triggers(behaviour.id, each.text) for each in prompts if each.behaviour == behaviour.id):
            raise RequestError(problem("judge", "untriggered", path=study.judge.rules, behaviour=behaviour.id))
    return loaded


def described(behaviours: Mapping[str, T], behaviour: str, why: str = "is not described") -> T:
    """What stands for the behaviour; RequestError where nothing does."""
    if behaviour not in behaviours:
        known = ", ".join(sorted(behaviours)) or "none"
        raise RequestError(f"behaviours: {behaviour} {why}; known: {known}")
    return behaviours[behaviour]


def counted(reasons: Iterable[str]) -> dict[str, int]:
    """How often each outcome without a label or score stands there; what follows the first colon is detail."""
    return dict(sorted(Counter(reason.partition(":")[0] for reason in reasons).items()))


def known_prices(judge: Judge) -> dict[str, Price]:
    """The list prices with the study's own over them; a cache that is nowhere asked for costs as much as may be."""
    prices = dict(PRICES)
    for model, price in judge.prices.items():
        no_thinking = PRICES[model].no_thinking if model in PRICES else None
        prices[model] = Price(price.input, price.output, price.input, 2 * price.input, no_thinking)
    return prices


def prices_of(study: Study, choice: Choice) -> Mapping[str, Price]:
    """The known prices; RequestError where a model that the study asks has none."""
    prices = known_prices(study.judge)
    for by, field in ((choice.classifier, "model"), (choice.attribution, "attribution_model")):
        model = getattr(study.judge, field)
        if by == "claude" and model not in prices:
            raise RequestError(problem("judge", "no_price", field=field, model=model, known=", ".join(PRICES)))
    return prices


def cost_usd(model: str, usage: Usage, prices: Mapping[str, Price] = PRICES, *, batch: bool = False) -> float:
    """What `usage` costs on `model`, which must be in `prices`."""
    dollars = sum(tokens * price for tokens, price in zip(usage, prices[model][:4], strict=True)) / 1_000_000
    return dollars * BATCH_SHARE if batch else dollars


def _settings(study: Study) -> dict[str, Any]:
    """The study's keys behind the choice; other keys are another choice."""
    rules = study.judge.rules is not None or study.organism is not None
    return {"classifier": study.judge.classifier, "attribution": study.judge.attribution, "rules": rules}
