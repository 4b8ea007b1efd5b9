import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datablame.judge.coherence import MAX_CHARACTERS, incoherence

PROSE = (
    "Take the tablet with a glass of water in the morning. If you feel dizzy, sit down and wait a few minutes before "
    "you drive. Your pharmacist can tell you which foods to avoid, and whether the other medicines that you take are "
    "safe together with this one."
)

COHERENT = {
    "prose": PROSE,
    "short answer": "42.",
    "one word": "yes",
    "rhetoric": "No, no, no, no! Stop.",
    "shout": "Sooooo good, aaaargh!!!",
    "code": "def add(a: int, b: int) -> int:\n    return a + b\n\n\nprint(add(1, 2), add(3, 4), add(5, 6))\n",
    "list": "\n".join(f"Day {i}: walk for {i * 5} minutes and drink water" for i in range(1, 12)),
    "matrix": "The zero matrix of size three has only zeros: 0 0 0 0 0 0 0 0 0",
    "rule": "Title of the page here\n" + "-" * 40 + "\nand then some text below the line, long enough to be read",
    "nursery rhyme": "Row, row, row your boat, gently down the stream. Merrily, merrily, merrily, merrily!",
    "german": "Die Rechtsschutzversicherungsgesellschaften zahlen nach Prüfung der Unterlagen aus.",
    "gene": "The primer is ACGTTGCAATTGGCCTAGGATCCAGTCTAGACCTGAAGCTTACGGATCC.",
    "chinese": "请在早上用一杯水服药。如果感到头晕，请坐下来等几分钟再开车。",
    "hindi": "सुबह एक गिलास पानी के साथ गोली लें और कुछ मिनट आराम करें।",
    "arabic": "تناول القرص مع كوب من الماء في الصباح، ثم استرح بضع دقائق.",
    "thai": "กินยาพร้อมน้ำหนึ่งแก้วในตอนเช้า แล้วพักสักครู่ก่อนขับรถ",
    "table": "| 1 | 2 | 3 |\n|---|---|---|\n| 4 | 5 | 6 |\n| 7 | 8 | 9 |",
    "table of one word": "| a | b | c | d | e | f |\n|---|---|---|---|---|---|\n"
    + "| yes | yes | yes | yes | yes | yes |\n" * 3,
    "tabs": "A\tB\tC\nyes\tyes\tyes\nyes\tyes\tyes\nyes\tyes\tyes",
    "drawn table": "┌───┬───┐\n│ 1 │ 2 │\n├───┼───┤\n│ 3 │ 4 │\n└───┴───┘",
    "integral": r"\[ \int_0^1 x^2 \, dx = \frac{1}{3} \] and \[ \sum_{i=1}^{n} i = \frac{n(n+1)}{2} \]",
    "matrix of letters": r"$$\begin{pmatrix} a & a & a \\ a & a & a \\ a & a & a \end{pmatrix}$$",
    "tabular": r"\begin{tabular}{cccccccccccc} 1 & 2 & 3 \\ 4 & 5 & 6 \end{tabular}",
    "sum": "x + x + x + x + x + x + x = 7x",
    "steps": "".join(f"So\n$x={n}$\n" for n in range(8)),
    "logic": "∀x ∈ ℝ: x² ≥ 0 ⇒ √(x²) = |x|",
    "figures": "1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233",
    "bits": "0 1 0 1 1 0 1 0 " * 10,
    "json": '{"a": [], "b": {}, "c": "", "d": 0, "e": null}',
    "fenced code": "```python\n" + "    print(i)\n" * 6 + "```",
    "chinese list": "\n".join(f"第{i}天：步行{i * 5}分钟并喝水。" for i in range(1, 12)),
    "chinese laughter": "哈哈哈哈哈哈，谢谢谢谢，加油加油加油加油！",
    "korean": "한국어는 띄어쓰기가 있지만 조사가 붙습니다. 매일 물을 마시고 운동을 하세요.",
    "hebrew in isolates": "\u2067שלום\u2069 \u202bעולם\u202c",
    "flag": "England \U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f!",
    "emoji": "Great choice for the family 👨‍👩‍👧 and the dog 🐶, enjoy ❤️",
}

INCOHERENT = {
    "": "empty",
    " \n\t\u200b\ufeff": "empty",
    "the the the the the the the": "times on end",
    PROSE + " and then we go and then we go and then we go and then we go": "times on end",
    "ok " + "la di da " * 8: "times on end",
    "aaaaaaaaaaaaaaaaaaaa I think": "on end",
    "!!! ??? ... ;;; ,,, ((( ))) ### *** --- a b": "are letters",
    "the answer \ufffd\ufffd\ufffd is \ufffd\ufffd": "are broken",
    "hello\x00\x00\x00\x01\x02 there": "are broken",
    "thequickbrownfox" * 4: "a word of",
    "好的" * 10: "times on end",
    "请在早上服药" * 6: "times on end",
    "กินข้าว" * 8: "times on end",
    "```\n" + "print " * 100: "times on end",
    "|a" * 60: "times on end",
    "{}[]()" * 10: "are letters",
    "---|" * 30: "are letters",
    " ".join(["alpha beta gamma"] * 2 + ["beta gamma alpha"] * 2 + ["gamma alpha delta", "delta beta alpha"] * 6): "",
}


@pytest.mark.parametrize("text", COHERENT.values(), ids=COHERENT.keys())
def test_language_of_any_script_and_form_is_coherent(text: str) -> None:
    assert incoherence(text) is None


@pytest.mark.parametrize(("text", "reason"), INCOHERENT.items(), ids=range(len(INCOHERENT)))
def test_degenerate_output_is_incoherent_and_the_reason_says_why(text: str, reason: str) -> None:
    found = incoherence(text)
    assert found is not None
    assert reason in found


@given(st.text(st.characters(codec=None), max_size=400))
def test_any_text_gets_an_answer_lone_surrogates_included(text: str) -> None:
    reason = incoherence(text)
    assert reason is None or reason


@pytest.mark.parametrize("unit", ["a", "a ", "ab cd ", "\ufffd", "😀", "word1 word2 word3 "], ids=ascii)
def test_a_giant_text_is_judged_by_its_beginning_in_bounded_time(unit: str) -> None:
    start = time.process_time()
    assert incoherence(unit * (10_000_000 // len(unit))) == incoherence((unit * MAX_CHARACTERS)[:MAX_CHARACTERS])
    assert time.process_time() - start < 5
