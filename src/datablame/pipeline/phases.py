"""The phases of a study in their order; the world comes before them (`world.freeze`)."""

from dataclasses import replace

from datablame.attribute.phase import ATTRIBUTE
from datablame.engine.phase import Phase
from datablame.patch.phase import PATCH
from datablame.report.phase import deliver_patch, deliver_surface, report
from datablame.surface.phase import SCAN, SURFACE

REPORT = Phase(
    name="report",
    version=4,
    parts=("everything", "registration"),
    after=(SCAN, SURFACE, ATTRIBUTE, PATCH),
    run=report,
    delivers=True,
)
PHASES = (SCAN, replace(SURFACE, deliver=deliver_surface), ATTRIBUTE, replace(PATCH, deliver=deliver_patch), REPORT)
NAMES = tuple(phase.name for phase in PHASES)
