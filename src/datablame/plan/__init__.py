"""What a study will do, need and cost, before anything is loaded."""

from datablame.plan.build import Device, Plan, doubts_of, plan_of, this_device

__all__ = ["Device", "Plan", "doubts_of", "plan_of", "this_device"]
