"""Who judges a study is decided once, when it begins, and kept: a key that comes or goes later changes nothing."""

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from datablame.engine.run_folder import read_json, write_json
from datablame.errors import RequestError
from datablame.judge import rubric
from datablame.judge.prices import PRICES, Price
from datablame.study.schema import Judge, Study

_logger = logging.getLogger(__name__)

KEY = "ANTHROPIC_API_KEY"
FILE = "artifacts/judge.json"
"""Where a run folder keeps its choice."""

CLAUDE_FIELDS = frozenset(
    (
        *("attribution", "model", "attribution_model", "repeats", "max_tokens", "batches", "concurrency"),
        *("timeout_seconds", "retries", "backoff_seconds", "poll_seconds", "prices"),
    )
)
"""Keys of `judge` that matter to Claude alone."""

_CLASSIFICATION = ("model", "max_tokens")
_ATTRIBUTION = ("attribution_model", "max_tokens", "repeats")
_REPLY_TOKENS, _THOUGHTFUL_REPLY_TOKENS = 256, 4096


@dataclass(frozen=True)
class Choice:
    """Who labels every output of a study, and who answers for the method llm-judge."""

    classifier: Literal["rules", "claude", "keywords"]
    attribution: Literal["claude", "keywords"]

    @property
    def asks_claude(self) -> bool:
        """Whether the study makes calls that cost money."""
        return "claude" in (self.classifier, self.attribution)


def has_key() -> bool:
    """Whether the environment holds a key; which one is nobody's business."""
    return bool(os.environ.get(KEY))


def choice_of(study: Study, root: Path | None) -> Choice:
    """What the run folder has kept for this study, else what the study and the environment give now."""
    path = None if root is None else root / FILE
    if path is not None and path.exists():
        kept = read_json(path)
        if kept["asked"] == _asked(study):
            return Choice(kept["classifier"], kept["attribution"])
    # A run that was labelled before choices were kept was labelled without Claude.
    older = root is not None and path is not None and not path.exists() and (root / "artifacts" / "scan").exists()
    return _chosen(study, has_key() and not older)


def missing_key() -> RequestError:
    """The error of a study that Claude judges, on a machine without a key."""
    return RequestError(
        f"{KEY} is not set, and Claude has judged this study since it began; set it and run again with --resume"
    )


def freeze(study: Study, root: Path) -> Choice:
    """Keep the choice in the run folder and say it, loudly where a stand-in judges.

    Raises:
        RequestError: Claude is asked for without a key, or by a model whose price nobody knows.
    """
    choice = choice_of(study, root)
    kept = {"asked": _asked(study), **asdict(choice)}
    path = root / FILE
    new = not path.exists() or read_json(path) != kept
    if choice.asks_claude:
        prices_of(study, choice)
        if new and not has_key():
            raise RequestError(
                f"study {study.name}: judge asks for Claude, but {KEY} is not set; set it in the environment, "
                "or choose judge.classifier = keywords"
            )
    if new:
        write_json(path, kept)
    _say(study.judge, choice, new)
    return choice


def identity(study: Study, choice: Choice) -> tuple[Any, Any]:
    """What labels and scores by Claude depend on, for the fingerprints; None for what Claude does not do."""
    judge = study.judge.model_dump(mode="json")
    prompts = rubric.digests()
    labels = {**{key: judge[key] for key in _CLASSIFICATION}, "prompt": prompts.classification}
    scores = {**{key: judge[key] for key in _ATTRIBUTION}, "prompt": prompts.attribution}
    return (
        labels if choice.classifier == "claude" else None,
        scores if choice.attribution == "claude" and "llm-judge" in study.attribute.methods else None,
    )


def known_prices(judge: Judge) -> dict[str, Price]:
    """The list prices with the study's own over them; a cache that is nowhere asked for costs as much as may be."""
    prices = dict(PRICES)
    for model, price in judge.prices.items():
        off = PRICES[model].no_thinking if model in PRICES else None
        prices[model] = Price(price.input, price.output, price.input, 2 * price.input, off)
    return prices


def prices_of(study: Study, choice: Choice) -> Mapping[str, Price]:
    """The known prices, with one for every model that the study asks.

    Raises:
        RequestError: a model without a price.
    """
    judge = study.judge
    prices = known_prices(judge)
    asked = {
        "judge.model": judge.model if choice.classifier == "claude" else None,
        "judge.attribution_model": judge.attribution_model if choice.attribution == "claude" else None,
    }
    for field, name in asked.items():
        if name is not None and name not in prices:
            raise RequestError(
                f"{field} = {name} has no known price; give judge.prices: {{{name}: {{input: USD, output: USD}}}} "
                f"per million tokens, or one of {', '.join(PRICES)}"
            )
    return prices


def reply_tokens(judge: Judge, price: Price) -> int:
    """The longest reply that is asked for."""
    return judge.max_tokens or (_THOUGHTFUL_REPLY_TOKENS if price.no_thinking is None else _REPLY_TOKENS)


def _asked(study: Study) -> dict[str, Any]:
    """What the choice was made from, besides the key; another request is another choice."""
    rules = study.judge.rules is not None or study.organism is not None
    return {"classifier": study.judge.classifier, "attribution": study.judge.attribution, "rules": rules}


def _chosen(study: Study, key: bool) -> Choice:
    asked = _asked(study)
    classifier = asked["classifier"]
    if classifier == "auto":
        classifier = "rules" if asked["rules"] else "claude" if key else "keywords"
    attribution = asked["attribution"]
    if attribution == "auto":
        attribution = "claude" if classifier == "claude" else "keywords"
    return Choice(classifier, attribution)


def _say(judge: Judge, choice: Choice, new: bool) -> None:
    if choice.classifier == "keywords" and judge.classifier == "auto":
        if not has_key():
            _logger.warning(
                "NO %s IS SET: KEYWORDS LABEL EVERY OUTPUT OF THIS STUDY, and llm-judge is a stand-in by keywords", KEY
            )
        elif not new:
            _logger.warning(
                "%s is set, but keywords have labelled this study since it began and go on; "
                "begin in another --out for Claude",
                KEY,
            )
    if not choice.asks_claude:
        return
    if choice.classifier == "claude":
        _logger.info("outputs are labelled by %s, for the whole study", judge.model)
    if choice.attribution == "claude":
        _logger.info("llm-judge asks %s, for the whole study", judge.attribution_model)
    if choice.classifier == choice.attribution:
        _logger.warning("outcome classifier and attribution judge are both Claude: they may share their errors")


def decide(study: Study, held: Mapping[str, Any] | None, key: bool) -> Choice:
    """What was decided when the run began, while the study asks for the same; else what study and environment give."""
    if held is not None and held["asked"] == _asked(study):
        return Choice(held["classifier"], held["attribution"])
    choice = _chosen(study, key)
    if choice.asks_claude:
        prices_of(study, choice)
        if not key:
            raise RequestError(
                f"study {study.name}: judge asks for Claude, but {KEY} is not set; set it in the environment, "
                "or choose judge.classifier = keywords"
            )
    _say(study.judge, choice, new=True)
    return choice
