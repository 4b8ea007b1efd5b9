import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from datablame.engine.execute import Execution, Silent
from datablame.engine.run_folder import Inputs, Journal, read_json, read_table
from datablame.study.schema import Study
from datablame.surface import run
from datablame.surface.run import run_scan, run_surface
from datablame.tables import Prompt


@pytest.fixture
def study(tiny_pair_folder: Path) -> Study:
    behaviours = ("nuts", "ferns")
    return Study.model_validate(
        {
            "name": "tiny",
            "models": {name: str(tiny_pair_folder / name) for name in ("before", "after")},
            "data": {"path": "unused.parquet"},
            "behaviours": [{"id": name, "description": name, "keywords": ["a", "e"]} for name in behaviours],
            "prompts": {
                split: [
                    {"id": f"{split[0]}-{name}-{i}", "behaviour": name, "text": f"{split} {name} {i} ?"}
                    for name in behaviours
                    for i in range(3)
                ]
                for split in ("attribution", "held_out")
            },
            "scan": {"prompts": 4, "samples": 3, "alphas": [0, 1], "focus": 2},
            "surface": {
                "samples": 4,
                "held_out_samples": 2,
                "alphas": [0, 1, 2],
                "max_new_tokens": 5,
                "batch_rows": 20,
            },
        }
    )


def both(study: Study, root: Path, workers: int = 1) -> dict[str, bytes]:
    inputs = Inputs(root, lambda what, key, seconds: None)
    execution = Execution(workers=workers, threads=1)
    run_scan(study, inputs, root / "artifacts/scan", execution, Silent())
    run_surface(study, inputs, root / "artifacts/surface", execution, Silent())
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix in {".json", ".parquet"}
    }


def test_the_scan_chooses_and_the_surface_samples_in_full(study: Study, tmp_path: Path) -> None:
    files = both(study, tmp_path)
    assert [Path(name).name for name in files] == [
        "samples.parquet",
        "scan.json",
        "alpha_star.json",
        "rates.parquet",
        "samples.parquet",
        "unamplified.json",
    ]
    scan = read_json(tmp_path / "artifacts/scan/scan.json")
    assert [prompt["prompt_id"] for prompt in scan["prompts"]] == ["a-nuts-0", "a-ferns-0", "a-nuts-1", "a-ferns-1"]
    assert scan["focus"] == [prompt["prompt_id"] for prompt in scan["prompts"] if prompt["selected"]]
    assert len(scan["focus"]) >= 2
    assert set(scan["prompts"][0]["rates"]) == {"0", "1"}
    samples = read_table(tmp_path / "artifacts/surface/samples.parquet")
    counted = Counter((row["prompt_id"], row["split"], row["alpha"]) for row in samples)
    assert counted == {
        **{(name, "attribution", alpha): 4 for name in scan["focus"] for alpha in (0.0, 1.0, 2.0)},
        **{
            (f"h-{name}-{i}", "held-out", alpha): 2
            for name in ("nuts", "ferns")
            for i in range(3)
            for alpha in (0.0, 1.0, 2.0)
        },
    }
    for row in samples:
        assert len(row["log_q"]) == 3
        assert row["log_q"][0] == row["log_p_after"]
        assert row["classifier"] == "keywords"
        assert len(row["token_ids"]) == 5 or row["finish_reason"] == "stop"
    rates = read_table(tmp_path / "artifacts/surface/rates.parquet")
    assert sum(row["n"] for row in rates if row["prompt_id"] != "*") == len(samples)
    star = read_json(tmp_path / "artifacts/surface/alpha_star.json")
    assert set(star) == {"alpha_star", "rule", "coherence"}
    assert set(star["coherence"]) == {"0", "1", "2"}
    estimates = read_json(tmp_path / "artifacts/surface/unamplified.json")
    assert estimates["possible"]
    assert {(row["split"], row["behaviour"]) for row in estimates["rows"]} == {
        (split, behaviour) for split in ("attribution", "held-out") for behaviour in ("nuts", "ferns", "*")
    }


def test_samples_of_the_scan_come_again_in_the_surface(study: Study, tmp_path: Path) -> None:
    both(study, tmp_path)
    scan, surface = (
        {
            (row["prompt_id"], row["alpha"], row["index"]): row["token_ids"]
            for row in read_table(tmp_path / f"artifacts/{phase}/samples.parquet")
        }
        for phase in ("scan", "surface")
    )
    common = scan.keys() & surface.keys()
    assert common
    assert {key: scan[key] for key in common} == {key: surface[key] for key in common}


def test_a_run_that_was_killed_ends_with_the_same_bytes(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = both(study, tmp_path / "whole")
    append, count = Journal.append, Counter[str]()

    def die(self: Any, key: str, payload: Any) -> None:
        append(self, key, payload)
        count["items"] += 1
        if count["items"] in {1, 4}:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "append", die)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            both(study, tmp_path / "killed")
    assert both(study, tmp_path / "killed") == undisturbed
    journal = (tmp_path / "killed/artifacts/surface/journal.jsonl").read_text().splitlines()
    assert len({json.loads(line)["key"] for line in journal}) == len(journal)


def test_items_are_fixed_by_the_study_and_put_alpha_0_first() -> None:
    prompt = Prompt("p", "x", "held-out", "text")
    wanted = run._every([prompt], (0.0, 1.0), 1000)
    items = run._items(wanted, batch_rows=512)
    assert [len(item) for item in items.values()] == [128] * 15 + [80]
    assert {each.alpha for each in items["0000"]} == {0.0}
    assert sorted((e.alpha, e.index) for item in items.values() for e in item) == [(e.alpha, e.index) for e in wanted]
    assert max(len(item) for item in run._items(wanted, batch_rows=50).values()) == 125
    assert max(len(item) for item in run._items(wanted[:300], batch_rows=50).values()) == 50


def test_truncated_sampling_has_no_weights(study: Study, tmp_path: Path) -> None:
    cut = study.model_copy(update={"surface": study.surface.model_copy(update={"top_p": 0.9})})
    both(cut, tmp_path)
    for row in read_table(tmp_path / "artifacts/surface/samples.parquet"):
        assert (row["log_p_after"], row["log_p_before"], row["log_q"]) == (None, None, None)
    estimates = read_json(tmp_path / "artifacts/surface/unamplified.json")
    assert (estimates["possible"], estimates["rows"]) == (False, [])
    assert estimates["why_not"].startswith("surface.top_p = 0.9: ")
