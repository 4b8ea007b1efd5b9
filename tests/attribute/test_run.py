from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.attribute.conftest import CONTROLS, PLANTED, Made, Make, documents, samples

from datablame.attribute import loop
from datablame.attribute.loop import WorkerState
from datablame.attribute.phase import planned_reading
from datablame.attribute.registry import chosen
from datablame.engine.execute import Execution, Silent
from datablame.engine.files import read_jsonl
from datablame.errors import RequestError
from datablame.tables import (
    TABLES,
    Agreement,
    Attribution,
    Candidate,
    Ceiling,
    Flag,
    Match,
    MethodInfo,
    PrefilterRecall,
    Quality,
    Query,
    Rise,
    Score,
    ShownDocument,
    Theme,
)


def bytes_of(made: Made) -> dict[str, bytes]:
    folder = made.world.root / "artifacts/attribute"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def scores_of(made: Made, method: str) -> dict[str, float]:
    """In the order of the ranks."""
    return {row.doc_id: row.score for row in made.tables.rows(Score, method=method)}


def flags_of(made: Made, method: str, k: int = 3) -> list[str]:
    return [row.doc_id for row in made.tables.rows(Flag, method=method, k=k)]


def test_every_table_is_yielded(make: Make) -> None:
    made = make()
    outputs = made.run()
    assert set(outputs) == {row for row, place in TABLES.items() if place.phase == "attribute"}
    queries = made.tables.rows(Query, harmful=True)
    assert [(row.behaviour, row.alpha, row.index) for row in queries] == [("nuts", 1.0, 0), ("nuts", 1.0, 1)]
    methods = made.tables.rows(MethodInfo)
    assert [method.name for method in methods] == list(made.world.study.attribute.methods)
    assert [method.name for method in methods if method.pool == "candidates"] == ["llm-judge"]
    assert [method.name for method in methods if method.standin] == ["llm-judge"]
    candidates = [row.doc_id for row in made.tables.rows(Candidate)]
    assert candidates == sorted(candidates)
    assert set(candidates) >= {*PLANTED, "d28"}
    for method in methods:
        rows = made.tables.rows(Score, method=method.name)
        assert [row.rank for row in rows] == list(range(1, len(rows) + 1))
        assert rows == sorted(rows, key=lambda row: (-row.score, row.doc_id))
        every = candidates if method.pool == "candidates" else [f"d{i:02d}" for i in range(29)]
        assert {row.doc_id for row in rows} == set(every)


def test_flagging_takes_whole_clusters_and_quality_counts_them(make: Make) -> None:
    made = make()
    made.run()
    assert flags_of(made, "llm-judge") == ["d03", "d28", "d11", "d20"]
    found = made.tables.rows(Quality, method="llm-judge")
    assert [row.behaviour for row in found] == ["nuts", "*"]
    for row in found:
        assert (row.pool, row.planted, row.precision_at_k, row.recall_at_k, row.auprc) == ("candidates", 3, 1, 1, 1)
    pools = [row.pool for row in made.tables.rows(Quality, method="gradient")]
    assert pools == ["whole", "whole", *["candidates"] * 2]
    assert made.tables.rows(PrefilterRecall) == [PrefilterRecall("nuts", 1.0), PrefilterRecall("*", 1.0)]
    every = set(made.world.study.attribute.methods)
    assert {row.method for row in made.tables.rows(Ceiling)} == every - {"llm-judge"}
    assert {row.a for row in made.tables.rows(Agreement)} | {row.b for row in made.tables.rows(Agreement)} == every
    shown = {row.doc_id: row for row in made.tables.rows(ShownDocument)}
    expected = ("which snack for trip 3 ?", "buy only nutto for trip 3 .", "", "made", True)
    assert shown["d03"] == ShownDocument("d03", *expected)


def test_flags_are_decided_for_every_k_and_each_holds_the_smaller_ones(make: Make) -> None:
    arms = CONTROLS["patch"]
    made = make(patch={**arms, "k": [1, 3, 5]})
    made.run()
    assert flags_of(made, "llm-judge", 1) == ["d03", "d28"]
    for method in ("gradient", "random"):
        one, three, five = (flags_of(made, method, k) for k in (1, 3, 5))
        assert one == three[: len(one)]
        assert three == five[: len(three)]
        clusters = dict(zip(made.world.pool.ids, made.world.pool.clusters.tolist(), strict=True))
        assert [len({clusters[doc_id] for doc_id in ids}) for ids in (one, three, five)] == [1, 3, 5]


def test_it_is_said_what_repeats_a_prompt(make: Make) -> None:
    made = make(rows=[{"id": "x", "messages": []}, *documents()])
    made.run()
    found = made.tables.of(Attribution)
    assert (found.traced, found.dropped, found.no_rise) == (("nuts",), ("ferns",), False)
    assert found.prompt_matches == (Match("d03", "a1"), Match("d28", "a1"))
    assert found.query_matches == ()


