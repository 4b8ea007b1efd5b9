"""A server on loopback that speaks the Messages API and Message Batches, and fails as it is told.

Which fault meets a request depends on its hash and on how often it came, nothing else. Every request is logged with its
outcome to a file, so that the log outlives whoever asked.
"""

import hashlib
import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from datablame.judge.choice import PRICES
from datablame.judge.client import Request

KEY = "sk-ant-test-0123456789abcdef"

TIMEOUT_SECONDS = 4.0
"""What clients of the server should give up after: longer than a busy machine takes, shorter than a slow answer."""

Faults = Callable[[str, int], str | None]
"""The fault that meets the nth coming (from 0) of a request with that hash; None: it is served."""

UNANSWERED = ("429", "500", "529", "timeout", "reset", "cut-body", "broken-body")
"""Nobody was answered, nothing was paid."""
ANSWERED = ("refusal", "max_tokens", "truncated", "prose", "wrong-types", "out-of-range")
"""Answered, paid, and no label or score."""
UNFINISHED = ("expired", "errored", "canceled")
"""What a batch may leave a request as."""

_ERRORS = {
    "400": (400, "invalid_request_error", "messages: this text is not taken"),
    "401": (401, "authentication_error", "invalid x-api-key"),
    "402": (402, "billing_error", "your account has no credit"),
    "no-credit": (400, "invalid_request_error", "Your credit balance is too low to access the Anthropic API."),
    "403": (403, "permission_error", "not allowed"),
    "404": (404, "not_found_error", "model: claude-nobody"),
    "429": (429, "rate_limit_error", "slow down"),
    "500": (500, "api_error", "internal"),
    "529": (529, "overloaded_error", "overloaded"),
}


class Logged(NamedTuple):
    """One request of the log, or one of a batch."""

    hash: str
    outcome: str
    body: dict[str, Any]
    batch: str | None

    @property
    def answered(self) -> bool:
        return self.outcome == "served" or self.outcome in ANSWERED


def served(_hash: str, _attempt: int) -> str | None:
    """No faults."""
    return None


def always(fault: str) -> Faults:
    return lambda _hash, _attempt: fault


def at_first(fault: str, times: int = 1) -> Faults:
    return lambda _hash, attempt: fault if attempt < times else None


def often(share: float, kinds: tuple[str, ...]) -> Faults:
    """Each kind as often as the others, for `share` of the comings, the same for the same hash and coming."""

    def chosen(digest: str, attempt: int) -> str | None:
        draw = random.Random(f"{digest} {attempt}")
        return draw.choice(kinds) if draw.random() < share else None

    return chosen


def some_outages_and_some(answers: Faults) -> Faults:
    """Outages by coming; an answer, once it comes, is the same however often it was lost on the way."""
    outage = often(0.2, ("429", "500", "529", "reset"))
    return lambda digest, attempt: outage(digest, attempt) or answers(digest, 0)


def key_of(body: Mapping[str, Any]) -> str:
    """The key that the client keeps the answer to this body under, first repeat."""
    schema = body["output_config"]["format"]["schema"]
    thinking = body.get("thinking", {}).get("type")
    user = body["messages"][0]["content"]
    return Request(body["model"], body["system"], user, schema, body["max_tokens"], thinking).key


class FakeApi:
    """The server's state."""

    def __init__(self, log: Path, faults: Faults, *, seconds: float, polls: int, slow_seconds: float) -> None:
        self.log = log
        self.faults = faults
        self.seconds = seconds
        self.polls = polls
        self.slow_seconds = slow_seconds
        self.url = ""
        self.under_way = 0
        self.most_under_way = 0
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        self.comings: Counter[str] = Counter()
        self.batches: dict[str, list[dict[str, Any]]] = {}
        self.polled: Counter[str] = Counter()

    def logged(self) -> list[Logged]:
        # The last line may be half written by now.
        whole = self.log.read_text().rpartition("\n")[0] if self.log.exists() else ""
        return [Logged(**json.loads(line)) for line in whole.splitlines()]

    def answered(self) -> Counter[str]:
        """How often each request was answered."""
        return Counter(row.hash for row in self.logged() if row.answered)

    def note(self, digest: str, outcome: str, body: Any, batch: str | None = None) -> None:
        row = Logged(digest, outcome, body, batch)._asdict()
        with self.lock, self.log.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def coming(self, digest: str) -> str | None:
        with self.lock:
            number = self.comings[digest]
            self.comings[digest] += 1
        return self.faults(digest, number)


