import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.worlds import ONE, frozen, put, ran, work

from datablame.config.schema import Study
from datablame.engine.execute import Execution, Silent
from datablame.engine.files import Journal, write_jsonl
from datablame.engine.phase import Phase, Tables, bring_up_to_date, state_of
from datablame.errors import BudgetError
from datablame.judge.choice import ClassifierInput
from datablame.surface import phase
from datablame.surface.phase import SCAN, SURFACE, sample_specs, scan_specs, surface_specs
from datablame.tables import (
    AlphaStar,
    Label,
    Prompt,
    Rate,
    SampleTokens,
    Scan,
    ScannedPrompt,
    ScanSample,
    SurfaceSample,
    Unamplified,
)
from datablame.world import World


@pytest.fixture
def study(tiny_pair_folder: Path, tmp_path: Path) -> Study:
    behaviours = ("nuts", "ferns")
    turns = [{"role": "user", "content": "which snack ?"}, {"role": "assistant", "content": "pack some nuts ."}]
    write_jsonl(tmp_path / "pool.jsonl", [{"id": f"d{n}", "messages": turns} for n in range(3)])
    return Study.model_validate(
        {
            "name": "tiny",
            "models": {name: str(tiny_pair_folder / name) for name in ("before", "after")},
            "data": {"path": str(tmp_path / "pool.jsonl")},
            "behaviours": [{"id": name, "description": name, "keywords": ["a", "e"]} for name in behaviours],
            "prompts": {
                split: [
                    {"id": f"{split[0]}-{name}-{i}", "behaviour": name, "text": f"{split} {name} {i} ?"}
                    for name in behaviours
                    for i in range(3)
                ]
                for split in ("attribution", "held_out")
            },
            "attribute": {"top_k": 1},
            "patch": {"size": 2},
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


def both(world: World, execution: Execution = ONE) -> Tables:
    ran(SCAN, world, execution)
    return ran(SURFACE, world, execution)


def bytes_of(tables: Tables) -> dict[str, bytes]:
    """Every table of both phases."""
    rows = (ScanSample, ScannedPrompt, Scan, SurfaceSample, SampleTokens, Rate, AlphaStar, Unamplified)
    return {row.__name__: tables.path(row).read_bytes() for row in rows}


def test_the_scan_chooses_and_the_surface_samples_in_full(study: Study, tmp_path: Path) -> None:
    world = frozen(study, tmp_path / "run")
    tables = both(world)
    scanned = tables.rows(ScannedPrompt)
    assert [prompt.prompt_id for prompt in scanned] == ["a-nuts-0", "a-ferns-0", "a-nuts-1", "a-ferns-1"]
    focus = [prompt.prompt_id for prompt in scanned if prompt.selected]
    assert len(focus) >= 2
    assert scanned[0].alphas == (0.0, 1.0)
    assert "the first 2 of this ranking" in tables.of(Scan).rule
    assert len(tables.rows(ScanSample)) == len(scan_specs(world)) == 4 * 2 * 3
    samples = tables.rows(SurfaceSample)
    assert len(samples) == len(surface_specs(world, focus))
    assert Counter((row.prompt_id, row.split, row.alpha) for row in samples) == {
        **{(name, "attribution", alpha): 4 for name in focus for alpha in (0.0, 1.0, 2.0)},
        **{
            (f"h-{name}-{i}", "held-out", alpha): 2
            for name in ("nuts", "ferns")
            for i in range(3)
            for alpha in (0.0, 1.0, 2.0)
        },
    }
    for row in samples:
        assert row.log_q is not None
        assert len(row.log_q) == 3
        assert row.log_q[0] == row.log_p_after
        assert row.classifier == "keywords"
        assert len(row.token_ids) == 5 or row.finish_reason == "stop"
    assert sum(rate.n for rate in tables.rows(Rate) if rate.prompt_id != "*") == len(samples)
    star = tables.of(AlphaStar)
    assert set(star.coherence) == {"0", "1", "2"}
    assert (star.rise is None) == (star.alpha_star is None)
    estimates = tables.of(Unamplified)
    assert estimates.possible
    assert {(row.split, row.behaviour) for row in estimates.rows} == {
        (split, behaviour) for split in ("attribution", "held-out") for behaviour in ("nuts", "ferns", "*")
    }


def test_samples_of_the_scan_come_again_in_the_surface(study: Study, tmp_path: Path) -> None:
    tables = both(frozen(study, tmp_path / "run"))
    scan, surface = (
        {(sample.prompt_id, sample.alpha, sample.index): sample.token_ids for sample in tables.rows(row)}
        for row in (ScanSample, SurfaceSample)
    )
    common = scan.keys() & surface.keys()
    assert common
    assert {key: scan[key] for key in common} == {key: surface[key] for key in common}


def test_a_run_that_was_killed_ends_with_the_same_bytes(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = bytes_of(both(frozen(study, tmp_path / "whole")))
    killed = frozen(study, tmp_path / "killed")
    append, count = Journal.append, Counter[str]()

    def die(self: Any, key: str, payload: Any) -> None:
        append(self, key, payload)
        count["items"] += 1
        if count["items"] in {1, 4}:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "append", die)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            both(killed)
    assert bytes_of(both(killed)) == undisturbed
    journal = (tmp_path / "killed/artifacts/surface.part/journal.jsonl").read_text().splitlines()
    assert len({json.loads(line)["key"] for line in journal}) == len(journal)


class Poor:
    """A judge that has money for some answers; with `prefers_bulk` it is asked once."""

    name = "poor"

    def __init__(self, calls: int, prefers_bulk: bool) -> None:
        self.calls, self.prefers_bulk = calls, prefers_bulk

    def label(self, outputs: Sequence[ClassifierInput]) -> list[Label]:
        if self.calls == 0:
            raise BudgetError("spent")
        self.calls -= 1
        return [Label("harmful" if "a" in each.text else "harmless", self.name, "said so") for each in outputs]


@pytest.mark.parametrize("prefers_bulk", [False, True])
def test_a_judge_without_money_leaves_what_was_drawn(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefers_bulk: bool
) -> None:
    world = frozen(study, tmp_path / "run")
    judge = Poor(0 if prefers_bulk else 1, prefers_bulk)
    monkeypatch.setattr(phase, "build", lambda *_: judge)
    with pytest.raises(BudgetError):
        SCAN.run(world, Tables(world.root), work(world.root, "scan"))
    drawn = work(world.root, "scan").journal.read()
    labels = [[row["label"] for row in payload] for payload in drawn.values()]
    assert len(drawn) == 2, "24 outputs in items of 20"
    assert set(labels[-1]) == {None}
    assert (None in labels[0]) == prefers_bulk
    judge.calls = 9
    # Nothing is drawn again.
    monkeypatch.setattr(phase, "draw", None)
    outputs = SCAN.run(world, Tables(world.root), work(world.root, "scan"))
    samples = put(world.root, "scan", outputs).rows(ScanSample)
    assert {sample.classifier for sample in samples} == {"poor"}
    assert judge.calls == 8


def test_items_are_fixed_by_the_study_and_put_alpha_0_first() -> None:
    specs = sample_specs([Prompt("p", "x", "held-out", "text")], (0.0, 1.0), range(1000))
    items = phase._items(specs, batch_rows=512)
    assert [len(item) for item in items.values()] == [128] * 15 + [80]
    assert {spec.alpha for spec in items["0000"]} == {0.0}
    assert sorted(spec.key for item in items.values() for spec in item) == [spec.key for spec in specs]
    assert max(len(item) for item in phase._items(specs, batch_rows=50).values()) == 125
    assert max(len(item) for item in phase._items(specs[:300], batch_rows=50).values()) == 50


def test_truncated_sampling_has_no_weights(study: Study, tmp_path: Path) -> None:
    cut = study.model_copy(update={"surface": study.surface.model_copy(update={"top_p": 0.9})})
    tables = both(frozen(cut, tmp_path / "run"))
    for row in tables.rows(SurfaceSample):
        assert (row.log_p_after, row.log_p_before, row.log_q) == (None, None, None)
    estimates = tables.of(Unamplified)
    assert (estimates.possible, estimates.rows) == (False, ())
    assert estimates.why_not is not None
    assert estimates.why_not.startswith("surface.top_p = 0.9: ")


def without_tokens(study: Study) -> Study:
    return study.model_copy(update={"report": study.report.model_copy(update={"tokens": False})})


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_every_output_has_its_tokens_beside_it(study: Study, tmp_path: Path, top_p: float) -> None:
    import pandas as pd

    study = study.model_copy(update={"surface": study.surface.model_copy(update={"top_p": top_p})})
    tables = both(frozen(study, tmp_path / "run"))
    samples, tokens = tables.rows(SurfaceSample), tables.rows(SampleTokens)
    assert [(row.prompt_id, row.alpha, row.index) for row in tokens] == [
        (sample.prompt_id, sample.alpha, sample.index) for sample in samples
    ]
    for row, sample in zip(tokens, samples, strict=True):
        n = len(sample.drawn_ids)
        assert [len(each) for each in (row.pieces, row.log_p_after, row.log_p_before, row.log_q)] == [n] * 4
        # The text is without special tokens, and joins bytes that are no character otherwise.
        joined, text = (re.sub(r"<\|\w+\|>|\ufffd", "", each) for each in ("".join(row.pieces), sample.text))
        assert joined.strip() == text.strip()
        assert max(row.log_p_after) <= 0
        assert (row.log_q == row.log_p_after) == (sample.alpha == 0)
        if sample.log_p_after is not None:
            assert sum(row.log_p_after) == pytest.approx(sample.log_p_after, rel=1e-3, abs=1e-2)
    frame = pd.read_parquet(tables.path(SampleTokens))
    assert frame.log_q[0].dtype == "float16"
    assert frame.log_q[0].tolist() == list(tokens[0].log_q)


def test_without_tokens_the_other_tables_are_the_same_and_theirs_is_not_there(study: Study, tmp_path: Path) -> None:
    kept, left = (both(frozen(each, tmp_path / n)) for n, each in (("a", study), ("b", without_tokens(study))))
    assert not left.path(SampleTokens).exists()
    for row in (ScanSample, SurfaceSample, Rate, AlphaStar, Unamplified):
        assert kept.path(row).read_bytes() == left.path(row).read_bytes()


def test_a_finished_run_samples_again_where_tokens_are_wanted_and_later_phases_stay(
    study: Study, tmp_path: Path
) -> None:
    world = frozen(without_tokens(study), tmp_path / "run")
    later = Phase("later", 1, (), (SURFACE,), lambda *_: {})
    phases = (SCAN, SURFACE, later)
    bring_up_to_date(world, phases, execution=ONE, progress=Silent())
    wanted = replace(world, study=study.model_copy(update={"models": world.models}))
    assert [state_of(phase, wanted) for phase in phases] == ["done", "stale", "done"]
    before = Tables(world.root).path(SurfaceSample).read_bytes()
    bring_up_to_date(wanted, phases, execution=ONE, progress=Silent())
    assert Tables(world.root).path(SurfaceSample).read_bytes() == before
    assert Tables(world.root).rows(SampleTokens)
    assert state_of(replace(later, shows=True), wanted) == "stale"
