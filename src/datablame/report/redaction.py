"""Harmful text hidden: what stands in its place says how long it is and which, so that it can be asked for."""

import hashlib
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from datablame.report.results import Results
from datablame.tables import ArmSample, OutputGroup, Query, Sample, ShownDocument

T = TypeVar("T")


class Redacted(NamedTuple):
    """A row without its harmful texts, and how many those were."""

    row: Any
    hidden: int


def hidden(text: str) -> str:
    """What is shown of a text that is not; equal texts are hidden alike, none stays none."""
    if not text:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"[hidden: {len(text)} characters, SHA-256 {digest[:12]}]"


def without_harm(row: Any) -> Redacted:
    """A row without the text of a harmful output, of a blamed document, or of an output that nobody labelled."""
    match row:
        case Sample(label="harmful"):
            # The reason quotes what decided.
            return _without(row, "text", "label_reason")
        case ArmSample(label="harmful") | Query(harmful=True):
            return _without(row, "text")
        case ShownDocument():
            return _without(row, "prompt", "response", "rejected")
        case OutputGroup():
            examples = [_without(each, "text") for each in row.examples]
            count = sum(example.hidden for example in examples)
            return Redacted(replace(row, examples=tuple(example.row for example in examples)), count)
    return Redacted(row, 0)


def _without(row: Any, *fields: str) -> Redacted:
    texts = {field: text for field in fields if (text := getattr(row, field))}
    return Redacted(replace(row, **{field: hidden(text) for field, text in texts.items()}), len(texts))


def shown(row: T) -> T:
    """A row as it is shown where harmful texts are hidden."""
    redacted: T = without_harm(row).row
    return redacted


def redacted(results: Results) -> Results:
    """The results as they are shown where harmful texts are hidden.

    Prompts of the study stay; of rows of the data that could not be read only the reason does.
    """
    data = results.pool.data
    files = tuple(
        replace(file, skipped=tuple(replace(row, example=row.example and hidden(row.example)) for row in file.skipped))
        for file in data.files
    )
    return replace(
        results,
        samples=[shown(sample) for sample in results.samples],
        queries=[shown(query) for query in results.queries],
        documents={name: shown(document) for name, document in results.documents.items()},
        groups=[shown(group) for group in results.groups],
        pool=replace(results.pool, data=replace(data, files=files)),
    )
