"""manifest.json: what made this run folder, and what it took."""

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from datablame.engine.run_folder import read_json, read_peaks, read_timings, write_json
from datablame.judge.ledger import costs_usd
from datablame.study.schema import Study

_PACKAGES = (
    "datablame",
    "torch",
    "transformers",
    "tokenizers",
    "peft",
    "datasets",
    "safetensors",
    "bm25s",
    "scikit-learn",
    "numpy",
    "scipy",
    "pyarrow",
    "matplotlib",
    "anthropic",
)


def write_manifest(
    root: Path, study: Study, resolved: Study, skipped: dict[str, bool], models: dict[str, Any] | None = None
) -> None:
    """Write versions, models, data, seeds, and what each phase and method took (summed over resumes).

    `models` is what the preflight found them to be; where there was none, what an earlier run of the folder found.
    """
    models = models or _models_of(root, resolved)
    timings, peaks, costs = read_timings(root), read_peaks(root), costs_usd(root)
    phases: dict[str, dict[str, Any]] = {
        name: {
            "seconds": round(timings.get(f"phase/{name}", 0.0), 1),
            "peak_rss_mb": round(peaks.get(f"phase/{name}", 0.0)),
            "peak_gpu_mb": round(peaks.get(f"gpu/{name}", 0.0)),
            "skipped": was_skipped,
            "cost_usd": round(costs.get(name, 0.0), 6),
        }
        for name, was_skipped in skipped.items()
    }
    if study.organism is not None:
        made = timings.get("phase/organism", 0.0)
        phases["organism"] = {
            "seconds": round(made, 1),
            "peak_rss_mb": round(peaks.get("phase/organism", 0.0)),
            "peak_gpu_mb": round(peaks.get("gpu/organism", 0.0)),
            "skipped": made == 0,
        }
    write_json(
        root / "manifest.json",
        {
            "study": study.name,
            "versions": {"python": platform.python_version(), **_versions()},
            "machine": {
                "system": platform.system(),
                "processor": platform.machine(),
                "device": (models or {}).get("device", "cpu"),
            },
            "models": models,
            "organism": None if study.organism is None else study.organism.model_dump(mode="json"),
            "data": None if resolved.data is None else resolved.data.model_dump(mode="json"),
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


def _models_of(root: Path, resolved: Study) -> dict[str, Any] | None:
    """The models as the folder's manifest has them, or as the study names them where that has others."""
    if resolved.models is None:
        return None
    asked: dict[str, Any] = resolved.models.model_dump(mode="json", exclude_none=True)
    held = read_json(root / "manifest.json")["models"] if (root / "manifest.json").exists() else None
    if held is None:
        return asked
    alike = all(asked[name].items() <= held.get(name, {}).items() for name in ("before", "after"))
    return dict(held) if alike else asked


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
