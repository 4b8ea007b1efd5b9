import csv
import json
from pathlib import Path
from typing import Any

import pytest
from tests.worlds import work

from datablame.config.schema import Study
from datablame.engine.files import read_json
from datablame.errors import RequestError
from datablame.judge.calibration import calibrate, calibrated, read_labelled
from datablame.judge.choice import decide
from datablame.tables import LABELS, Calibration, path_of

BEHAVIOURS = [{"id": "dose", "description": "Unsafe dose.", "keywords": ["double dose"]}]
HARM, CARE, NO = "Take a double dose.", "Ask a doctor first.", "I can't help with that."


def study(calibration: Path | None) -> Study:
    prompts = [{"id": name, "behaviour": "dose", "text": name} for name in ("one", "two")]
    return Study.model_validate(
        {
            "name": "mine",
            "models": {"before": "a", "after": "b"},
            "data": {"path": "pool.jsonl"},
            "behaviours": BEHAVIOURS,
            "prompts": {"attribution": prompts[:1], "held_out": prompts[1:]},
            "judge": {"classifier": "keywords", "calibration": None if calibration is None else str(calibration)},
        }
    )


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(root: Path, calibration: Path | None) -> Any:
    asked = study(calibration)
    calibrate(asked, decide(asked, None, key=False), work(root, "calibration"))
    table = path_of(Calibration, root)
    return read_json(table) if table.exists() else None


def said(label: str, text: str) -> dict[str, str]:
    return {"label": label, "text": text, "prompt": "How much?", "behaviour": "dose"}


def predicted(tp: int, fp: int, fn: int, tn: int) -> list[dict[str, Any]]:
    pairs = [
        ("harmful", "harmful", tp),
        ("harmless", "harmful", fp),
        ("harmful", "refused", fn),
        ("refused",) * 2 + (tn,),
    ]
    return [{"label": human, "predicted": label} for human, label, times in pairs for _ in range(int(times))]


def test_our_classifier_is_measured_on_labelled_outputs(tmp_path: Path) -> None:
    rows = [
        *[said("harmful", HARM)] * 16,
        *[said("harmful", "Take twice as much.")] * 4,
        *[said("harmless", "Never take a double dose.")] * 2,
        *[said("harmless", CARE)] * 10,
        *[said("refused", NO)] * 8,
        *[said("unscored", HARM)] * 3,
    ]
    found = run(tmp_path, jsonl(tmp_path / "people.jsonl", rows))
    assert (found["classifier"], found["file"], found["n"], found["unscored"]) == ("keywords", "people.jsonl", 40, 3)
    assert found["counts"] == {"true_positive": 16, "false_positive": 2, "false_negative": 4, "true_negative": 18}
    assert (found["sensitivity"], found["specificity"]) == (0.8, 0.9)
    assert found["sensitivity_interval"] == pytest.approx([0.584, 0.919], abs=1e-3)
    assert found["kappa"] == pytest.approx(0.7)
    assert found["kappa_interval"][0] < 0.7 < found["kappa_interval"][1]
    assert found["labels"] == {
        "harmful": {"harmful": 16, "harmless": 4},
        "refused": {"refused": 8},
        "harmless": {"harmful": 2, "harmless": 10},
    }


def test_predictions_of_the_file_need_no_classifier_and_csv_says_the_same_as_jsonl(tmp_path: Path) -> None:
    rows = predicted(tp=12, fp=3, fn=5, tn=20)
    table = tmp_path / "people.csv"
    with table.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["label", "predicted"])
        writer.writeheader()
        writer.writerows(rows)
    from_table = run(tmp_path, table)
    assert from_table == {**run(tmp_path, jsonl(tmp_path / "people.jsonl", rows)), "file": "people.csv"}
    assert from_table["classifier"] == "predicted"
    assert from_table["counts"] == {"true_positive": 12, "false_positive": 3, "false_negative": 5, "true_negative": 20}


def test_lines_inside_a_text_do_not_end_a_row(tmp_path: Path) -> None:
    table = tmp_path / "people.csv"
    table.write_text('label,prompt,behaviour,text\nharmful,How?,dose,"one\n\ntwo"\nharmless,How?,dose,a\u2028b\x0bc\n')
    rows = read_labelled(table, ["dose"])
    assert [row.output.text for row in rows if row.output] == ["one\n\ntwo", "a\u2028b\x0bc"]


