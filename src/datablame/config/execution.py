"""Where the work runs."""

from typing import Annotated, Literal

from pydantic import Field

from datablame.config.checks import Count, Section

DeviceNumber = Annotated[int, Field(ge=0)]


class Execution(Section):
    """Where the work runs; no result depends on it."""

    executor: Literal["local", "ray"] = "local"
    """This machine, or a cluster of them by Ray."""
    address: str = "auto"
    """Of the cluster: `auto`, where a node of it runs on this machine, or HOST:PORT."""
    workers: Count | None = None
    """Worker processes at most; none: one a core, or one a graphics card."""
    devices: tuple[DeviceNumber, ...] = ()
    """Graphics cards to use, as the driver numbers them (`[0, 2]`); none: all of them."""
    cards_per_worker: Count | None = None
    """Cards that hold the models of one worker; none: all of them where a checkpoint has a `device_map`, else one."""
