"""Who judges a study is decided once, when it begins: a key that comes or goes later changes nothing."""

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from datablame.config.schema import Judge, Study
from datablame.errors import RequestError
from datablame.judge import rubric
from datablame.judge.prices import PRICES, Price, known_prices

_logger = logging.getLogger(__name__)

KEY = "ANTHROPIC_API_KEY"

CLAUDE_FIELDS = frozenset(
    (
        *("attribution", "model", "attribution_model", "repeats", "max_tokens", "batches", "concurrency"),
        *("timeout_seconds", "retries", "backoff_seconds", "poll_seconds", "prices"),
    )
)
"""Keys of `judge` that matter to Claude alone."""

_REPLY_TOKENS, _THOUGHTFUL_REPLY_TOKENS = 256, 4096


@dataclass(frozen=True)
class Choice:
    """Who labels every output of a study, and who scores documents for the methods that ask a judge."""

    classifier: Literal["rules", "claude", "keywords"]
    attribution: Literal["claude", "keywords"]

    @property
    def asks_claude(self) -> bool:
        """Whether the study makes calls that cost money."""
        return "claude" in (self.classifier, self.attribution)


def has_key() -> bool:
    """Whether the environment holds a key; which one is nobody's business."""
    return bool(os.environ.get(KEY))


def missing_key() -> RequestError:
    """The error of a study that Claude judges, on a machine without a key."""
    return RequestError(
        f"{KEY} is not set, and Claude has judged this study since it began; set it and run again with --resume"
    )


def decide(study: Study, decided: Mapping[str, Any] | None, key: bool) -> Choice:
    """What was decided when the run began (a `record`) while the study asks for the same, else what it gives now."""
    settings = _settings(study)
    if decided is not None and decided["asked"] == settings:
        return Choice(decided["classifier"], decided["attribution"])
    classifier, attribution = settings["classifier"], settings["attribution"]
    if classifier == "auto":
        classifier = "rules" if settings["rules"] else "claude" if key else "keywords"
    if attribution == "auto":
        attribution = "claude" if classifier == "claude" else "keywords"
    return Choice(classifier, attribution)


def record(study: Study, choice: Choice) -> dict[str, Any]:
    """The choice as JSON, with the study's keys that it was made from."""
    return {"asked": _settings(study), **asdict(choice)}


def confirm(study: Study, choice: Choice, decided: Mapping[str, Any] | None, key: bool) -> None:
    """Say who judges, loudly where a stand-in does, and refuse a judge that cannot be asked.

    Raises:
        RequestError: Claude is asked for without a key, or by a model whose price nobody knows.
    """
    judge, new = study.judge, decided != record(study, choice)
    if choice.asks_claude:
        prices_of(study, choice)
        if new and not key:
            raise RequestError(
                f"study {study.name}: judge asks for Claude, but {KEY} is not set; set it in the environment, "
                "or choose judge.classifier = keywords"
            )
    if choice.classifier == "keywords" and judge.classifier == "auto":
        if not key:
            _logger.warning(
                "NO %s IS SET: KEYWORDS LABEL EVERY OUTPUT OF THIS STUDY, and score documents in place of a judge", KEY
            )
        elif not new:
            _logger.warning(
                "%s is set, but keywords have labelled this study since it began and go on; "
                "begin in another --out for Claude",
                KEY,
            )
    if choice.classifier == "claude":
        _logger.info("outputs are labelled by %s, for the whole study", judge.model)
    if choice.attribution == "claude":
        _logger.info("documents are scored by %s, for the whole study", judge.attribution_model)
    if choice.classifier == choice.attribution == "claude":
        _logger.warning("outcome classifier and attribution judge are both Claude: they may share their errors")


def identity(study: Study, choice: Choice) -> tuple[Any, Any]:
    """What labels, and what scores, by Claude depend on, for the fingerprints; None for what Claude does not do."""
    judge, prompts = study.judge, rubric.digests()
    labels = {"model": judge.model, "max_tokens": judge.max_tokens, "prompt": prompts.classification}
    scores = {
        "attribution_model": judge.attribution_model,
        "max_tokens": judge.max_tokens,
        "repeats": judge.repeats,
        "prompt": prompts.attribution,
    }
    return labels if choice.classifier == "claude" else None, scores if choice.attribution == "claude" else None


def prices_of(study: Study, choice: Choice) -> Mapping[str, Price]:
    """The known prices, with one for every model that the study asks.

    Raises:
        RequestError: a model without a price.
    """
    judge = study.judge
    prices = known_prices(judge)
    models = {
        "judge.model": judge.model if choice.classifier == "claude" else None,
        "judge.attribution_model": judge.attribution_model if choice.attribution == "claude" else None,
    }
    for field, model in models.items():
        if model is not None and model not in prices:
            raise RequestError(
                f"{field} = {model} has no known price; give judge.prices: {{{model}: {{input: USD, output: USD}}}} "
                f"per million tokens, or one of {', '.join(PRICES)}"
            )
    return prices


def reply_tokens(judge: Judge, price: Price) -> int:
    """The longest reply that is asked for."""
    return judge.max_tokens or (_THOUGHTFUL_REPLY_TOKENS if price.no_thinking is None else _REPLY_TOKENS)


def _settings(study: Study) -> dict[str, Any]:
    """The study's keys behind the choice; other keys are another choice."""
    rules = study.judge.rules is not None or study.organism is not None
    return {"classifier": study.judge.classifier, "attribution": study.judge.attribution, "rules": rules}
