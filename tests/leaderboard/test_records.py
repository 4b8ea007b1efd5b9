"""Records stand for runs: only for the very study that they are of, from any machine, and never when torn."""

import math
from pathlib import Path

import pytest

from datablame.config.schema import Study
from datablame.engine.execute import Execution, Silent
from datablame.errors import RequestError
from datablame.leaderboard import gather, run
from datablame.leaderboard.records import FOLDER, Predictions, Record, key_of, read, read_predictions, write
from datablame.leaderboard.results import Entry, Result
from datablame.leaderboard.studies import Organism, family, studies_of
from datablame.stats.intervals import Interval
from datablame.tables import look_of

METHODS = ["bm25", "gradient-dpo", "random"]
ONE = Execution(1, 1)


def studies(*given: str, methods: list[str] = METHODS) -> dict[Organism, Study]:
    return studies_of("leaderboard", family(["few", "pairs"], ["7"]), methods, {}, given)


def record(folder: Path, organism: Organism, study: Study, halved_at: float = 15.0) -> Record:
    results = [
        Result(*organism, name, drop=0.5, halved_at=halved_at, most_removed=20) for name in study.attribute.methods
    ]
    made = Record(
        key_of(study), [Entry(row.method, "as run", False, "none", look_of("x"), False) for row in results], results
    )
    write(folder, organism, made)
    return made


def test_what_is_recorded_is_read_back_and_run_no_more(tmp_path: Path) -> None:
    asked, out = studies(), tmp_path / "runs"
    made = {organism: record(tmp_path, organism, study, math.inf) for organism, study in asked.items()}
    assert read(tmp_path, asked) == made
    notes = list[str]()

    class Notes(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    board = run(asked, out, tmp_path, subsets=5, execution=ONE, progress=Notes())
    assert not out.exists()
    assert notes == [
        f"2 of 2 organisms are recorded in {tmp_path / FOLDER}",
        f"no LDS: no finished run of these organisms is below {out}",
    ]
    assert board.lds_of is None
    # Pairs have a gradient of the DPO loss, documents have none.
    rows = {(row.kind, row.method): row for row in board.results}
    assert sorted(rows) == sorted((kind, method) for kind in ("few", "pairs") for method in METHODS)
    assert rows["few", "gradient-dpo"] == Result("few", 7, "gradient-dpo", why="it cannot be had for this kind")
    assert rows["pairs", "gradient-dpo"] == made[Organism("pairs", 7)].results[1]
    assert {each.entry.name: each.halving and each.halving.censored for each in board.standings} == {
        "bm25": 2,
        "random": 2,
        "gradient-dpo": 1,
    }
    assert {each.entry.label for each in board.standings} == {"as run"}


def test_an_lds_is_read_back_for_its_study_and_its_subsets(tmp_path: Path) -> None:
    asked = studies()
    [first, second] = asked
    scores = {"bm25": (0.2, Interval(0.1, 0.3)), "random": None}
    for organism in asked:
        record(tmp_path, organism, asked[organism])
    write(tmp_path, second, Predictions(key_of(asked[second]), 50, scores))
    assert read_predictions(tmp_path, second, asked[second], 50) == scores
    assert read_predictions(tmp_path, second, asked[second], 49) is None
    assert read_predictions(tmp_path, first, asked[first], 50) is None
    board = gather(asked, tmp_path / "runs", tmp_path, {}, subsets=50)
    assert board.lds_of == second
    assert {each.entry.name: each.lds for each in board.standings} == {**scores, "gradient-dpo": None}
    assert gather(asked, tmp_path / "runs", tmp_path, {}, subsets=0).lds_of is None


@pytest.mark.parametrize("given", [("surface.samples=3",), ("organism.scale=0.5",), ("patch.k=[4,20]",)])
def test_a_record_of_another_study_does_not_count(tmp_path: Path, given: tuple[str, ...]) -> None:
    for organism, study in studies().items():
        record(tmp_path, organism, study)
    assert not read(tmp_path, studies(*given))
    assert not read(tmp_path, studies(methods=[*METHODS, "loss"]))
    with pytest.raises(RequestError, match="holds no finished study of this request"):
        gather(studies(*given), tmp_path / "runs", tmp_path, {}, subsets=0)


def test_scores_made_elsewhere_count_by_their_bytes(tmp_path: Path) -> None:
    def asked(folder: str, score: int) -> Study:
        path = tmp_path / folder / "few-7.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'{{"doc_id": "doc-00001", "score": {score}}}\n')
        scores = {"mine": f"{path.parent}/{{kind}}-{{seed}}.jsonl"}
        return studies_of("leaderboard", family(["few"], ["7"]), METHODS, scores, [])[Organism("few", 7)]

    assert key_of(asked("a", 1)) == key_of(asked("b", 1)) != key_of(asked("b", 2))


@pytest.mark.parametrize(("whole", "torn"), [("}\n", ""), ('"few"', "{}")])
def test_a_torn_record_is_refused_by_name(tmp_path: Path, whole: str, torn: str) -> None:
    asked = studies()
    for organism, study in asked.items():
        record(tmp_path, organism, study)
    path = tmp_path / FOLDER / "few-7.json"
    path.write_text(path.read_text().replace(whole, torn))
    with pytest.raises(RequestError, match=f"{path} .* delete it"):
        read(tmp_path, asked)


def test_a_record_of_another_version_is_written_anew(tmp_path: Path) -> None:
    asked = studies()
    path = tmp_path / FOLDER / "few-7.json"
    path.parent.mkdir()
    path.write_text('{"study": "another", "rows": []}')
    assert not read(tmp_path, asked)
