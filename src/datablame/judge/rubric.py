"""What Claude is asked. Orders stand in the system prompt; everything hostile stands in the user turn, as data.

Each piece of data is enclosed in a tag whose name carries a hash that no piece contains, so that no text can close its
own enclosure and speak to the judge.
"""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, Field

from datablame.config.schema import Behaviour
from datablame.engine.files import digest, packaged_yaml
from datablame.tables import Document

MAX_BYTES = 12_000
"""A longer text loses its middle: a token has at least a byte, so no prompt is as long as those that cost more."""

_OUTPUTS_BYTES, _OUTPUT_BYTES = 40_000, 4_000
"""What all outputs and their prompts may take together in a question about a document, and each one at most."""

_TEXTS: dict[str, dict[str, Any]] = packaged_yaml("datablame.judge", "questions.yaml")
LABEL_SCHEMA: Mapping[str, Any] = _TEXTS["label"]["schema"]
SCORE_SCHEMA: Mapping[str, Any] = _TEXTS["score"]["schema"]


class Verdict(BaseModel, strict=True, extra="forbid", frozen=True):
    """A label as Claude gives it; wrong types and values out of range are no verdict."""

    label: Literal["harmful", "refused", "harmless", "incoherent"]
    confidence: Annotated[float, Field(ge=0, le=1)]


class Score(BaseModel, strict=True, extra="forbid", frozen=True):
    """A score as Claude gives it."""

    score: Annotated[int, Field(ge=0, le=10)]


class Question(NamedTuple):
    """The two texts of a request."""

    system: str
    user: str


def classification(behaviour: Behaviour, prompt: str, text: str) -> Question:
    """The question which label the output `text` gets; it says nothing of arm or alpha."""
    return _question("label", behaviour, [("prompt", _cut(prompt)), ("output", _cut(text))])


def attribution(behaviour: Behaviour, document: Document, outputs: Sequence[tuple[str, str]]) -> Question:
    """The question how likely `document` taught the `outputs` (prompt, text) of one behaviour."""
    prompt = "\n\n".join(f"{turn.role}: {turn.content}" for turn in document.prompt)
    pieces = [("document-prompt", _cut(prompt)), ("document-response", _cut(document.response))]
    if document.rejected:
        pieces.append(("document-rejected-response", _cut(document.rejected)))
    limit = min(_OUTPUT_BYTES, _OUTPUTS_BYTES // (2 * max(1, len(outputs))))
    for question, text in outputs:
        pieces += [("prompt", _cut(question, limit)), ("output", _cut(text, limit))]
    return _question("score", behaviour, pieces)


def digests() -> dict[str, str]:
    """The hashes of the prompts for a `label` and a `score` with schema and cut: other prompts are another judge."""
    cuts = {"label": [MAX_BYTES], "score": [MAX_BYTES, _OUTPUTS_BYTES, _OUTPUT_BYTES]}
    return {name: digest([*(_TEXTS[name][key] for key in ("system", "end", "schema")), *cuts[name]]) for name in cuts}


def _question(name: str, behaviour: Behaviour, pieces: Sequence[tuple[str, str]]) -> Question:
    nonce = _nonce([text for _, text in pieces])
    enclosed = [f"<{tag}-{nonce}>\n{text}\n</{tag}-{nonce}>" for tag, text in pieces]
    rubric = behaviour.rubric or behaviour.description
    orders = _TEXTS[name]["system"].format(nonce=nonce, description=behaviour.description, rubric=rubric)
    return Question(orders, "\n\n".join([*enclosed, _TEXTS[name]["end"]]))


def _nonce(texts: Sequence[str]) -> str:
    """Sixteen hexadecimal digits that no text contains; the same texts give the same ones, so that answers are kept."""
    joined = "\0".join(texts)
    nonces = (hashlib.sha256(f"{n}\0{joined}".encode("utf-8", "surrogatepass")).hexdigest()[:16] for n in count())
    folded = joined.casefold()
    return next(nonce for nonce in nonces if nonce not in folded)


def _cut(text: str, limit: int = MAX_BYTES) -> str:
    """The text as UTF-8 can carry it, without its middle where it has more bytes than `limit`."""
    data = text.encode("utf-8", "replace")
    if len(data) <= limit:
        return data.decode()
    head, tail = data[: limit // 2].decode(errors="ignore"), data[-(limit // 2) :].decode(errors="ignore")
    return f"{head}\n[{len(data) - limit} bytes left out]\n{tail}"
