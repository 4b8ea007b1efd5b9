"""Whether a run is the one that was pre-registered, and if it is not, in what it deviates."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from datablame.report.artifacts import Artifacts
from datablame.report.registration import asked, content_hash
from datablame.study.schema import Study

_LONGEST = 120
_ABSENT = "(absent)"


class Deviation(NamedTuple):
    """One field in which the run is not the one that was registered."""

    field: str
    registered: Any
    actual: Any

    def sentence(self) -> str:
        """In words."""
        return f"{self.field}: registered {_shown(self.registered)}, in this run {_shown(self.actual)}"


class Preregistration(NamedTuple):
    """What a report may say of a study's pre-registration."""

    status: Literal["pre-registered", "deviates", "none"]
    hash: str | None = None
    date: str | None = None
    deviations: tuple[Deviation, ...] = ()

    def sentence(self) -> str:
        """The claim, which is made only where nothing deviates."""
        if self.status == "none":
            return "This study was not pre-registered."
        stamp = f"{self.date}, SHA-256 {self.hash}"
        if self.status == "pre-registered":
            return f"Pre-registered before the patch phase began ({stamp}); the run matches the registration."
        count = len(self.deviations)
        return (
            f"Not as pre-registered: this run deviates from the file ({stamp}) in {count} "
            f"field{'' if count == 1 else 's'}."
        )

    def as_json(self) -> dict[str, Any]:
        """For final_results.json."""
        found = [deviation._asdict() for deviation in self.deviations]
        return {"status": self.status, "hash": self.hash, "date": self.date, "deviations": found}


def compare(registered: Mapping[str, Any] | None, study: Study, found: Artifacts) -> Preregistration:
    """Compare a registration with the study as it ran (`study` with what its organism brought) and what it left.

    None: nothing was registered. What follows from a key of the study, as hypotheses and tests do, is compared by that
    key. A commit that was unknown when the file was written cannot deviate.
    """
    if registered is None:
        return Preregistration("none")
    known = found.preregistration
    deviations = (
        *_frozen(registered, known.get("begun", {})),
        *_inputs(registered, known.get("begun", {})),
        *differences(registered.get("config", {}), known.get("config", {})),
        *_asked(registered, study),
        *_decided(registered, found),
    )
    return Preregistration(
        status="deviates" if deviations else "pre-registered",
        hash=registered.get("sha256"),
        date=registered.get("date"),
        deviations=deviations,
    )


def differences(registered: Any, actual: Any, field: str = "") -> tuple[Deviation, ...]:
    """Every key, from the top down, at which two nested mappings differ; lists are compared as wholes.

    A key without a value is as good as none: study.yaml leaves it out.
    """
    if isinstance(registered, Mapping) and isinstance(actual, Mapping):
        keys = dict.fromkeys((*registered, *actual))
        pairs = [(f"{field}.{key}" if field else str(key), registered.get(key), actual.get(key)) for key in keys]
        return tuple(found for name, old, new in pairs for found in differences(old, new, name))
    if registered == actual:
        return ()
    return (Deviation(field, _or_absent(registered), _or_absent(actual)),)


def _frozen(registered: Mapping[str, Any], begun: Mapping[str, Any]) -> Iterator[Deviation]:
    """Hash intact, and frozen before the first artifact of the patch phase."""
    stated, real = registered.get("sha256"), content_hash(registered)
    if stated != real:
        yield Deviation("sha256 (the hash is broken: the file was changed after it was frozen)", stated, real)
    if begun.get("sha256") is None:
        when = registered.get("date")
        yield Deviation("date (a registration after the fact is none)", when, "the patch phase had begun without it")
    elif begun["sha256"] != stated:
        yield Deviation("sha256 when the patch phase began", stated, begun["sha256"])


def _inputs(registered: Mapping[str, Any], begun: Mapping[str, Any]) -> Iterator[Deviation]:
    """The version of datablame, models and data when the patch phase last began."""
    if begun.get("sha256") is None:
        return
    yield from differences(registered.get("datablame"), begun.get("datablame"), "datablame")
    for deviation in differences(registered.get("references", {}), begun.get("references", {})):
        if not (deviation.field.endswith(".commit") and deviation.registered == _ABSENT):
            yield deviation


def _asked(registered: Mapping[str, Any], study: Study) -> Iterator[Deviation]:
    assert study.prompts is not None
    for name, actual in asked(study.prompts, study.behaviours).items():
        yield from differences(registered.get(name), actual, name)


def _decided(registered: Mapping[str, Any], found: Artifacts) -> Iterator[Deviation]:
    """Who labelled, which amplification the arms were compared at, and whether every hypothesis was put to the test."""
    for name, chosen in registered.get("classifier", {}).items():
        if found.judge:
            yield from differences(chosen, found.judge.get(name), f"classifier.{name}")
    star = registered.get("alpha_star", {})
    if star.get("surface_done"):
        yield from differences(star.get("value"), found.alpha_star["alpha_star"], "alpha_star.value")
    tested = {row["arm"] for row in found.headline}
    for method in registered.get("tests", {}).get("family", ()):
        if tested and method not in tested:
            yield Deviation(f"tests.family.{method}", "tested", "not tested: it flagged no document")


def _or_absent(value: Any) -> Any:
    return _ABSENT if value is None else value


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
