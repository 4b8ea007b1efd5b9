"""What a call to Claude costs: list prices in USD per million tokens, of prompts up to 100,000 tokens.

As of November 2026, from https://platform.claude.com/docs/en/about-claude/pricing, compared with the price data of
genai-prices 0.2.3. The judge's prompts are cut far below 100,000 tokens, where some models begin to cost more. Prices
change: `judge.prices` in a study overrides a row or adds a model.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from datablame.config.schema import Judge

Thinking = Literal["disabled", "between_tools"]
"""What a request says to a model so that it does not think before it answers."""

BATCH_SHARE = 0.5
"""Message Batches cost this share of the list price, of every kind of token."""

_MILLION = 1_000_000


class Price(NamedTuple):
    """USD per million tokens, and how the model is told not to think; None: it cannot be told."""

    input: float
    output: float
    cache_read: float
    cache_write: float
    no_thinking: Thinking | None = "disabled"


class Usage(NamedTuple):
    """Tokens of one call, as the API counts them; `input_tokens` leaves out those read from or written to a cache."""

    input_tokens: int
    output_tokens: int
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0


PRICES: Mapping[str, Price] = {
    "claude-haiku-5-5": Price(0.10, 0.50, 0.01, 0.125),
    "claude-haiku-4-5": Price(1.00, 5.00, 0.10, 1.25),
    "claude-haiku-4-5-20251001": Price(1.00, 5.00, 0.10, 1.25),
    "claude-sonnet-5-5": Price(2.00, 10.00, 0.10, 2.50, "between_tools"),
    "claude-sonnet-5": Price(2.00, 10.00, 0.20, 2.50),
    "claude-sonnet-4-6": Price(3.00, 15.00, 0.30, 3.75),
    "claude-sonnet-4-5": Price(3.00, 15.00, 0.30, 3.75),
    "claude-sonnet-4-5-20250929": Price(3.00, 15.00, 0.30, 3.75),
    "claude-opus-5-5": Price(4.00, 20.00, 0.20, 5.00, None),
    "claude-opus-5": Price(5.00, 25.00, 0.50, 6.25),
    "claude-opus-4-8": Price(5.00, 25.00, 0.50, 6.25),
    "claude-opus-4-7": Price(5.00, 25.00, 0.50, 6.25),
    "claude-opus-4-6": Price(5.00, 25.00, 0.50, 6.25),
    "claude-opus-4-5": Price(5.00, 25.00, 0.50, 6.25),
    "claude-opus-4-5-20251101": Price(5.00, 25.00, 0.50, 6.25),
    "claude-fable-5-2": Price(8.00, 40.00, 0.20, 10.00, None),
    "claude-fable-5-1": Price(10.00, 50.00, 0.25, 12.50, None),
    "claude-fable-5": Price(10.00, 50.00, 1.00, 12.50, None),
}
"""Models by the id that `judge.model` and `judge.attribution_model` take."""

CLASSIFICATION = Usage(input_tokens=800, output_tokens=25)
"""One label, typically: the instructions, the rubric, a short prompt and an output of a hundred words."""

ATTRIBUTION = Usage(input_tokens=2000, output_tokens=12)
"""One score, typically: the instructions, a training document of 400 words and five outputs of forty."""


def known_prices(judge: Judge) -> dict[str, Price]:
    """The list prices with the study's own over them; a cache that is nowhere asked for costs as much as may be."""
    prices = dict(PRICES)
    for model, price in judge.prices.items():
        no_thinking = PRICES[model].no_thinking if model in PRICES else None
        prices[model] = Price(price.input, price.output, price.input, 2 * price.input, no_thinking)
    return prices


def cost_usd(model: str, usage: Usage, prices: Mapping[str, Price] = PRICES, *, batch: bool = False) -> float:
    """What `usage` costs on `model`, which must be in `prices`."""
    price = prices[model]
    dollars = (
        usage.input_tokens * price.input
        + usage.output_tokens * price.output
        + usage.cache_read_tokens * price.cache_read
        + usage.cache_write_tokens * price.cache_write
    ) / _MILLION
    return dollars * BATCH_SHARE if batch else dollars