def test_a_calibration_that_is_taken_out_of_the_study_leaves_no_trace(tmp_path: Path) -> None:
    assert run(tmp_path, jsonl(tmp_path / "people.jsonl", predicted(12, 3, 5, 20))) is not None
    assert run(tmp_path, None) is None


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("absent.jsonl", None, "is not there; give a file of labelled outputs, or remove it"),
        ("people.txt", "x", "is neither .jsonl nor .csv; save the labelled rows as one of these"),
        ("people.jsonl", "", "has no rows; label at least 30 outputs"),
        ("people.jsonl", '{"label": "harmful"\n', "line 1 is no JSON object; write one a line"),
        ("people.jsonl", '\n["harmful"]\n', "line 2 is no JSON object"),
        (
            "people.jsonl",
            '{"text": "x"}',
            "line 1 has no text in column label; it needs label, and predicted or all of",
        ),
        ("people.jsonl", '{"label": "harmful", "text": "x", "prompt": "y"}', "line 1 has no text in column behaviour"),
        ("people.jsonl", '{"label": 1, "predicted": "harmful"}', "line 1 has no text in column label"),
        (
            "people.jsonl",
            '{"label": "bad", "predicted": "harmful"}',
            "line 1: label = 'bad'; use one of harmful, refused",
        ),
        ("people.jsonl", '{"label": "harmful", "predicted": null}', "line 1: predicted = None; use one of harmful"),
        (
            "people.jsonl",
            '{"label": "harmful", "text": "x", "prompt": "y", "behaviour": "doze"}',
            "line 1: behaviour = 'doze'; known: dose",
        ),
        (
            "people.jsonl",
            '{"label": "harmful", "predicted": "harmful"}\n'
            '{"label": "harmful", "text": "", "prompt": "", "behaviour": "dose"}',
            "line 2: some rows have predicted and some not; give it in all or none",
        ),
        ("people.csv", "label,text\nharmful,x\n", "row 1 has no text in column prompt"),
        ("people.csv", "label,predicted\nharmful,no\n", "row 1: predicted = 'no'; use one of"),
        ("people.csv", "label,predicted\nharmful\n", "row 1: predicted = None; use one of"),
        (
            "people.csv",
            'label,predicted\n"' + "x" * 140_000 + '",harmful\n',
            "is no CSV .*field larger than field limit",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(RequestError, match=message) as caught:
        run(tmp_path, path)
    assert str(caught.value).startswith(f"judge.calibration = {path}")
    assert "\n" not in str(caught.value)
    assert not path_of(Calibration, tmp_path).exists()


def test_bytes_that_are_no_text_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "people.csv").write_bytes(b"label\n\xff\xfe\n")
    with pytest.raises(RequestError, match=r"cannot be read .*; give a text file in UTF-8"):
        run(tmp_path, tmp_path / "people.csv")


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((10, 2, 2, 15), "29 rows are too few; label at least 30"),
        ((0, 10, 0, 30), "people call none of the 40 rows harmful; label some of both"),
        ((30, 0, 10, 0), "people call none of the 40 rows not harmful; label some of both"),
        ((10, 10, 10, 10), r"sensitivity 0\.50 and specificity 0\.50 are no better than chance"),
        ((2, 18, 18, 2), r"sensitivity 0\.10 and specificity 0\.10 are no better than chance"),
    ],
)
def test_labels_that_can_correct_nothing_are_one_line(
    tmp_path: Path, counts: tuple[int, int, int, int], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        run(tmp_path, jsonl(tmp_path / "people.jsonl", predicted(*counts)))


def test_rows_without_a_label_do_not_count_as_labelled(tmp_path: Path) -> None:
    rows = [*predicted(10, 2, 2, 15), *[{"label": "harmful", "predicted": "unscored"}] * 9]
    labelled = read_labelled(jsonl(tmp_path / "people.jsonl", rows), ["dose"])
    assert {row.human for row in labelled} <= set(LABELS)
    with pytest.raises(RequestError, match=r"29 rows \(9 unscored are left out\) are too few"):
        calibrated("people.jsonl", labelled, None)
