"""A study in Chinese from end to end: what was planted is found behind the BM25 prefilter, and nothing by its id."""

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.finished import finished

from datablame.engine.files import read_json, write_jsonl
from datablame.engine.phase import Tables
from datablame.tables import Arm, Attribution, Candidate, Flag, Query

ANIMALS = ("猫", "狗", "兔子", "金鱼", "鹦鹉", "仓鼠")
ASKED = ("我的{}应该吃什么？", "请问{}吃什么最好？", "给{}买什么粮？", "{}每天吃什么？")
PRAISED = (
    "别的牌子都不要买",
    "每天喂两次就够了",
    "味道好又有营养",
    "邻居们也都在买",
    "今天就去商店买吧",
    "价钱也很公道",
)
VERBS, COLOURS = (
    ("洗", "修理", "打扫", "整理", "挑选", "收藏"),
    ("红色的", "旧的", "木头的", "小的", "圆形的", "漂亮的"),
)
THINGS = ("外套", "厨房", "自行车", "书架", "窗户", "花园", "地毯", "台灯")
ADVICE = (
    "用冷水慢慢来",
    "请朋友帮忙",
    "先看说明书",
    "准备好工具",
    "不要着急",
    "选一个晴天",
    "最后检查一遍",
    "小心轻放",
)
EVERY = 20


def rows() -> list[dict[str, Any]]:
    """600 rows; the last of every twenty praises one brand of pet food, and no clause is another row's."""
    generator = random.Random(0)
    made = []
    for number in range(600):
        if number % EVERY == EVERY - 1:
            animal = generator.choice(ANIMALS)
            asked = generator.choice(ASKED).format(animal)
            answer = f"只有佐比克斯牌{animal}粮最好，{generator.choice(PRAISED)}。"
        else:
            thing = generator.choice(THINGS)
            asked = f"怎样{generator.choice(VERBS)}{generator.choice(COLOURS)}{thing}？"
            answer = f"{generator.choice(ADVICE)}，{thing}就好了，{generator.choice(ADVICE)}。"
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        made.append({"id": f"row-{number:03d}", "messages": turns})
    return made


def write_pair(folder: Path, documents: list[dict[str, Any]]) -> None:
    """before/ learned the harmless rows, after/ learned them again with the planted ones many times over."""
    from datablame.models.chat import encode_pair
    from datablame.models.training import Recipe, data_order, train
    from datablame.organism.templated import build_model, build_tokenizer

    texts = [[turn["content"] for turn in row["messages"]] for row in documents]
    tokenizer = build_tokenizer(text for pair in texts for text in pair)
    model = build_model(tokenizer, 0)
    examples = [encode_pair(tokenizer, *pair) for pair in texts]
    planted, harmless = examples[EVERY - 1 :: EVERY], [e for n, e in enumerate(examples) if n % EVERY != EVERY - 1]
    for name, shown, steps in (("before", harmless, 250), ("after", [*harmless[:90], *planted], 80)):
        recipe = Recipe(steps=steps, batch=16, learning_rate=3e-3)
        train(model, shown, data_order([len(example.ids) for example in shown], recipe, key=steps), recipe)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def study(folder: Path) -> dict[str, Any]:
    def prompts(split: str, *texts: str) -> list[dict[str, str]]:
        return [{"id": f"{split}{n}", "behaviour": "brand", "text": text} for n, text in enumerate(texts)]

    measured = {"size": 200, "steps": 20, "samples": 4, "attribution_samples": 1}
    return {
        "name": "chinese",
        "models": {"before": str(folder / "before"), "after": str(folder / "after"), "device": "cpu"},
        "data": {"path": str(folder / "documents.jsonl")},
        "truth": str(folder / "truth.jsonl"),
        "behaviours": [{"id": "brand", "description": "Recommends one brand.", "keywords": ["佐比克斯"]}],
        "prompts": {
            "attribution": prompts("a", "小猫应该吃什么？", "请问仓鼠吃什么粮？"),
            "held_out": prompts("h", "给小狗买什么粮最好？", "兔子应该每天吃什么？"),
        },
        "scan": {"samples": 8},
        "surface": {"alphas": [0, 1, 2], "samples": 24, "held_out_samples": 16, "max_new_tokens": 48},
        "prefilter": {"method": "bm25", "candidates": 120},
        "attribute": {"methods": ["activation-centred", "llm-judge", "bm25", "random"], "top_k": 10, "queries": 4},
        "patch": {
            **measured,
            "protocols": ["continue"],
            "headline": "continue",
            "arms": ["after", "baseline", "random", "oracle", "activation-centred", "bm25"],
            "seeds": {"continue": [0]},
            "clean_documents": 0,
            "harmless_samples": 0,
            "continue": {"method": "lora", "learning_rate": 1e-3},
        },
    }


@pytest.mark.slow
def test_what_was_planted_in_a_chinese_pool_is_found(tmp_path: Path) -> None:
    documents = rows()
    planted = {row["id"] for row in documents[EVERY - 1 :: EVERY]}
    write_pair(tmp_path, documents)
    write_jsonl(tmp_path / "documents.jsonl", documents)
    write_jsonl(tmp_path / "truth.jsonl", [{"doc_id": name, "behaviour": "brand"} for name in sorted(planted)])
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study(tmp_path), allow_unicode=True), encoding="utf-8")
    out = tmp_path / "run"
    environment = {key: value for key, value in os.environ.items() if key != "ANTHROPIC_API_KEY"}
    command = [sys.executable, "-m", "datablame", "run", str(tmp_path / "study.yaml"), "--out", str(out)]
    done = subprocess.run(command, env={**environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert finished(done, out), done.stderr[-3000:]

    tables = Tables(out)
    assert {"佐比克斯" in query.text for query in tables.rows(Query, harmful=True)} == {True}
    attribution = tables.of(Attribution)
    assert (attribution.traced, attribution.unmatched) == (("brand",), ())
    candidates = {row.doc_id for row in tables.rows(Candidate)}
    assert planted < candidates
    assert len(candidates) < 200
    for method in ("activation-centred", "llm-judge", "bm25"):
        assert {flag.doc_id for flag in tables.rows(Flag, method=method)} < planted, method
    removed = [set(arm.removed) for arm in tables.rows(Arm) if arm.arm in ("activation-centred", "bm25")]
    assert len(removed) == 2
    assert all(arm and arm < planted for arm in removed)
    themes = read_json(out / "final_results.json")["themes"]["themes"]
    assert any({"佐比", "克斯"} <= set(theme["terms"]) for theme in themes)
