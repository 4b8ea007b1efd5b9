"""What a study will do, need and cost, before anything is loaded."""

from datablame.plan.build import Plan, doubts_of, plan_of
from datablame.plan.memory import Device

__all__ = ["Device", "Plan", "doubts_of", "plan_of"]
