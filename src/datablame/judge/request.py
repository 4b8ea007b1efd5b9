"""One question to a model and what it answered, as everything but the transport sees them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from datablame.engine.run_folder import digest
from datablame.judge.prices import Price, Thinking, Usage, cost_usd

_CUT = frozenset({"max_tokens", "model_context_window_exceeded"})
_UNSEEN_TOKENS = 1_000
"""What the API may add to a prompt for structured output and framing; measured additions are some hundred tokens."""


@dataclass(frozen=True)
class Request:
    """What is sent. Equal questions have equal keys, and are paid once."""

    model: str
    system: str
    user: str
    schema: Mapping[str, Any]
    max_tokens: int
    thinking: Thinking | None = None
    repeat: int = 0

    @cached_property
    def key(self) -> str:
        """The hash of model, prompt, schema and repeat index; how long the answer may be is no part of the question."""
        asked = [self.model, self.thinking, self.system, self.user, dict(self.schema), self.repeat]
        return digest(asked)

    @property
    def most_tokens(self) -> int:
        """No prompt has more tokens than bytes, the API's own additions aside."""
        text = f"{self.system}{self.user}{self.schema}"
        return len(text.encode("utf-8", "replace")) + _UNSEEN_TOKENS


class Reply(NamedTuple):
    """An answer that was paid for."""

    stop_reason: str
    text: str
    usage: Usage

    @property
    def was_cut(self) -> bool:
        """Whether there was no room for all of it."""
        return self.stop_reason in _CUT


class NoReply(NamedTuple):
    """Why there is no answer."""

    reason: str


def worst_usd(request: Request, prices: Mapping[str, Price], *, batch: bool = False) -> float:
    """The most that a call can cost: every byte of the prompt a token, the reply as long as allowed."""
    return cost_usd(request.model, Usage(request.most_tokens, request.max_tokens), prices, batch=batch)
