"""The keys of whoever labels outputs and blames documents."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from datablame.config.checks import Count, Section

Price = Annotated[float, Field(ge=0, le=1_000_000)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]


class ModelPrice(Section):
    """What a model costs, in USD per million tokens."""

    input: Price
    """Tokens of the prompt."""
    output: Price
    """Tokens of the reply."""


class Judge(Section):
    """Who labels outputs and who blames documents; chosen once for the whole study, never two in one curve."""

    classifier: Literal["auto", "rules", "claude", "keywords"] = "auto"
    """`rules` reads a rules.json; `auto` takes rules where there are any, else Claude with a key, else keywords."""
    attribution: Literal["auto", "claude", "keywords"] = "auto"
    """Who answers for the methods `llm-judge` and `llm-judge-tournament`; `auto`: Claude where Claude labels the
    outputs, else keywords."""
    rules: str | None = None
    """Path of a rules.json; an organism fills it in."""
    calibration: str | None = None
    """JSONL or CSV of outputs that people labelled: the report corrects its rates for the classifier's errors."""
    model: str = "claude-haiku-5-5"
    """Claude only: the id of the model that labels outputs."""
    attribution_model: str = "claude-sonnet-5-5"
    """Claude only: the id of the model that scores documents from 0 to 10, or compares them."""
    repeats: Annotated[int, Field(gt=0, le=1000)] = 3
    """Claude only: how often a document is scored; the scores are averaged."""
    rounds: Annotated[int, Field(gt=0, le=1000)] = 5
    """Claude only: rounds of `llm-judge-tournament`; in each a document meets one other, asked about in both orders."""
    max_tokens: Count | None = None
    """Claude only: longest reply, thinking included; none: 256, or 4096 for a model that cannot but think."""
    batches: bool = False
    """Claude only: ask by Message Batches, for half the price and with hours of patience."""
    concurrency: Annotated[int, Field(gt=0, le=1000)] = 8
    """Claude only: calls under way at one time."""
    timeout_seconds: Seconds = 60.0
    """Claude only: a call that takes longer is made again."""
    retries: Annotated[int, Field(ge=0, le=1000)] = 8
    """Claude only: how often a call that failed is made again before its row stays unscored."""
    backoff_seconds: Seconds = 1.0
    """Claude only: the first wait before a retry, doubled each time up to a minute; the API's own wish comes first."""
    poll_seconds: Seconds = 30.0
    """Batches only: time between two looks at a batch."""
    prices: Mapping[str, ModelPrice] = {}
    """Claude only: prices by model id, for a model that datablame does not know or that has another price."""
