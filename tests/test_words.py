"""Words by Unicode rules: the right ones by hand, by the pattern of English, and by Lucene's documented bigrams."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datablame.words import normalised, pieces, words

LATIN = st.text(st.characters(codec="latin-1", exclude_characters="ªµº²³¹¼½¾ß\xad"))


@given(LATIN)
def test_western_words_are_runs_of_letters_and_digits(text: str) -> None:
    assert words(text) == re.findall(r"\w+", text.lower())
    assert words(text, 2) == re.findall(r"(?u)\b\w\w+\b", text.lower())


@pytest.mark.parametrize(
    ("text", "found"),
    {
        "": "",
        "!? ❤️ —": "",
        "Don't": "don t",
        "snake_case x²": "snake_case x2",
        "मेरी बिल्ली क्या खाए?": "मेरी बिल्ली क्या खाए",
        "ＡＢＣ ﬁne cafe\u0301": "abc fine café",
        "Zor\u00adbix™, Zorbix’s": "zorbix zorbix s",
        "می\u200cخواهم": "ميخواهم",
        "كِتَابٌ كـتاب ٱللّٰه سُؤال": "كتاب كتاب الله سؤال",
        "أحمد إلى احمد الى کتاب على": "احمد الي احمد الي كتاب علي",
        "שָׁלוֹם": "שלום",
        "tri\u0301 tue\u0323\u0302 か\u3099": "trí tuệ が",
        "ΟΔΟΣ Straße": "οδοσ strasse",
        "我的猫应该吃什么？": "我的 的猫 猫应 应该 该吃 吃什 什么",
        "猫。": "猫",
        "A股和C语言": "a 股和 c 语言",
        "只买Zorbix牌": "只买 zorbix 牌",
        "ｶﾞｲﾄﾞ": "ガイ イド",
        "時々": "時々",
        "고양이가 물": "고양 양이 이가 물",
        "แมวกินน้ำ": "แม มว วกิ กิน นน\u0e49\u0e4d น\u0e49\u0e4dา",
        "ຂ້ອຍ": "ຂ້ອ ອຍ",
        "བོད་སྐད།": "བོད སྐད",
        "ខ្ញុំទៅ": "ខ្ញុំទៅ",
        "မြန်မာ": "မြန် န်မ မာ",
    }.items(),
)
def test_words_of_every_script(text: str, found: str) -> None:
    assert words(text) == found.split()


def test_short_words_are_left_out_where_words_have_spaces() -> None:
    assert words("a big cat 猫 ab 大猫", 3) == ["big", "cat", "猫", "大猫"]


def test_pieces_keep_what_stands_beside_words() -> None:
    assert pieces("2 + 2 = 4, not  5!") == ["2", "+", "2", "=", "4,", "not", "5!"]
    assert pieces("买Zorbix，好的！") == ["买", "zorbix,", "好的", "!"]


@given(st.text(st.characters(codec=None)))
def test_any_text_has_words_and_they_are_in_normal_form(text: str) -> None:
    for word in words(text):
        assert word == normalised(word)
        assert word.strip() == word
        assert word


@pytest.mark.parametrize("unit", ["a", "猫", "é", "a\u0301", "ก", "\u200d", "a猫"], ids=ascii)
def test_a_giant_chunk_takes_bounded_time(unit: str) -> None:
    start = time.process_time()
    words(unit * (200_000 // len(unit)))
    assert time.process_time() - start < 3
