"""Whether a run is the one that was pre-registered, and if it is not, in what it deviates."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from datablame.engine.files import json_object
from datablame.report.results import Results
from datablame.world.registration import BEGUN, FILE, Deviation, described, deviations, differences

if TYPE_CHECKING:
    from datablame.world.world import World


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
        rows = [deviation._asdict() for deviation in self.deviations]
        return {"status": self.status, "hash": self.hash, "date": self.date, "deviations": rows}


def preregistration(world: "World", root: Path, results: Results) -> Preregistration:
    """Compare what a run folder has registered with the world in which it ran and with what it tested."""
    if not (root / FILE).exists():
        return Preregistration("none")
    registered = json_object(root / FILE)
    departures = (*deviations(registered, json_object(root / BEGUN), described(world)), *_tested(registered, results))
    return Preregistration(
        status="deviates" if departures else "pre-registered",
        hash=registered.get("sha256"),
        date=registered.get("date"),
        deviations=departures,
    )


def _tested(registered: Mapping[str, Any], results: Results) -> Iterator[Deviation]:
    """At which amplification the arms were compared, and whether every hypothesis was put to the test."""
    star = registered.get("alpha_star", {})
    if star.get("surface_done"):
        yield from differences(star.get("value"), results.alpha_star.alpha_star, "alpha_star.value")
    tested = {test.arm for test in results.headline}
    for method in registered.get("tests", {}).get("family", ()):
        if tested and method not in tested:
            yield Deviation(f"tests.family.{method}", "tested", "not tested: it flagged no document")
