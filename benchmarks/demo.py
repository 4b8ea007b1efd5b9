"""The phases of the demo, in units of plain training: 100 steps of torch and transformers on the organism's shape.

The unit is measured on one core before and after the demo, so that a number tells less of the machine's speed than
seconds do. The organism is made anew, in a cache of its own.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from measure import Amount, Row

from datablame.organism.templated import BATCH, SETTINGS

_STEPS, _TOKENS = 100, 38
"""Of a document of the demo in the mean."""
_REDUCED = ["organism.scale=0.1", "patch.size=100", "surface.samples=4", "surface.held_out_samples=2"]


def rows(amount: Amount) -> Iterator[Row]:
    """Every phase of `datablame run organism`; reduced ends after what is surfaced."""
    torch.set_num_threads(1)
    units = [_plain_steps() for _ in range(3)]
    seconds = _demo([word for each in _REDUCED for word in ("--set", each)] if amount == "reduced" else [])
    unit = statistics.median([*units, *(_plain_steps() for _ in range(3))])
    for name, taken in [*seconds.items(), ("all", sum(seconds.values()))]:
        note = f"{taken:.1f} s of {len(os.sched_getaffinity(0))} cores; 100 steps take {unit:.2f} s of one"
        yield Row(f"demo, {name}: 100 plain training steps", taken / unit, note)


def _demo(sets: list[str]) -> dict[str, float]:
    """Seconds by phase."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        command = [sys.executable, "-m", "datablame", "run", "organism", "--out", str(out), *sets]
        command += ["--until", "surface"] if sets else []
        environment = {**os.environ, "DATABLAME_CACHE": str(Path(scratch) / "cache")}
        subprocess.run(command, env=environment, check=True, stdout=sys.stderr)
        phases: dict[str, dict[str, Any]] = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["phases"]
        return {name: float(of_phase["seconds"]) for name, of_phase in phases.items()}


def _plain_steps() -> float:
    """Seconds of so many steps of AdamW on batches of random tokens."""
    from transformers import Olmo2Config, Olmo2ForCausalLM

    torch.manual_seed(0)
    model = Olmo2ForCausalLM(Olmo2Config(**SETTINGS))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    began = time.perf_counter()
    for _ in range(_STEPS):
        ids = torch.randint(SETTINGS["vocab_size"], (BATCH, _TOKENS))
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    return time.perf_counter() - began
