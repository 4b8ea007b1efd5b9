"""Every row that crosses a border between phases, declared once. A row is a frozen dataclass; equal rows, equal bytes.

`@table(phase, file)` says where rows lie, below `artifacts/PHASE`: many as Parquet, a table of one row as JSON.
"""

from datablame.tables.attribute import *
from datablame.tables.patch import *
from datablame.tables.store import *
from datablame.tables.surface import *
from datablame.tables.world import *