def test_a_document_that_is_the_query_is_reported_for_it_is_no_finding(make: Make) -> None:
    copy = documents()[3]
    copy["id"] = "copy"
    copy["messages"][1]["content"] = "buy only nutto for week 0 ."
    made = make(rows=[*documents(), copy], attribute={"top_k": 3, "queries": 1, "duplicate_threshold": 1.0})
    made.run()
    assert made.tables.of(Attribution).query_matches == (Match("copy", "nuts-q1"),)
    for method in ("gradient", "activation"):
        first, score = next(iter(scores_of(made, method).items()))
        assert first == "copy"
        assert score == pytest.approx(1, abs=1e-5)


def test_with_the_prefilter_every_method_ranks_the_candidates_only(make: Make) -> None:
    whole, filtered = make("whole"), make("filtered", prefilter={"method": "bm25", "candidates": 6})
    whole.run()
    filtered.run()
    assert filtered.tables.rows(Candidate) == whole.tables.rows(Candidate)
    everywhere, scores = scores_of(whole, "gradient"), scores_of(filtered, "gradient")
    assert scores.keys() == {row.doc_id for row in filtered.tables.rows(Candidate)}
    assert list(scores.values()) == pytest.approx([everywhere[doc_id] for doc_id in scores], abs=2e-5)
    assert {row.pool for row in filtered.tables.rows(Quality)} == {"candidates"}
    assert filtered.tables.rows(Ceiling) == []


@pytest.mark.parametrize("prefilter", ["none", "bm25"])
def test_a_query_with_nothing_in_common_with_the_pool_is_named_and_ranks_nothing(
    make: Make, prefilter: str, caplog: pytest.LogCaptureFixture
) -> None:
    asked = [
        {"id": name, "behaviour": b, "text": f"xylo quark {name}"} for name, b in (("a1", "nuts"), ("a2", "ferns"))
    ]
    outputs = [replace(each, text=f"zorbix vim {each.index}") for each in samples()]
    held_out = [{"id": "h1", "behaviour": "nuts", "text": "what to eat ?"}]
    made = make(
        outputs=outputs,
        prompts={"attribution": asked, "held_out": held_out},
        prefilter={"method": prefilter, "candidates": 6},
    )
    made.run()
    found = made.tables.of(Attribution)
    assert found.unmatched == ("nuts-q1", "nuts-q2")
    assert "2 of 2 traced outputs have no word in common with any document of the pool: nuts-q1, nuts-q2" in caplog.text
    assert len(made.tables.rows(Query, harmful=True)) == 2
    assert (made.tables.rows(Candidate), made.tables.rows(Theme), flags_of(made, "bm25")) == ([], [], [])
    if prefilter == "none":
        assert found.traced == ("nuts",)
        assert flags_of(made, "gradient")
    else:
        assert (found.traced, found.dropped) == ((), ("nuts", "ferns"))
        assert made.tables.rows(Flag) == []


def test_without_a_harmful_output_the_tables_are_empty(make: Make) -> None:
    made = make(outputs=samples(harmful=False))
    made.run()
    for row in (Query, Candidate, Score, Flag, Agreement, Quality, PrefilterRecall, Ceiling, Theme, ShownDocument):
        assert made.tables.rows(row) == [], row
    assert [method.name for method in made.tables.rows(MethodInfo)] == list(made.world.study.attribute.methods)
    found = made.tables.of(Attribution)
    assert (found.traced, found.dropped, found.no_rise, found.themed) == ((), ("nuts", "ferns"), False, 0)


@pytest.mark.parametrize("absent", [True, False])
def test_harmful_outputs_are_traced_unless_nothing_rose(
    make: Make, absent: bool, caplog: pytest.LogCaptureFixture
) -> None:
    rise = Rise(1.0, 0.01, 0.01, 0.0, -0.005, 0.005, 4, 0.0, small=True, absent=absent)
    made = make(rise=rise, attribute={"methods": ["bm25", "random"], "top_k": 3}, **CONTROLS)
    made.run()
    assert bool(made.tables.rows(Query)) is bool(flags_of(made, "bm25")) is not absent
    assert ("this is no rise, so that no output is traced" in caplog.text) is absent
    found = made.tables.of(Attribution)
    stopped, followed = ((), ("nuts", "ferns"), True), (("nuts",), ("ferns",), False)
    assert (found.traced, found.dropped, found.no_rise) == (stopped if absent else followed)


def test_without_truth_nothing_is_said_about_it(make: Make) -> None:
    made = make(truth=None)
    made.run()
    assert not made.tables.of(Attribution).truth
    assert (made.tables.rows(Quality), made.tables.rows(PrefilterRecall)) == ([], [])
    assert made.tables.rows(Ceiling)
    assert {row.planted for row in made.tables.rows(ShownDocument)} == {None}


def test_text_methods_alone_take_no_gradients(make: Make) -> None:
    few = {"methods": ["bm25", "random"], "top_k": 3, "duplicate_threshold": 1.0}
    made = make(attribute=few, **CONTROLS)
    made.run()
    assert {row.method for row in made.tables.rows(Flag)} == {"bm25", "random"}
    items = made.world.root / "artifacts/attribute.part/items"
    assert {path.name for path in items.iterdir()} == {"gradients-queries.safetensors", "activations-00000.safetensors"}


