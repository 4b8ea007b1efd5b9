"""manifest.json: what made this run folder, and what it took."""

import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from datablame.config.schema import Study
from datablame.engine.files import write_json
from datablame.engine.run_folder import MANIFEST, read_peaks, read_timings
from datablame.judge.ledger import costs_usd
from datablame.world import World

_PACKAGES = (
    *("datablame", "torch", "transformers", "tokenizers", "peft", "datasets", "safetensors", "bm25s"),
    *("scikit-learn", "numpy", "scipy", "pyarrow", "matplotlib", "anthropic"),
)


def write_manifest(root: Path, study: Study, world: World, skipped: Mapping[str, bool]) -> None:
    """Write versions, identities, seeds, and what each phase and method took (summed over resumes).

    `study` is as it was written, `skipped` says of every phase that was asked for whether it was up to date.
    """
    timings, peaks, costs = read_timings(root), read_peaks(root), costs_usd(root)

    def took(name: str) -> dict[str, Any]:
        return {
            "seconds": round(timings.get(f"phase/{name}", 0.0), 1),
            "peak_rss_mb": round(peaks.get(f"phase/{name}", 0.0)),
            "peak_gpu_mb": round(peaks.get(f"gpu/{name}", 0.0)),
        }

    phases = {"world": took("world")}
    for name, was_skipped in skipped.items():
        phases[name] = {**took(name), "skipped": was_skipped, "cost_usd": round(costs.get(name, 0.0), 6)}
    if study.organism is not None:
        phases["organism"] = {**took("organism"), "skipped": "phase/organism" not in timings}
    write_json(
        root / MANIFEST,
        {
            "study": study.name,
            "versions": {"python": platform.python_version(), **_versions()},
            "machine": {
                "system": platform.system(),
                "processor": platform.machine(),
                "device": world.models.device,
            },
            "organism": None if study.organism is None else study.organism.model_dump(mode="json"),
            **world.identities,
            "seed": study.seed,
            "phases": phases,
            "methods": {
                name: {"seconds": round(timings[f"attribute/{name}"], 1)}
                for name in study.attribute.methods
                if f"attribute/{name}" in timings
            },
            "cost_usd": round(sum(costs.values()), 6),
        },
    )


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
