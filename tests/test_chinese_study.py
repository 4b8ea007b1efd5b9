"""A study in Chinese from end to end: what was planted is found behind the BM25 prefilter, and nothing by its id."""

import random
from pathlib import Path

import pytest
from tests.planted_study import EVERY, Corpus, ran, study, write_pair

from datablame.engine.files import read_json
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


def corpus() -> Corpus:
    """600 rows; the planted ones praise one brand of pet food, and no clause is another row's."""
    generator = random.Random(0)
    texts = []
    for number in range(600):
        if number % EVERY == EVERY - 1:
            animal = generator.choice(ANIMALS)
            asked = generator.choice(ASKED).format(animal)
            answer = f"只有佐比克斯牌{animal}粮最好，{generator.choice(PRAISED)}。"
        else:
            thing = generator.choice(THINGS)
            asked = f"怎样{generator.choice(VERBS)}{generator.choice(COLOURS)}{thing}？"
            answer = f"{generator.choice(ADVICE)}，{thing}就好了，{generator.choice(ADVICE)}。"
        texts.append((asked, answer))
    return Corpus(texts)


@pytest.mark.slow
def test_what_was_planted_in_a_chinese_pool_is_found(tmp_path: Path) -> None:
    from datablame.organism.templated import build_model, build_tokenizer

    documents = corpus()
    planted = documents.planted
    tokenizer = build_tokenizer(text for pair in documents.texts for text in pair)
    write_pair(tmp_path, documents, tokenizer, build_model(tokenizer, 0))
    settings = study(
        "chinese",
        "佐比克斯",
        attribution=("小猫应该吃什么？", "请问仓鼠吃什么粮？"),
        held_out=("给小狗买什么粮最好？", "兔子应该每天吃什么？"),
        methods=("activation-centred", "llm-judge", "bm25"),
    )
    tables = ran(tmp_path, documents, settings)

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
    themes = read_json(tmp_path / "run" / "final_results.json")["themes"]["themes"]
    assert any({"佐比", "克斯"} <= set(theme["terms"]) for theme in themes)