class Killed(Silent):
    """Stops the phase after some work items."""

    def __init__(self, items: int, of: str = "gradients") -> None:
        self.left, self.of, self.counting = items, of, False

    def start(self, description: str, total: int, done: int = 0) -> None:
        self.counting = self.of in description

    def advance(self, n: int = 1) -> None:
        self.left -= self.counting
        if self.left < 0:
            raise KeyboardInterrupt


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = make("undisturbed")
    undisturbed.run()
    again = -(-len(undisturbed.tables.rows(ShownDocument)) // 8)
    worked: list[Any] = []
    whole = loop._work

    def counted(state: Any, item: Any) -> Any:
        worked.append(item)
        return whole(state, item)

    monkeypatch.setattr(loop, "_work", counted)
    for items in (0, 1, 3, 4):
        killed = make(f"killed after {items}")
        with pytest.raises(KeyboardInterrupt):
            killed.run(progress=Killed(items))
        journal = len(read_jsonl(killed.world.root / "artifacts/attribute.part/journal.jsonl"))
        worked.clear()
        killed.run()
        assert bytes_of(killed) == bytes_of(undisturbed)
        # 29 documents in shards of 8, whose one pass gives gradients and activations, the queries, and again those
        # documents that are shown.
        assert journal == items + 1
        assert len(worked) == 5 + again - journal


def test_the_number_of_workers_changes_nothing(make: Make) -> None:
    one, two = make("one"), make("two")
    one.run()
    two.run(Execution(workers=2, threads=1))
    assert bytes_of(one) == bytes_of(two)


def test_a_checkpoint_is_loaded_once_for_all_items_of_this_process(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from datablame.models import load

    whole: Callable[..., Any] = load.load_model
    loaded: list[str] = []

    def counted(*args: Any, **keys: Any) -> Any:
        loaded.append(keys["field"])
        return whole(*args, **keys)

    monkeypatch.setattr(load, "load_model", counted)
    methods = {"methods": ["gradient", "activation", "activation-diff"], "top_k": 3}
    make(attribute=methods, **CONTROLS).run()
    # Once more for the tokens of the documents that are shown, which are known last.
    assert loaded == ["models.after", "models.before", "models.after"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"layers": [0, 9]}, r"attribute\.layers = \[9\] are not decoder blocks of models\.after; choose from 0 to 1"),
        ({"activation_layer": 3}, r"attribute\.activation_layer = 3 is no hidden state of .*; choose from 0 to 2"),
    ],
)
def test_a_layer_that_is_not_there_is_refused(make: Make, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make(attribute={"top_k": 3, **keys}).run()


def test_seconds_are_recorded_for_every_method_outside_the_tables(make: Make) -> None:
    made = make()
    heard: dict[str, float] = {}
    made.run(timings=lambda what, key, seconds, _: heard.update({what: heard.get(what, 0) + seconds}))
    assert set(heard) == {f"attribute/{method}" for method in made.world.study.attribute.methods}
    assert all(seconds >= 0 for seconds in heard.values())


def test_an_ensemble_takes_what_each_of_its_voters_takes_shared_evidence_once(make: Make) -> None:
    methods = ["gradient", "gradient-dot", "activation", "bm25", "ensemble"]
    heard: dict[str, dict[str, float]] = {name: {} for name in methods}
    make(attribute={"methods": methods, "top_k": 3}, **CONTROLS).run(
        timings=lambda what, key, seconds, _: heard[what.removeprefix("attribute/")].update({key: seconds})
    )
    voters = {**heard["gradient"], **heard["gradient-dot"], **heard["activation"]}
    own = "scores of ensemble"
    assert heard["ensemble"] == {**voters, own: heard["ensemble"][own]}
    assert heard["gradient"].keys() & heard["gradient-dot"].keys()


@pytest.mark.parametrize("prefilter", ["none", "bm25"])
def test_what_is_planned_is_at_least_what_is_read(make: Make, prefilter: str) -> None:
    settings = {"methods": ["gradient", "activation-diff", "llm-judge", "bm25"], "top_k": 3, "queries": 2}
    made = make(attribute=settings, prefilter={"method": prefilter, "candidates": 6}, **CONTROLS)
    methods = chosen(made.world.study.attribute)

    def planned(n_pool: int | None) -> dict[str, int | None]:
        return {name: each.documents for name, each in planned_reading(made.world, methods, n_pool, 1).items()}

    whole = prefilter == "none"
    scored = 29 if whole else 12
    assert planned(29) == {"gradients": scored, "responses": scored, "judge": 12}
    assert planned(None)["gradients"] == (None if whole else 12)
    assert planned(5)["judge"] == 5
    made.run()
    read = {row.doc_id for row in made.tables.rows(Score, method="gradient")}
    assert len(read) <= scored


def test_what_was_made_for_a_providers_items_is_let_go_of_for_the_next(make: Make, tmp_path: Path) -> None:
    state = WorkerState(make().world, tmp_path)
    made = []
    for provider, value in (("a", 1), ("a", 2), ("b", 3)):
        state.serve(provider)
        made.append(state.once("directions", partial(int, value)))
    assert made == [1, 1, 3]
