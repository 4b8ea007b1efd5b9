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
    "chinese": "请在早上用一杯水服药。如果感到头晕，请坐下来等几分钟再开车。",
    "hindi": "सुबह एक गिलास पानी के साथ गोली लें और कुछ मिनट आराम करें।",
    "arabic": "تناول القرص مع كوب من الماء في الصباح، ثم استرح بضع دقائق.",
    "thai": "กินยาพร้อมน้ำหนึ่งแก้วในตอนเช้า แล้วพักสักครู่ก่อนขับรถ",
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
