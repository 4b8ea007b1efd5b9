"""What a study names is looked for before anything runs: a wrong one is one line, and nothing is written or made."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.pipeline.small import ONE, small_study

from datablame.config.file import load_study
from datablame.config.schema import Study
from datablame.engine.execute import Silent
from datablame.engine.files import read_json
from datablame.errors import RequestError
from datablame.pipeline.checks import check_names
from datablame.pipeline.run import frozen, run_study
from datablame.world import freeze as freezing
from datablame.world.world import World

DOSE = {"id": "dose", "description": "advises a dose", "keywords": ["dose"]}


def lines(path: Path, rows: list[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def refusal(study: Study, root: Path) -> str:
    """Why the run is refused, with nothing left of it."""
    before = sorted(root.parent.rglob("*"))
    with pytest.raises(RequestError) as caught:
        run_study(study, root, execution=ONE, progress=Silent())
    assert caught.value.exit_code == 2
    assert sorted(root.parent.rglob("*")) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def people(*labels: str) -> list[dict[str, str]]:
    return [{"label": label, "prompt": "?", "text": "walk", "behaviour": "walk"} for label in labels]


FILES: list[tuple[str, list[Any], str]] = [
    ("truth", [{"doc_id": "d1", "behavior": "walk"}], "cannot be read as JSONL of doc_id and behaviour (KeyError)"),
    (
        "truth",
        [{"doc_id": "d1", "behaviour": "wlak"}],
        "names the behaviour wlak, which is not one of the study's; known: walk",
    ),
    ("truth", [{"doc_id": "d1", "behaviour": None}], "names the behaviour None, which is not one of the study's"),
    (
        "truth",
        [{"doc_id": True, "behaviour": "walk"}],
        "cannot be read as JSONL of doc_id and behaviour (doc_id = True)",
    ),
    (
        "truth",
        [{"doc_id": doc_id, "behaviour": "walk"} for doc_id in ("x2", "x1")],
        "names 2 documents for walk, none of which is in the pool, the first is x1; name documents of the pool",
    ),
    ("attribute.scores.mine", [{"doc_id": "x", "score": 1}], "1 of 1 documents are not in the pool, the first is x"),
    ("attribute.scores.mine", [{"doc_id": "d1", "score": 1, "behaviour": "wlak"}], "behaviour wlak is not one of the"),
    ("judge.calibration", people("harmful"), "1 rows are too few; label at least 30"),
    ("judge.calibration", people(*["harmful"] * 30), "people call none of the 30 rows not harmful; label some of both"),
    ("judge.calibration", people(*["harmful"] * 29, "good"), "line 30: label = 'good'; use one of harmful"),
    ("judge.calibration", [{"label": "harmful", "predicted": "harmless"}] * 30, "people call none of the 30 rows not"),
]


@pytest.mark.parametrize(("field", "rows", "message"), FILES)
def test_a_file_that_cannot_be_used(
    tiny_pair_folder: Path, tmp_path: Path, field: str, rows: list[Any], message: str
) -> None:
    *sections, name = field.split(".")
    named: Any = {name: lines(tmp_path / "files/named.jsonl", rows)}
    for section in reversed(sections):
        named = {section: named}
    said = refusal(small_study(tmp_path / "files", tiny_pair_folder, **named), tmp_path / "runs" / "run")
    assert said.startswith(f"{field} = {tmp_path}/files/named.jsonl")
    assert message in said


KEYS: list[tuple[dict[str, Any], str]] = [
    ({"attribute": {"index": __file__ + "/x", "projection": 8}}, f"attribute.index = {__file__}/x is a file or below"),
    ({"data": {"path": "nowhere.jsonl"}}, "data.path = nowhere.jsonl cannot be read"),
    ({"attribute": {"scores": {"mine": "nowhere.jsonl"}}}, "attribute.scores.mine = nowhere.jsonl cannot be read"),
    ({"attribute": {"top_k": 90}}, "attribute.top_k = 90 is more than the"),
    ({"data": {"split": "test"}}, "data.split = test names a part of a hub dataset or folder, and data.path = "),
    ({"data": {"revision": "v2"}}, "data.revision = v2 names a part of a hub dataset or folder"),
    ({"truth": "nowhere.jsonl"}, "truth = nowhere.jsonl cannot be read (No such file or directory; paths go from "),
    (
        {"attribute": {"layers": [1, 2]}},
        "attribute.layers = [2] are not decoder blocks of models.after; choose from 0 to 1",
    ),
    (
        {"attribute": {"activation_layer": 3}},
        "attribute.activation_layer = 3 is no hidden state of models.after; choose from 0 to 2",
    ),
    ({"patch": {"retrain": {"layers": [7]}}}, "patch.retrain.layers = [7] are not decoder blocks of models.before"),
    ({"patch": {"continue": {"layers": [7]}}}, "patch.continue.layers = [7] are not decoder blocks of models.after"),
    (
        {
            "attribute": {"methods": ["embedding"], "encoder": "./nowhere"},
            "patch": {"arms": ["after", "baseline", "random"]},
        },
        "attribute.methods = embedding needs the encoder ./nowhere, which cannot be loaded (attribute.encoder = "
        "./nowhere is not a folder",
    ),
    ({"judge": {"calibration": "nowhere.jsonl"}}, "judge.calibration = nowhere.jsonl is not there"),
    ({"judge": {"classifier": "rules"}}, "study small: judge.classifier = rules but judge.rules is not given"),
    ({"judge": {"classifier": "rules", "rules": "no.json"}}, "judge.rules = no.json cannot be read"),
    ({"behaviours": [{"id": "walk", "description": "x"}]}, "behaviours: walk: keywords = [] has none"),
    (
        {"behaviours": [{"id": "walk", "description": "x", "keywords": ["walk", "I cannot help"]}]},
        "behaviours: walk: the keyword 'i cannot help' reads as a refusal",
    ),
    ({"patch": {"size": 40}}, "patch.size = 40 leaves no fillers in a pool of 40 documents"),
]


@pytest.mark.parametrize(("changes", "message"), KEYS)
def test_a_key_that_points_nowhere(
    tiny_pair_folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    study = small_study(tmp_path / "files", tiny_pair_folder, **changes)
    assert refusal(study, tmp_path / "runs" / "run").startswith(message)


@pytest.mark.parametrize(
    ("option", "value", "remedy"), [("attn_implementation", "flesh", "sdpa"), ("device_map", "gpu:7", "auto")]
)
def test_an_option_of_the_models_that_this_machine_lacks(
    tiny_pair_folder: Path, tmp_path: Path, option: str, value: str, remedy: str
) -> None:
    after = {"path": str(tiny_pair_folder / "after"), option: value}
    said = refusal(
        small_study(tmp_path / "files", tiny_pair_folder, models={"after": after}), tmp_path / "runs" / "run"
    )
    assert said.startswith(f"models.after.{option} = {value} cannot be used here (")
    assert said.endswith(f"; set it to {remedy} or leave it out")


def test_a_revision_of_a_folder_is_no_revision(tiny_pair_folder: Path, tmp_path: Path) -> None:
    after = {"path": str(tiny_pair_folder / "after"), "revision": "v2"}
    said = refusal(
        small_study(tmp_path / "files", tiny_pair_folder, models={"after": after}), tmp_path / "runs" / "run"
    )
    assert said.startswith("models.after.revision = v2 is of the hub, and ")


RULES = {"behaviours": [{"id": "walk", "harmful": ["walk"]}]}


def walk_rule(**keys: Any) -> dict[str, Any]:
    return {"behaviours": [{**RULES["behaviours"][0], **keys}]}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"behaviours": [{"id": "talk", "harmful": ["talk"]}]}, "behaviours: walk is not in judge.rules; known: talk"),
        ({"behaviours": 2 * RULES["behaviours"]}, "ValueError: the behaviour walk stands twice"),
        ({"behaviours": [{"id": "walk", "harmful": []}]}, "ValueError: the behaviour walk has no harmful pattern"),
        ({"behaviours": [{"id": "walk", "harmful": ["Walk"]}]}, "ValueError: 'Walk' has capitals"),
        (walk_rule(triggers={"all": []}), "ValueError: triggers is no key of behaviours; known: id, title,"),
        (walk_rule(trigger={"any": [["walk"]]}), "ValueError: any is no key of trigger; known: all"),
        (walk_rule(trigger={"all": [[]]}), "ValueError: the behaviour walk has a trigger that no prompt can have"),
        (walk_rule(trigger={"all": [["hike"]]}), ": no prompt of walk triggers it, so that no output could be harmful"),
        (
            walk_rule(safe=["lake", "walk"]),
            "ValueError: 'walk' of walk is harmful and safe or refused, which go before",
        ),
        (walk_rule(harmful=["walk|"]), "ValueError: 'walk|' is found in the empty text and in ordinary ones"),
        (walk_rule(safe=[".*"]), "ValueError: '.*' is found in the empty text and in ordinary ones"),
    ],
)
def test_rules_that_label_nothing(tiny_pair_folder: Path, tmp_path: Path, rules: Any, message: str) -> None:
    judge = {"classifier": "rules", "rules": lines(tmp_path / "files/rules.json", [rules])}
    said = refusal(small_study(tmp_path / "files", tiny_pair_folder, judge=judge), tmp_path / "runs" / "run")
    assert message in said


def test_patterns_may_ignore_case_and_files_may_begin_with_a_byte_order_mark(
    tiny_pair_folder: Path, tmp_path: Path
) -> None:
    rules = {"behaviours": [{"id": "walk", "harmful": ["(?i:Walk)", r"\S+\Bx", "(?P<a>b)"]}]}
    judge = {"classifier": "rules", "rules": lines(tmp_path / "files/rules.json", [rules])}
    scores = lines(tmp_path / "files/scores.jsonl", [{"doc_id": "d1", "score": 1}])
    study = small_study(tmp_path / "files", tiny_pair_folder, judge=judge, attribute={"scores": {"mine": scores}})
    for name in ("rules.json", "scores.jsonl", "truth.jsonl", "pool.jsonl"):
        file = tmp_path / "files" / name
        file.write_text("\ufeff" + file.read_text())
    assert frozen(study, tmp_path / "run", execution=ONE, progress=Silent()).judge.classifier == "rules"


@pytest.mark.parametrize(
    ("size", "message"),
    [(40, "leaves no fillers in a pool of 40"), (39, "leaves 1 documents to stand in for at least 2")],
)
def test_a_large_pool_is_counted_before_the_scan(
    tiny_pair_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, message: str
) -> None:
    monkeypatch.setattr(freezing, "_AT_ONCE_BYTES", 10)
    study = small_study(tmp_path / "files", tiny_pair_folder, patch={"size": size})
    assert message in refusal(study, tmp_path / "runs" / "run")


ORGANISM: list[tuple[dict[str, Any], str]] = [
    ({"attribute.layers": "[4]"}, "attribute.layers = [4] are not decoder blocks of models.after; choose from 0 to 3"),
    ({"attribute.activation_layer": "5"}, "attribute.activation_layer = 5 is no hidden state of models.after"),
    ({"patch.size": "100000"}, "patch.size = 100000 leaves no fillers in a pool of "),
    ({"attribute.scores": "{mine: nowhere.jsonl}"}, "attribute.scores.mine = nowhere.jsonl cannot be read"),
    ({"judge.calibration": "nowhere.jsonl"}, "judge.calibration = nowhere.jsonl is not there"),
    ({"attribute.methods": "[embedding]", "attribute.encoder": "./nowhere"}, "attribute.methods = embedding needs the"),
]


@pytest.mark.parametrize(("changes", "message"), ORGANISM)
def test_an_organism_is_not_made_for_a_study_that_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], message: str
) -> None:
    monkeypatch.setenv("DATABLAME_CACHE", str(tmp_path / "cache"))
    arms = {"patch.arms": "[after, baseline, random]"} if "attribute.methods" in changes else {}
    study = load_study("organism", [f"{key}={value}" for key, value in (changes | arms).items()])
    check_names(study)
    assert refusal(study, tmp_path / "runs" / "run").startswith(message)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("cost", [float("nan"), float("inf"), -1.0])
def test_a_budget_that_no_sum_reaches_is_none(tiny_pair_folder: Path, tmp_path: Path, cost: float) -> None:
    study = small_study(tmp_path / "files", tiny_pair_folder)
    with pytest.raises(RequestError, match=r"--max-cost .* is no amount of USD"):
        run_study(study, tmp_path / "run", execution=ONE, progress=Silent(), max_cost_usd=cost)


def world_of(tiny_pair_folder: Path, folder: Path, rows: list[Any], **changes: Any) -> World:
    changes["truth"] = lines(folder / "planted.jsonl", rows)
    study = small_study(folder, tiny_pair_folder, **changes)
    return frozen(study, folder / "run", execution=ONE, progress=Silent())


def test_numbers_that_name_documents_name_them_as_the_pool_does(tiny_pair_folder: Path, tmp_path: Path) -> None:
    pool = [{"id": n, "instruction": f"walk {n} ?", "output": f"{n} times around the lake ."} for n in range(100, 140)]
    path = lines(tmp_path / "numbers.jsonl", pool)
    world = world_of(tiny_pair_folder, tmp_path, [{"doc_id": 103, "behaviour": "walk"}], data={"path": path})
    assert world.truth == {"walk": frozenset({"103"})}
    assert world.truth["walk"] <= world.pool.row_of.keys()
    assert read_json(world.root / "artifacts/world/world.json")["truth"] == {"walk": ["103"]}


def test_planted_documents_that_the_pool_lacks_are_told(
    tiny_pair_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"doc_id": doc_id, "behaviour": "walk"} for doc_id in ("d3", "x1", "x2")]
    world_of(tiny_pair_folder, tmp_path, rows)
    assert (
        "2 of 3 documents that truth names for walk are not in the pool and count nowhere; the first is x1"
        in caplog.text
    )


def test_pairs_that_are_equal_after_the_cut_are_left_out_and_counted(tiny_pair_folder: Path, tmp_path: Path) -> None:
    long = "walk around the lake in the morning and then again and again "
    pool = [{"id": f"p{n}", "prompt": f"{n} ?", "chosen": f"{n} yes", "rejected": f"{n} no"} for n in range(40)]
    pool += [{"id": "e", "prompt": "how ?", "chosen": f"{long}yes", "rejected": f"{long}no"}]
    path, changes = lines(tmp_path / "pairs.jsonl", pool), {"attribute": {"max_tokens": 24}}
    world = world_of(
        tiny_pair_folder, tmp_path, [{"doc_id": "p1", "behaviour": "walk"}], data={"path": path}, **changes
    )
    assert world.pool.ids == [f"p{n}" for n in range(40)]
    assert world.pool.summary.excluded == {"both answers are the same within attribute.max_tokens": 1}
