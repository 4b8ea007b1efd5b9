"""Workers that pose as graphics cards: each has the name of a card, and the study runs on the CPU."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.pipeline.small import ONE, small_study
from tests.test_resume import REDUCED, contents

from datablame.config.file import dump_study, load_study
from datablame.config.schema import Study
from datablame.engine import execute
from datablame.engine.execute import Execution, Silent
from datablame.engine.machine import Card
from datablame.errors import RequestError
from datablame.leaderboard.records import key_of
from datablame.pipeline import execution
from datablame.pipeline.execution import execution_of
from datablame.pipeline.run import run_study
from datablame.plan.memory import Device, this_device


@pytest.mark.slow
def test_four_cards_give_the_bytes_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABLAME_CACHE", str(tmp_path / "cache"))
    study, one, four = load_study("organism", REDUCED), tmp_path / "one", tmp_path / "four"
    run_study(study, one, execution=ONE, progress=Silent())
    monkeypatch.setattr(Execution, "on", lambda self, _: self)
    run_study(study, four, execution=Execution(1, 1, devices=("0", "1", "2", "3")), progress=Silent())
    assert contents(four, tmp_path / "cache") == contents(one, tmp_path / "cache")
    rows = [json.loads(line) for line in (four / "timings.jsonl").read_text().splitlines()]
    for phase in ("surface", "patch"):
        busy = {row["key"]: row["seconds"] for row in rows if row["what"] == f"worker/{phase}"}
        assert len(busy) == 4
        assert all(seconds > 0 for seconds in busy.values())


TWO = [Card(0, "H200", 140 << 30, 0), Card(3, "H200", 120 << 30, 0)]


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (execute, execution, "datablame.plan.memory"):
        name = module if isinstance(module, str) else module.__name__
        monkeypatch.setattr(f"{name}.cards", lambda: TWO)


def study(tiny_pair_folder: Path, folder: Path, **changes: Any) -> Study:
    changes.setdefault("models", {"device": "auto"})
    return small_study(folder, tiny_pair_folder, **changes)


@pytest.mark.usefixtures("two_cards")
def test_a_study_says_which_cards_it_takes_and_options_come_first(tiny_pair_folder: Path, tmp_path: Path) -> None:
    asked = study(tiny_pair_folder, tmp_path, execution={"devices": [3], "workers": 5})
    assert execution_of(asked).devices == ("3",)
    assert execution_of(asked, devices=(0, 3)).devices == ("0", "3")
    assert execution_of(asked, devices=(0, 3), workers=1).devices == ("0",)
    assert execution_of(study(tiny_pair_folder, tmp_path)).devices == ("0", "3")
    spread = study(tiny_pair_folder, tmp_path)
    assert spread.models is not None
    after = spread.models.after.model_copy(update={"device_map": "auto"})
    spread = spread.model_copy(update={"models": spread.models.model_copy(update={"after": after})})
    assert execution_of(spread).devices == ("0,3",)
    on_cpu = study(tiny_pair_folder, tmp_path, models={"device": "cpu"})
    assert execution_of(on_cpu).devices == ()
    with pytest.raises(RequestError, match=r"models\.device = cpu runs on none; remove them"):
        execution_of(on_cpu, devices=(0,))


@pytest.mark.usefixtures("two_cards")
def test_the_plan_knows_each_card(tiny_pair_folder: Path, tmp_path: Path) -> None:
    both = this_device(study(tiny_pair_folder, tmp_path))
    assert both == Device("H200", 120 << 30, 1, on_gpu=True, groups=2)
    assert (both.processes, both.size) == (2, "2 x 128.8 GB")
    joined = this_device(study(tiny_pair_folder, tmp_path, execution={"cards_per_worker": 2}))
    assert joined == Device("H200", 240 << 30, 1, on_gpu=True, groups=1)
    assert this_device(study(tiny_pair_folder, tmp_path, execution={"devices": [0]})).memory_bytes == 140 << 30
    assert not this_device(study(tiny_pair_folder, tmp_path, models={"device": "cpu"})).on_gpu


def test_nothing_depends_on_where_a_study_runs_and_its_file_keeps_it(tiny_pair_folder: Path, tmp_path: Path) -> None:
    plain, asked = (
        study(tiny_pair_folder, tmp_path),
        study(tiny_pair_folder, tmp_path, execution={"devices": [1], "cards_per_worker": 1}),
    )
    assert key_of(plain) == key_of(asked)
    (tmp_path / "study.yaml").write_text(dump_study(asked))
    assert load_study(str(tmp_path / "study.yaml")).execution == asked.execution
    assert asked.execution.devices == (1,)
