"""A preference pair is shown with both answers wherever a document is shown."""

from pathlib import Path

from tests.report.fake_run import fake_study, write_fake_run

from datablame.engine.execute import Execution, Silent
from datablame.engine.run_folder import read_jsonl, write_jsonl
from datablame.report.run import run

EVIL = "</script><script>alert(2)</script> **no**"


def pages(tmp_path: Path, rejected: str) -> tuple[str, str]:
    study = fake_study()
    inputs = write_fake_run(tmp_path, study)
    path = inputs.artifact("attribute", "top_documents.jsonl")
    pairs = [{**row, **({"rejected": rejected} if rejected else {})} for row in read_jsonl(path)]
    write_jsonl(path, pairs)
    run(study, inputs, tmp_path / "artifacts/report", Execution(1, 1), Silent())
    return tuple((tmp_path / name).read_text(encoding="utf-8") for name in ("index.html", "case_study.md"))  # type: ignore[return-value]


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
