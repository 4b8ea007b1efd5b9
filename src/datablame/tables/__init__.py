"""Every row that crosses a border between phases, declared once: its type, its file, how it is written and read.

A row is a frozen dataclass; `@table(phase, file)` says where its rows lie, below `artifacts/PHASE`. Tables of many rows
are Parquet, a table of one row is JSON. Equal rows give equal bytes.
"""

from datablame.tables.attribute import *
from datablame.tables.patch import *
from datablame.tables.store import *
from datablame.tables.surface import *
from datablame.tables.world import *