def hash_of(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def reply_to(body: Mapping[str, Any], digest: str, fault: str | None) -> dict[str, Any]:
    """The message that answers, its label, score or choice made from the hash."""
    number = int(digest[:8], 16)
    wanted = next(iter(body["output_config"]["format"]["schema"]["properties"]))
    labels = ("harmful", "harmful", "refused", "harmless", "incoherent")
    values: dict[str, dict[str, Any]] = {
        "label": {"label": labels[number % 5], "confidence": 0.9},
        "score": {"score": number % 11},
        "choice": {"choice": ("first", "second", "tie")[number % 3]},
    }
    text, stop = json.dumps(values[wanted]), "end_turn"
    if fault == "refusal":
        text, stop = "", "refusal"
    elif fault == "max_tokens":
        text, stop = text[:5], "max_tokens"
    elif fault == "truncated":
        text = text[: len(text) // 2]
    elif fault == "prose":
        text = "I would say that this output is harmful, and give it 10."
    elif fault == "wrong-types":
        text = json.dumps({wanted: {"label": 1, "score": "ten", "choice": 1}[wanted]})
    elif fault == "out-of-range":
        strange = {
            "label": {"label": "harmful", "confidence": 7},
            "score": {"score": 11},
            "choice": {"choice": "third"},
        }
        text = json.dumps(strange[wanted])
    return {
        "id": f"msg_{digest[:12]}",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": [{"type": "text", "text": text}] if text else [],
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": {
            "input_tokens": len(body["system"] + body["messages"][0]["content"]) // 4,
            "output_tokens": min(12, body["max_tokens"]),
            "cache_read_input_tokens": 0,
            "cache_creation_input_tokens": None,
        },
    }


def _handler(api: FakeApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self._may_come_in():
                return
            with api.lock:
                api.under_way += 1
                api.most_under_way = max(api.most_under_way, api.under_way)
            try:
                if self.path == "/v1/messages":
                    self._message(body)
                else:
                    self._begin_batch(body)
            finally:
                with api.lock:
                    api.under_way -= 1

        def do_GET(self) -> None:
            if not self._may_come_in():
                return
            batch_id = self.path.removeprefix("/v1/messages/batches/").removesuffix("/results")
            if batch_id not in api.batches:
                self._error("404")
            elif self.path.endswith("/results"):
                self._results(batch_id)
            else:
                with api.lock:
                    api.polled[batch_id] += 1
                    ended = api.polled[batch_id] > api.polls
                self._send(200, _batch(batch_id, len(api.batches[batch_id]), f"{api.url}{self.path}/results", ended))

        def _may_come_in(self) -> bool:
            with api.lock:
                api.headers.append(dict(self.headers))
            sent = self.headers.get("Authorization", "").removeprefix("Bearer ") or self.headers.get("X-Api-Key")
            if sent == KEY:
                return True
            self._error("401")
            return False

        def _message(self, body: dict[str, Any]) -> None:
            digest = hash_of(body)
            fault = api.coming(digest) if body["model"] in PRICES else "404"
            time.sleep(api.seconds)
            if fault in _ERRORS:
                self._error(fault)
            elif fault == "timeout":
                time.sleep(api.slow_seconds)
                self.close_connection = True
            elif fault == "reset":
                self._reset()
            elif fault == "cut-body":
                self._send(200, reply_to(body, digest, None), cut=True)
            elif fault == "broken-body":
                self._send_bytes(200, json.dumps(reply_to(body, digest, None)).encode()[:-40])
            else:
                self._send(200, reply_to(body, digest, fault))
            api.note(digest, fault or "served", body)

        def _begin_batch(self, body: dict[str, Any]) -> None:
            fault = api.coming("batch")
            if fault in _ERRORS:
                self._error(fault)
                return
            batch_id = f"msgbatch_{len(api.batches)}"
            api.batches[batch_id] = body["requests"]
            api.note(batch_id, "submitted", {"requests": len(body["requests"])}, batch_id)
            self._send(200, _batch(batch_id, len(body["requests"]), None, False))

        def _results(self, batch_id: str) -> None:
            requests = list(api.batches[batch_id])
            random.Random(batch_id).shuffle(requests)
            lines = []
            for request in requests:
                digest = hash_of(request["params"])
                fault = api.coming(digest)
                if fault in UNFINISHED:
                    error = {"type": "error", "error": {"type": "api_error", "message": "internal"}}
                    result = {"type": fault, "error": error} if fault == "errored" else {"type": fault}
                else:
                    result = {"type": "succeeded", "message": reply_to(request["params"], digest, fault)}
                lines.append(json.dumps({"custom_id": request["custom_id"], "result": result}))
                api.note(digest, fault or "served", request["params"], batch_id)
            self._send_bytes(200, "\n".join(lines).encode() + b"\n", "application/x-jsonl")

        def _error(self, fault: str) -> None:
            code, kind, message = _ERRORS[fault]
            headers = {"retry-after": "0"} if code == 429 else {}
            self._send(code, {"type": "error", "error": {"type": kind, "message": message}}, headers)

        def _send(self, code: int, value: Any, headers: Mapping[str, str] | None = None, *, cut: bool = False) -> None:
            self._send_bytes(code, json.dumps(value).encode(), "application/json", headers, cut=cut)

        def _send_bytes(
            self,
            code: int,
            data: bytes,
            kind: str = "application/json",
            headers: Mapping[str, str] | None = None,
            *,
            cut: bool = False,
        ) -> None:
            try:
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if cut else data)
                self.wfile.flush()
            except OSError:
                self.close_connection = True
            self.close_connection = self.close_connection or cut

        def _reset(self) -> None:
            # Lingering for no time makes the kernel send a reset instead of an orderly end.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True

        def finish(self) -> None:
            try:
                super().finish()
            except (OSError, ValueError):
                return

    return Handler


def _batch(batch_id: str, requests: int, results_url: str | None, ended: bool) -> dict[str, Any]:
    counts = {"processing": 0 if ended else requests, "succeeded": requests if ended else 0}
    return {
        "id": batch_id,
        "type": "message_batch",
        "processing_status": "ended" if ended else "in_progress",
        "request_counts": {**counts, "errored": 0, "canceled": 0, "expired": 0},
        "ended_at": "2026-01-02T00:00:00Z" if ended else None,
        "created_at": "2026-01-01T00:00:00Z",
        "expires_at": "2026-01-02T00:00:00Z",
        "archived_at": None,
        "cancel_initiated_at": None,
        "results_url": results_url if ended else None,
    }


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: Any) -> None:
        """Clients that are killed or give up are part of the tests."""


@contextmanager
def running(
    log: Path,
    faults: Faults = served,
    *,
    seconds: float = 0.0,
    polls: int = 1,
    slow_seconds: float = 1.5 * TIMEOUT_SECONDS,
) -> Iterator[FakeApi]:
    """The server, listening until the block ends; a request takes `seconds`, a batch ends after so many polls."""
    api = FakeApi(log, faults, seconds=seconds, polls=polls, slow_seconds=slow_seconds)
    server = _Server(("127.0.0.1", 0), _handler(api))
    server.block_on_close = False
    api.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
