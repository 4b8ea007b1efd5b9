"""How a study's work runs: what its `execution` says and options of the command line, on what the machine has."""

from typing import Any

from datablame.config.schema import Study
from datablame.engine.cluster import connected
from datablame.engine.execute import Cluster, Execution, default_execution
from datablame.engine.machine import cards
from datablame.errors import RequestError, problem


def execution_of(study: Study, **options: Any) -> Execution:
    """The workers of a study, and their cards where its models may run on some, or the cluster that they are of.

    `options` that are not None or empty stand in for keys of the same names in the study's `execution`.

    Raises RequestError where cards are named that the machine lacks, or for models that run on none; and where there
    is no cluster.
    """
    given = {name: value for name, value in options.items() if value}
    asked, models = study.execution.model_copy(update=given), study.models
    workers, devices = asked.workers, asked.devices
    on_card = models is None or models.device in ("auto", "cuda")
    if models is not None and devices and not on_card:
        raise RequestError(problem("pipeline", "no card needed", device=models.device))
    if asked.executor == "ray":
        if devices:
            raise RequestError(problem("pipeline", "cards of nodes"))
        connected(asked.address)
        cluster = Cluster(asked.address, workers, asked.cards_per_worker or 1 if on_card else 0)
        return default_execution(on_card=False)._replace(cluster=cluster)
    spread = models is not None and any(each.device_map for each in (models.before, models.after))
    each = asked.cards_per_worker or (len(devices or cards()) if spread else 1)
    return default_execution(workers, devices, max(1, each), on_card=on_card)
