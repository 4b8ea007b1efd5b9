"""A run in the formats of other tools: logs of Inspect, tables, a dataset of the hub."""

from datablame.export.write import KINDS, Exported, export

__all__ = ["KINDS", "Exported", "export"]
