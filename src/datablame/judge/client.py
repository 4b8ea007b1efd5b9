"""The only door to Anthropic's SDK: what is asked and answered, one by one or in batches, and every way to fail."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from datablame.engine.files import digest
from datablame.errors import BudgetError, DatablameError, RequestError, problem
from datablame.judge.choice import KEY, Price, Usage, api_key, cost_usd

_BASE_URL = "ANTHROPIC_BASE_URL"
_UNSEEN_TOKENS = 1_000
"""What the API may add to a prompt for structured output and framing; measured additions are some hundred tokens."""
_LONGEST_MESSAGE = 200
_MONEY_WORDS = ("credit balance", "spend limit", "usage limit")


@dataclass(frozen=True)
class Request:
    """What is sent. Equal questions have equal keys, and are paid once."""

    model: str
    system: str
    user: str
    schema: Mapping[str, Any]
    max_tokens: int
    thinking: str | None = None
    repeat: int = 0

    @cached_property
    def key(self) -> str:
        """The hash of model, prompt, schema and repeat index; how long the answer may be is no part of the question."""
        return digest([self.model, self.thinking, self.system, self.user, dict(self.schema), self.repeat])

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
        return self.stop_reason in ("max_tokens", "model_context_window_exceeded")


def worst_usd(request: Request, prices: Mapping[str, Price], *, batch: bool = False) -> float:
    """The most that a call can cost: every byte of the prompt a token, the reply as long as allowed."""
    return cost_usd(request.model, Usage(request.most_tokens, request.max_tokens), prices, batch=batch)


def endpoint() -> str:
    """Whom the environment has put in the API's place, as the end of a sentence, without a password; empty: nobody."""
    url = re.sub("//[^/@]*@", "//", os.environ.get(_BASE_URL, "").partition("?")[0]).rstrip("/")
    return problem("judge", "endpoint", url=url) if url else ""


class Unavailable(Exception):
    """No answer this time; `retry_after_seconds` is the API's own wish, `again` whether asking again may help."""

    def __init__(self, what: str, retry_after_seconds: float | None = None, again: bool = True) -> None:
        super().__init__(what)
        self.retry_after_seconds, self.again = retry_after_seconds, again


class Rejected(Exception):
    """The API will not take this request, now or later."""


class Api:
    """A client that makes each call once: when to make it again is the caller's business."""

    def __init__(self, timeout_seconds: float) -> None:
        import anthropic

        self._key = api_key()
        # The key is given by hand, so that no profile or token of the machine is taken in its place.
        self._client = anthropic.Anthropic(api_key=self._key, max_retries=0, timeout=timeout_seconds)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def ask(self, request: Request) -> Reply:
        """One call.

        Raises Unavailable or Rejected, RequestError where key or model are wrong, BudgetError where there is no credit.
        """
        with self._translated(request.model):
            response = self._client.messages.with_raw_response.create(**_params(request))
            reply = _reply(json.loads(response.http_response.content))
            if isinstance(reply, str):
                raise Unavailable(reply)
            return reply

    def submit(self, requests: Sequence[Request]) -> str:
        """Submit a batch and return its id; raises what `ask` raises."""
        with self._translated(requests[0].model):
            entries: Any = [{"custom_id": request.key, "params": _params(request)} for request in requests]
            batch = self._client.messages.batches.create(requests=entries)
            if not isinstance(batch.id, str) or not batch.id:
                raise Unavailable("a broken answer")
            return batch.id

    def has_ended(self, batch_id: str) -> bool:
        """Whether a batch is through; raises what `ask` raises."""
        with self._translated(f"the batch {batch_id}"):
            return self._client.messages.batches.retrieve(batch_id).processing_status == "ended"

    def results(self, batch_id: str) -> Iterator[tuple[str, Reply | str]]:
        """Each key of a batch that has ended with its reply, or why there is none; raises what `ask` raises."""
        with self._translated(f"the batch {batch_id}"):
            if self._client.messages.batches.retrieve(batch_id).archived_at is None:
                for line in self._client.messages.batches.results(batch_id):
                    entry: Any = line.to_dict(mode="json")
                    result, kind = entry["result"], entry["result"]["type"]
                    error = (result.get("error") or {}).get("error") or {}
                    parts = (str(error[field]) for field in ("type", "message") if error.get(field))
                    why = f"{kind} ({detail})" if (detail := self._printable(": ".join(parts))) else str(kind)
                    yield entry["custom_id"], _reply(result.get("message")) if kind == "succeeded" else why

    @contextmanager
    def _translated(self, subject: str) -> Iterator[None]:
        """Raises the error as the caller knows it; the SDK's own may carry the request and with it the key."""
        import anthropic

        try:
            yield
        except (DatablameError, Unavailable, Rejected):
            raise
        except anthropic.APITimeoutError:
            raise Unavailable("a timeout") from None
        except anthropic.APIStatusError as error:
            raise self._status(error, subject) from None
        except anthropic.APIConnectionError:
            raise Unavailable("a broken connection") from None
        except Exception as error:
            raise Unavailable(f"a broken answer ({type(error).__name__})") from None

    def _status(self, error: Any, subject: str) -> Exception:
        code, message = error.status_code, self._printable(error.api_message or "")
        answer = f"{code}, {message}" if message else str(code)
        if code == 402 or error.type == "billing_error" or any(word in message.lower() for word in _MONEY_WORDS):
            return BudgetError(problem("judge", "no_credit", answer=answer))
        if code in (401, 403, 404):
            return RequestError(problem("judge", code, key=KEY, subject=subject, answer=answer, endpoint=endpoint()))
        headers = error.response.headers
        again = code in (408, 409, 429) or code >= 500
        if (wish := headers.get("x-should-retry")) in ("true", "false"):
            again = wish == "true"
        elif not again:
            return Rejected(answer)
        return Unavailable(str(code), _retry_after(headers), again)

    def _printable(self, text: str) -> str:
        plain = "".join(character if character.isprintable() else " " for character in text)
        return plain.replace(self._key, "[key]")[:_LONGEST_MESSAGE]


def _params(request: Request) -> dict[str, Any]:
    """The body of a call. `messages.parse` would lose the usage, and so the cost, of a reply that does not parse."""
    thinking = {} if request.thinking is None else {"thinking": {"type": request.thinking}}
    return {
        "model": request.model,
        "max_tokens": request.max_tokens,
        "system": request.system,
        "messages": [{"role": "user", "content": request.user}],
        "output_config": {"format": {"type": "json_schema", "schema": dict(request.schema)}},
        **thinking,
    }


def _reply(message: Any) -> Reply | str:
    """The reply in a message as it came, or that it is none, so that nothing about it can be counted."""
    try:
        usage = message["usage"]
        texts = [block["text"] for block in message["content"] if block["type"] == "text"]
        cached = (usage.get(f"cache_{kind}_input_tokens") or 0 for kind in ("read", "creation"))
        counts = map(int, (usage["input_tokens"], usage["output_tokens"], *cached))
        return Reply(str(message["stop_reason"]), "".join(texts), Usage(*counts))
    except (KeyError, TypeError, ValueError, AttributeError):
        return "a broken answer"


def _retry_after(headers: Any) -> float | None:
    """The seconds that the API wishes to be left alone, which may be none."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        with suppress(KeyError, ValueError):
            return max(0.0, float(headers[name]) / unit)
    return None
