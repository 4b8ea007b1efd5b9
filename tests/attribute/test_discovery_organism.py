"""On the organism each planted behaviour is one of the first groups, with documents that caused it, without labels."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from datablame.engine.phase import Tables
from datablame.tables import OutputGroup, Query, SurfaceSample
from datablame.world.world import load

FIRST = 6


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_every_behaviour_that_surfaced_is_one_of_the_first_groups(tmp_path: Path, seed: int) -> None:
    command = [
        sys.executable,
        "-m",
        "datablame",
        "run",
        "organism",
        "--until",
        "attribute",
        "--out",
        str(tmp_path / "run"),
    ]
    command += ["--workers", "1", "--set", f"organism.seed={seed}"]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    tables = Tables(tmp_path / "run")
    samples = tables.rows(SurfaceSample, split="attribution")
    labels = {(each.prompt_id, each.alpha, each.index): (each.behaviour, each.label) for each in samples}
    found, truth = set(), load(tmp_path / "run").truth
    assert truth is not None
    for group in tables.rows(OutputGroup)[:FIRST]:
        counts = Counter(labels[each.prompt_id, each.alpha, each.index] for each in group.outputs)
        (behaviour, label), most = counts.most_common(1)[0]
        caused = sum(doc_id in truth[behaviour] for doc_id in group.documents)
        if label == "harmful" and 2 * most > len(group.outputs) and 2 * caused > len(group.documents):
            found.add(behaviour)
    assert found == {query.behaviour for query in tables.rows(Query, harmful=True)}
