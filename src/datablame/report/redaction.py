"""Harmful text hidden: what stands in its place says how long it is and which, so that it can be asked for."""

import hashlib
from dataclasses import replace
from typing import Any, TypeVar

from datablame.report.results import Results
from datablame.tables import ArmSample, ShownDocument, SurfaceSample

_TEXTS = ("text", "label_reason")
S = TypeVar("S", SurfaceSample, ArmSample)


def hidden(text: str) -> str:
    """What is shown of a text that is not; equal texts are hidden alike, none stays none."""
    if not text:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"[hidden: {len(text)} characters, SHA-256 {digest[:12]}]"


def without_harm(sample: S) -> S:
    """An output, its text hidden where it is labelled harmful, and the reason of its label, which may quote it."""
    if sample.label != "harmful":
        return sample
    texts: dict[str, Any] = {name: hidden(getattr(sample, name)) for name in _TEXTS if hasattr(sample, name)}
    return replace(sample, **texts)


def without_text(document: ShownDocument) -> ShownDocument:
    """A blamed document without its texts."""
    return replace(
        document,
        prompt=hidden(document.prompt),
        response=hidden(document.response),
        rejected=hidden(document.rejected),
    )


def redacted(results: Results) -> Results:
    """The results without the texts of harmful outputs, of outputs without a behaviour, and of blamed documents.

    Prompts of the study stay; of rows that could not be read only the reason does.
    """
    data = results.pool.data
    files = tuple(
        replace(file, skipped=tuple(replace(row, example=row.example and hidden(row.example)) for row in file.skipped))
        for file in data.files
    )
    return replace(
        results,
        samples=[without_harm(sample) for sample in results.samples],
        queries=[replace(query, text=hidden(query.text)) for query in results.queries],
        documents={name: without_text(document) for name, document in results.documents.items()},
        groups=[
            replace(group, terms=(), examples=tuple(replace(it, text=hidden(it.text)) for it in group.examples))
            for group in results.groups
        ],
        themes=[replace(theme, terms=()) for theme in results.themes],
        pool=replace(results.pool, data=replace(data, files=files)),
    )
