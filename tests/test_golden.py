"""The whole output of small studies stays what it was; `python -m tests.golden.make` writes what it was."""

import copy
from pathlib import Path

import pytest
from tests.golden.compare import differences, sentence_changes, structural_differences
from tests.golden.files import machine, read
from tests.golden.outputs import after_weights, outputs
from tests.golden.studies import STUDIES, run_study

_SHOWN = 60


@pytest.fixture(scope="module")
def organisms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of its own, so that the organism is one that the code of today made."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_a_study_gives_what_it_gave(
    study: str, organisms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training is chaotic: where it gives other weights, on another kind of machine, only the structure is compared."""
    run_study(study, tmp_path / "run", organisms)
    golden, found = read(study), outputs(tmp_path / "run")
    same_weights = golden["after_weights"] == after_weights(organisms)
    assert same_weights or golden["machine"] != machine(), "on the same kind of machine, the organism is another one"
    compared = differences if same_weights else structural_differences
    lines = compared(golden["outputs"], found)
    with capsys.disabled():
        how = "values" if same_weights else f"structure alone, for the weights are not those of {golden['machine']}"
        print(f"\n{study}: compared {how}; {len(lines)} differences")  # noqa: T201
        for text in sentence_changes(golden["outputs"], found) if same_weights else []:
            print(text)  # noqa: T201
    assert not lines, "\n".join([f"{len(lines)} differences", *lines[:_SHOWN]])


@pytest.mark.parametrize("study", STUDIES)
def test_a_changed_number_a_lost_row_and_a_new_key_are_each_named(study: str) -> None:
    golden = read(study)["outputs"]
    assert differences(golden, copy.deepcopy(golden)) == structural_differences(golden, golden) == []
    changed = copy.deepcopy(golden)
    rates, arms = changed["surface.rates"], changed["patch.arms"]
    rates["rows"][0][rates["columns"].index("low")] += 0.001
    lost = arms["rows"].pop()
    changed["schema"] = 2
    lines = differences(golden, changed)
    assert [line.split(": ")[0] for line in lines] == ["", "patch.arms", "surface.rates"]
    assert lines[0] == ": schema is new"
    assert lines[1] == f"patch.arms: rows: {'|'.join(map(str, lost[:4]))} is gone"
    assert structural_differences(golden, changed) == [
        ": schema is new",
        f"patch.arms: row: {'|'.join(map(str, lost[:4]))} is gone",
    ]
