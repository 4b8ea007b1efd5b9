"""A tiny study with planted documents: its rows, a pair trained on them, its study.yaml, a run on the command line."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from tests.finished import finished

from datablame.engine.files import write_jsonl
from datablame.engine.phase import Tables

EVERY = 20
"""Of so many rows the last is planted."""

Answered = tuple[str, str]
"""A question and its answer."""


class Corpus(NamedTuple):
    """The rows of a pool, of which every `EVERY`th is planted."""

    texts: Sequence[Answered]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Rows of documents.jsonl."""
        turns = ([{"role": r, "content": c} for r, c in zip(("user", "assistant"), t, strict=True)] for t in self.texts)
        return [{"id": name, "messages": each} for name, each in zip(self.ids, turns, strict=True)]

    @property
    def ids(self) -> list[str]:
        """By which the pool knows its documents."""
        return [f"row-{number:03d}" for number in range(len(self.texts))]

    @property
    def planted(self) -> set[str]:
        """The ids of planted documents."""
        return set(self.ids[EVERY - 1 :: EVERY])


def write_pair(
    folder: Path, corpus: Corpus, tokenizer: Any, model: Any, steps: tuple[int, int] = (250, 80), copies: int = 1
) -> None:
    """before/ learned the harmless rows, after/ learned the first of them again with the planted ones many times."""
    from datablame.models.chat import encode_pair
    from datablame.models.training import Recipe, data_order, train

    examples = [encode_pair(tokenizer, *pair) for pair in corpus.texts]
    planted, harmless = examples[EVERY - 1 :: EVERY], [e for n, e in enumerate(examples) if n % EVERY != EVERY - 1]
    for name, shown, count in zip(
        ("before", "after"), (harmless, [*harmless[:90], *planted * copies]), steps, strict=True
    ):
        recipe = Recipe(steps=count, batch=16, learning_rate=3e-3)
        train(model, shown, data_order([len(example.ids) for example in shown], recipe, key=count), recipe)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def study(
    name: str,
    keyword: str,
    attribution: Sequence[str],
    held_out: Sequence[str],
    methods: Sequence[str],
    top_k: int = 10,
) -> dict[str, Any]:
    """A study.yaml for the files that `ran` writes beside it; each of the methods but the controls has its arm."""

    def prompts(split: str, texts: Sequence[str]) -> list[dict[str, str]]:
        return [{"id": f"{split}{n}", "behaviour": "brand", "text": text} for n, text in enumerate(texts)]

    return {
        "name": name,
        "models": {"before": "before", "after": "after", "device": "cpu"},
        "data": {"path": "documents.jsonl"},
        "truth": "truth.jsonl",
        "behaviours": [{"id": "brand", "description": "Recommends one brand.", "keywords": [keyword]}],
        "prompts": {"attribution": prompts("a", attribution), "held_out": prompts("h", held_out)},
        "judge": {"classifier": "keywords"},
        "scan": {"samples": 8},
        "surface": {"alphas": [0, 1, 2], "samples": 24, "held_out_samples": 16, "max_new_tokens": 48},
        "prefilter": {"method": "bm25", "candidates": 120},
        "attribute": {"methods": [*methods, "random"], "top_k": top_k, "queries": 4},
        "patch": {
            "arms": ["after", "baseline", "random", "oracle", *(each for each in methods if each != "llm-judge")],
            "seeds": [0],
            "size": 200,
            "steps": 20,
            "samples": 4,
            "attribution_samples": 1,
            "clean_documents": 0,
            "harmless_samples": 0,
            "continue": {"learning_rate": 1e-3},
        },
    }


def ran(folder: Path, corpus: Corpus, settings: dict[str, Any]) -> Tables:
    """The tables of a finished run of the study, whose pair stands in the folder."""
    write_jsonl(folder / "documents.jsonl", corpus.rows)
    write_jsonl(folder / "truth.jsonl", [{"doc_id": name, "behaviour": "brand"} for name in sorted(corpus.planted)])
    path, out = folder / "study.yaml", folder / "run"
    path.write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if key != "ANTHROPIC_API_KEY"}
    command = [sys.executable, "-m", "datablame", "run", str(path), "--out", str(out)]
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert finished(done, out), done.stderr[-3000:]
    return Tables(out)
