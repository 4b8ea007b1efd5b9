"""A preference pair is shown with both answers wherever a document is shown."""

from dataclasses import replace
from pathlib import Path

from tests.report.fake_run import fake_study, reported, results_of, write_fake_run
from tests.worlds import put

from datablame.tables import ShownDocument

EVIL = "</script><script>alert(2)</script> **no**"


def pages(root: Path, rejected: str) -> tuple[str, str]:
    world = write_fake_run(root, fake_study())
    documents = [replace(document, rejected=rejected) for document in results_of(world).documents.values()]
    put(root, "attribute", {ShownDocument: documents})
    reported(world)
    html, markdown = ((root / name).read_text(encoding="utf-8") for name in ("index.html", "case_study.md"))
    return html, markdown


def test_both_answers_of_a_pair_are_shown_and_neither_is_trusted(tmp_path: Path) -> None:
    html, markdown = pages(tmp_path, EVIL)
    assert "<b>Chosen answer:</b>" in html
    assert "<b>Rejected answer:</b> &lt;/script&gt;&lt;script&gt;alert(2)" in html
    assert "alert(2)</script>" not in html
    assert "**Chosen answer:**" in markdown
    assert r"> **Rejected answer:** " in markdown
    assert "**no**" not in markdown
    assert "Assistant:" not in html + markdown


def test_a_document_with_one_answer_has_no_other(tmp_path: Path) -> None:
    html, markdown = pages(tmp_path, "")
    assert "Rejected answer" not in html + markdown
    assert "<b>Assistant:</b>" in html
    assert "**Assistant:**" in markdown
