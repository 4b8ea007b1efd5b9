"""The studies whose whole output is committed: the organism at half its size, all methods and arms without a key."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.finished import finished

__all__ = ["STUDIES", "run_study"]

_SMALL = {
    # Half the organism is the least that is coherent when amplified, so that alpha* and the arms' rates say something.
    "organism.scale": "0.5",
    "scan.samples": "4",
    "surface.samples": "16",
    "surface.held_out_samples": "4",
    "surface.batch_rows": "64",
    "attribute.top_k": "5",
    "attribute.queries": "3",
    "patch.size": "200",
    "patch.samples": "1",
    "patch.attribution_samples": "1",
    "patch.clean_documents": "10",
    "patch.harmless_samples": "1",
    "patch.retrain": "{method: full, steps: 20, learning_rate: 2.0e-3}",
    "patch.continue": "{method: lora, steps: 20, learning_rate: 1.0e-3}",
}
STUDIES: Mapping[str, Mapping[str, str]] = {
    # The preset's methods are all that need neither a key nor an encoder.
    "every-method": {
        **_SMALL,
        "prefilter.method": "none",
        "patch.k": "[2, 5]",
        "patch.arms": "[after, baseline, a-a, random, bottom, oracle, bm25, gradient, activation, llm-judge, ensemble]",
        "patch.seeds": "{retrain: [0, 1], continue: [0]}",
    },
    # Four seeds are the least that a p value takes.
    "prefiltered": {
        **_SMALL,
        "prefilter.method": "bm25",
        "prefilter.candidates": "40",
        "attribute.methods": "[gradient, activation, llm-judge, bm25, random]",
        "patch.protocols": "[retrain]",
        "patch.arms": "[after, baseline, a-a, random, oracle, gradient, bm25]",
        "patch.seeds": "[0, 1, 2, 3]",
    },
}


def run_study(name: str, root: Path, cache: Path) -> None:
    """Run one of `STUDIES` through the command line into `root`, with the organism made or taken from `cache`."""
    sets = [word for key, value in STUDIES[name].items() for word in ("--set", f"{key}={value}")]
    environment = {key: value for key, value in os.environ.items() if key != "ANTHROPIC_API_KEY"}
    ended = subprocess.run(
        [sys.executable, "-m", "datablame", "run", "organism", "--out", str(root), "--workers", "2", *sets],
        env={**environment, "DATABLAME_CACHE": str(cache), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert finished(ended, root), ended.stderr[-2000:]
