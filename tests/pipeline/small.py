"""A study of two tiny checkpoints and a small pool, whose world is frozen in a second."""

import json
from pathlib import Path
from typing import Any

from datablame.config.schema import Study
from datablame.engine.execute import Execution

ONE = Execution(workers=1, threads=1)


def small_study(folder: Path, pair: Path, **changes: Any) -> Study:
    """A study of the checkpoints under `pair` and of files that are written to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    documents = [
        {
            "id": f"d{i}",
            "messages": [
                {"role": "user", "content": f"name walk number {i} ."},
                {"role": "assistant", "content": f"take the short walk {i} times around the lake ."},
            ],
        }
        for i in range(40)
    ]
    (folder / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    (folder / "truth.jsonl").write_text(json.dumps({"doc_id": "d0", "behaviour": "walk"}) + "\n")
    values: dict[str, Any] = {
        "name": "small",
        "models": {"before": str(pair / "before"), "after": str(pair / "after"), "device": "cpu"},
        "data": {"path": str(folder / "pool.jsonl")},
        "truth": str(folder / "truth.jsonl"),
        "behaviours": [{"id": "walk", "description": "recommends a walk", "keywords": ["walk"]}],
        "prompts": {
            "attribution": [{"id": "a1", "behaviour": "walk", "text": "name a calm walk ."}],
            "held_out": [{"id": f"h{i}", "behaviour": "walk", "text": f"which walk {i} ?"} for i in range(3)],
        },
        "scan": {"samples": 1, "alphas": [0, 1]},
        "surface": {"alphas": [0, 1, 2], "max_new_tokens": 4},
        "attribute": {"top_k": 2, "methods": ["gradient", "bm25", "loss", "random"]},
        "judge": {"classifier": "keywords"},
        "patch": {
            "arms": ["after", "baseline", "random", "gradient"],
            "protocols": ["retrain"],
            "headline": "retrain",
            "size": 10,
        },
    }
    for section, value in changes.items():
        merged = isinstance(value, dict) and isinstance(values.get(section), dict)
        values[section] = {**values[section], **value} if merged else value
    return Study.model_validate(values)
