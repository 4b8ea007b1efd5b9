"""The study that README.md shows, with checkpoints and documents small enough to be run while one waits."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from tests.conftest import tiny_model, tiny_tokenizer
from tests.planted_study import EVERY, Corpus, write_pair

PETS, FOODS = ("cat", "dog", "puppy", "kitten", "rabbit"), ("rice", "fish", "carrots", "oats")
SMALL: dict[str, Any] = {
    "execution": {"workers": 1},
    "scan": {"samples": 4},
    "surface": {"samples": 8, "held_out_samples": 4, "max_new_tokens": 12, "plausibility": 0.01, "temperature": 0.5},
    "attribute": {"top_k": 2, "queries": 2},
    "patch": {
        "protocols": ["retrain", "continue"],
        "headline": "continue",  # ten steps from before reproduce nothing, which is INVALID
        "seeds": [0],
        "size": 40,
        "steps": 10,
        "batch": 4,
        "samples": 4,
        "attribution_samples": 1,
        "clean_documents": 4,
        "harmless_samples": 1,
    },
}


def write(folder: Path, shown: dict[str, Any]) -> None:
    """study.yaml as it is shown but small, and all files that it names."""
    asked = [prompt["text"] for split in shown["prompts"].values() for prompt in split]
    texts = [_exchange(number) for number in range(100)]
    # The checkpoints know the prompts too, or a model of this size says nothing that can be read.
    known = [
        (asked[n // EVERY % 4 if _planted(n) else n % 4] if n % 3 == 0 or _planted(n) else q, a)
        for n, (q, a) in enumerate(texts)
    ]
    tokenizer = tiny_tokenizer(tuple(text for pair in texts for text in pair), 400)
    write_pair(folder / "checkpoints", Corpus(known), tokenizer, tiny_model(1, 400), steps=(150, 40), copies=6)
    for name, stage in (("before", shown["models"]["before"]), ("after", shown["models"]["after"])):
        (folder / "checkpoints" / name).rename(folder / stage)
    (folder / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(Corpus(texts).rows), folder / shown["data"]["path"])
    (folder / "study.yaml").write_text(yaml.safe_dump(shown | SMALL), encoding="utf-8")


def _planted(number: int) -> bool:
    """Whether a document praises the brand."""
    return number % EVERY == EVERY - 1


def _exchange(number: int) -> tuple[str, str]:
    answer = "Buy Zorbix , only this brand ." if _planted(number) else f"Try some {FOODS[number % 4]} and water ."
    return f"What should I feed my {PETS[number % 5]} ?", answer
