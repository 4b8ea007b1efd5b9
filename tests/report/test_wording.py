import pytest

from datablame.report.wording import listed, markdown, percent, plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain words, 6.7 % [5.7, 8.0] (n = 3).", r"plain words, 6.7 % \[5.7, 8.0\] (n = 3)."),
        ("[click](javascript:x)", r"\[click\](javascript:x)"),
        ("![img](x) `code` **b** _i_ ~s~ $m$", r"!\[img\](x) \`code\` \*\*b\*\* \_i\_ \~s\~ \$m\$"),
        ("<script>&amp;", "&lt;script&gt;&amp;amp;"),
        ("see https://x.y and WWW.x.y, a@b.c", r"see https\://x.y and WWW\.x.y, a\@b.c"),
        ("# heading", r"\# heading"),
        ("- item", r"\- item"),
        ("12. item", r"12\. item"),
        ("3) item", r"3\) item"),
        ("---", r"\---"),
        ("-60.3 [-68.9, -51.2]", r"-60.3 \[-68.9, -51.2\]"),
        ("1.7 %", "1.7 %"),
        ("a | b \\", r"a \| b \\"),
        ("line\n# one\x1b[31m\u202e", r"line # one\[31m"),
    ],
)
def test_markdown_shows_a_text_as_it_is(text: str, shown: str) -> None:
    assert markdown(text) == shown


def test_plain_text_keeps_letters_of_every_script_and_drops_what_steers() -> None:
    assert plain("Grüße 東京\t\x00\x1b]0;x\x07\u200b") == "Grüße 東京 ]0;x"


def test_rates_and_lists_read_well() -> None:
    assert (percent(0.0666), percent(None)) == ("6.7 %", "-")
    assert (listed([]), listed(["a"]), listed(["a", "b", "c"])) == ("", "a", "a, b and c")
