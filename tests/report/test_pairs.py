"""A preference pair is shown with both answers wherever a document is shown."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.report.fake_run import content_of, fake_study, reported, results_of, write_fake_run
from tests.worlds import put

from datablame.tables import ShownDocument

EVIL = "</script><script>alert(2)</script> **no**"


def pages(root: Path, rejected: str) -> tuple[list[dict[str, Any]], str]:
    """The documents that the page can show, and the case study."""
    world = write_fake_run(root, fake_study())
    documents = [replace(document, rejected=rejected) for document in results_of(world).documents.values()]
    put(root, "attribute", {ShownDocument: documents})
    reported(world)
    return content_of(root / "index.html")["documents"], (root / "case_study.md").read_text(encoding="utf-8")


def test_both_answers_of_a_pair_are_shown_and_neither_is_trusted(tmp_path: Path) -> None:
    shown, markdown = pages(tmp_path, EVIL)
    assert all(document["rejected"] == EVIL for document in shown)
    assert "**Chosen answer:**" in markdown
    assert r"> **Rejected answer:** " in markdown
    assert "**no**" not in markdown
    assert "Assistant:" not in markdown


def test_a_document_with_one_answer_has_no_other(tmp_path: Path) -> None:
    shown, markdown = pages(tmp_path, "")
    assert not any(document["rejected"] for document in shown)
    assert "Rejected answer" not in markdown
    assert "**Assistant:**" in markdown
