"""What a frozen world holds, what it keeps when a run is resumed, and what it refuses with nothing written."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.world.test_documents import good, jsonl
from tests.worlds import ONE, frozen

from datablame.config.schema import Study
from datablame.engine.execute import Execution, Silent
from datablame.errors import RequestError
from datablame.world import World
from datablame.world import freeze as freezing
from datablame.world.freeze import check_unchanged, ensure_pool, freeze, preview
from datablame.world.world import load

PARTS = (
    *("identity", "harmless", "scan", "surface", "sampling", "judge", "attribution judge"),
    *("pool", "prefilter", "attribute", "patch", "everything", "registration", "tokens"),
)


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)


def made_study(folder: Path, models: Path, rows: list[Any] | None = None, **changed: Any) -> Study:
    """Twelve documents, two of them planted, and every kind of file that a study can name."""
    folder.mkdir(parents=True, exist_ok=True)
    jsonl(folder, [good(n) for n in range(12)] if rows is None else rows)
    jsonl(folder, [{"doc_id": f"d{n}", "behaviour": "b"} for n in (1, 2)], "truth.jsonl")
    jsonl(folder, [{"doc_id": "d3", "score": 1.0}], "scores.jsonl")
    values: dict[str, Any] = {
        "name": "made",
        "models": {"before": str(models / "before"), "after": str(models / "after"), "device": "auto"},
        "data": {"path": str(folder / "pool.jsonl")},
        "behaviours": [{"id": "b", "description": "says b", "keywords": ["b"]}],
        "prompts": {
            "attribution": [{"id": "p1", "behaviour": "b", "text": "how ?"}],
            "held_out": [{"id": "p2", "behaviour": "b", "text": "why ?"}],
        },
        "truth": str(folder / "truth.jsonl"),
        "surface": {"max_new_tokens": 8},
        "attribute": {
            "methods": ["gradient"],
            "top_k": 2,
            "max_tokens": 64,
            "scores": {"own": str(folder / "scores.jsonl")},
        },
        "patch": {"arms": ["after", "baseline", "random", "gradient"], "size": 8},
    }
    for field, value in changed.items():
        section, _, key = field.partition("__")
        if key:
            values[section] = {**values.get(section, {}), key: value}
        else:
            values[section] = value
    return Study.model_validate(values)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_pair_folder: Path) -> tuple[Study, World]:
    folder = tmp_path_factory.mktemp("made")
    study = made_study(folder / "inputs", tiny_pair_folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("ANTHROPIC_API_KEY", raising=False)
        return study, frozen(study, folder / "run")


def contents(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


def test_nothing_is_left_to_resolve(made: tuple[Study, World]) -> None:
    _, world = made
    assert (world.models.device, world.study.prefilter.method, world.threads) == ("cpu", "bm25", 1)
    assert (world.study.attribute.layers, world.study.attribute.activation_layer) == ((1,), 1)
    assert (world.judge.classifier, world.judge.attribution) == ("keywords", "keywords")
    assert world.contexts == {"models.before": 160, "models.after": 160}
    assert world.distance is not None
    assert (world.distance.before.precision, world.distance.rounding, world.distance.log_p > 0) == ("float32", 0, True)
    assert world.truth == {"b": frozenset({"d1", "d2"})}
    assert [p.id for p in world.split("attribution")] == ["p1"]
    assert [p.id for p in world.split("held-out")] == ["p2"]
    assert len(world.split("harmless")) == 20
    assert len(world.pool) == 12
    assert world.study.models is world.models
    assert world.study.data is world.data


def test_a_world_is_read_back_as_it_was_frozen(made: tuple[Study, World]) -> None:
    _, world = made
    assert load(world.root) == world
    with pytest.raises(RequestError, match="holds no run; datablame run STUDY --out"):
        load(world.root.parent / "nowhere")


CODE = """
import json, sys
from pathlib import Path
from datablame.engine.execute import Execution, Silent
from datablame.config.schema import Study
from datablame.world.freeze import freeze, preview
from datablame.world.world import load

study, root = Study.model_validate_json(sys.argv[1]), Path(sys.argv[2])
worlds = [freeze(study, root, execution=Execution(1, 1), progress=Silent()), load(root), preview(study, root)]
heavy = [name for name in ("torch", "transformers", "tokenizers", "datasets", "sklearn") if name in sys.modules]
print(json.dumps([heavy, [world.judge.classifier for world in worlds]]))
"""


def test_an_unchanged_study_is_frozen_again_without_torch_or_a_tokenizer(made: tuple[Study, World]) -> None:
    study, world = made

    def written() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in world.root.rglob("*")}

    before, times = contents(world.root), written()
    done = subprocess.run(
        [sys.executable, "-c", CODE, study.model_dump_json(by_alias=True), str(world.root)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "ANTHROPIC_API_KEY": "made-up"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[], ["keywords"] * 3], "nor does a key that comes later change who judges"
    assert (contents(world.root), written()) == (before, times)


def test_what_was_decided_stays_while_the_keys_behind_it_do(
    made: tuple[Study, World], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, world = made
    root = tmp_path / "run"
    shutil.copytree(world.root, root)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "made-up")
    more_threads = freeze(study, root, execution=Execution(1, 2), progress=Silent())
    assert (more_threads.threads, more_threads.judge) == (1, world.judge)
    asked = study.model_copy(update={"judge": study.judge.model_copy(update={"classifier": "claude"})})
    assert frozen(asked, root).judge.classifier == "claude"
    other = study.model_copy(update={"models": study.models.model_copy(update={"device": "cpu"})})  # type: ignore[union-attr]
    assert frozen(other, root).models.device == "cpu"


def test_one_checkpoint_twice_is_refused_with_nothing_written(tiny_pair_folder: Path, tmp_path: Path) -> None:
    study = made_study(tmp_path / "inputs", tiny_pair_folder)
    models = study.models.model_copy(update={"before": study.models.after})  # type: ignore[union-attr]
    study = study.model_copy(update={"models": models})
    with pytest.raises(RequestError, match=r"models\.after = .* has the same weights as models\.before = "):
        frozen(study, tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Notes(Silent):
    """Keeps what a person at the console would read."""

    def __init__(self) -> None:
        self.notes = list[str]()

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_rounding_and_tensors_that_are_not_read_are_told(tiny_pair_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    models = Path(shutil.copytree(tiny_pair_folder, tmp_path / "models"))
    file, progress = models / "before" / "model.safetensors", Notes()
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(file).items()}
    save_file({**tensors, "v_head.weight": tensors["model.norm.weight"].clone()}, file, {"format": "pt"})
    config = models / "after" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": 1e-3, "attention_dropout": 0.1}))
    study = made_study(tmp_path / "inputs", models)
    world = freeze(study, tmp_path / "run", execution=ONE, progress=progress)
    rounding, settings, unread = progress.notes
    assert settings.startswith("warning: the configurations of models.before and models.after differ in rms_norm_eps; ")
    assert rounding.startswith("warning: models.before went through bfloat16, models.after through float32: rounding ")
    assert unread == (
        "warning: models.before holds 1 tensors that its model has no place for and that are not read, the first is "
        "v_head.weight"
    )
    assert load(world.root).distance == world.distance


def test_a_preview_writes_nothing_and_needs_no_pool(made: tuple[Study, World], tmp_path: Path) -> None:
    study, world = made
    seen = preview(study, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert (seen.prompts, seen.truth, seen.models.device) == (world.prompts, world.truth, "cpu")
    assert not seen.pool_is_frozen
    assert seen.identities["data"] == world.identities["data"]
    assert seen.identities["models"].items() <= world.identities["models"].items()


def test_parts_depend_on_contents_and_not_on_where_they_lie(
    made: tuple[Study, World], tiny_pair_folder: Path, tmp_path: Path
) -> None:
    _, world = made
    shutil.copytree(tiny_pair_folder, tmp_path / "models")
    moved = frozen(made_study(tmp_path / "elsewhere", tmp_path / "models"), tmp_path / "run")
    assert {name: moved.part(name) for name in PARTS} == {name: world.part(name) for name in PARTS}
    for name in PARTS:
        text = json.dumps(world.part(name))
        assert "/" not in text.replace("w/o", ""), name
        assert '"cpu"' not in text, name
    with pytest.raises(KeyError):
        world.part("nothing")


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        ({"scan__samples": 3}, {"scan", "everything"}),
        ({"surface__temperature": 0.5}, {"surface", "sampling", "everything"}),
        ({"patch__steps": 3}, {"patch", "everything"}),
        ({"judge__classifier": "keywords"}, {"judge", "everything"}),
        ({"attribute__index": "somewhere", "attribute__projection": 4}, {"attribute", "everything"}),
        ({"data__documents": 10}, {"pool", "everything"}),
        ({"report__tokens": False}, {"tokens"}),
    ],
)
def test_a_changed_key_changes_its_parts_alone(
    made: tuple[Study, World], tiny_pair_folder: Path, changed: dict[str, Any], parts: set[str]
) -> None:
    study, world = made
    assert study.data is not None
    other = preview(made_study(Path(study.data.path).parent, tiny_pair_folder, **changed), world.root)
    same = preview(study, world.root)
    assert {name for name in PARTS if other.part(name) != same.part(name)} - {"judge"} == parts - {"judge"}


def test_weights_and_settings_are_known_by_content(
    made: tuple[Study, World], tiny_pair_folder: Path, tmp_path: Path
) -> None:
    _, world = made
    models = tmp_path / "models"
    shutil.copytree(tiny_pair_folder, models)
    study = made_study(tmp_path / "inputs", models)
    weights = models / "after" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    size = int.from_bytes(content[:8], "little")
    content[8 + size] ^= 1
    weights.write_bytes(content)
    os.utime(weights, (0, 0))
    assert preview(study, tmp_path / "run").identities["models"]["before"] == world.identities["models"]["before"]
    changed = preview(study, tmp_path / "run").identities["models"]["after"]
    assert changed["weights_sha256"] != world.identities["models"]["after"]["weights_sha256"]
    weights.write_bytes(b"\x05")
    with pytest.raises(RequestError, match=r"models\.after = .* its safetensors are damaged"):
        preview(study, tmp_path / "run")


class Dies(Silent):
    """Ends the process without a word at the n-th document."""

    def __init__(self, after: int) -> None:
        self._left = after

    def advance(self, n: int = 1) -> None:
        self._left -= n
        if self._left < 0:
            os._exit(9)


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datablame.world.ingest._GROUP_ROWS", 3)
    return


@pytest.mark.usefixtures("small_groups")
def test_a_run_killed_while_the_pool_is_frozen_ends_with_the_same_bytes(tiny_pair_folder: Path, tmp_path: Path) -> None:
    study = made_study(tmp_path / "inputs", tiny_pair_folder)
    frozen(study, tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    assert set(whole) == {
        f"artifacts/world/{name}" for name in ("pool.json", "pool.parquet", "prompts.parquet", "world.json")
    }
    for after in (0, 1, 5, 9):
        killed = tmp_path / f"killed after {after}"
        child = os.fork()
        if child == 0:
            freeze(study, killed, execution=ONE, progress=Dies(after))
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        assert not (killed / "artifacts/world/pool.parquet").exists()
        frozen(study, killed)
        assert contents(killed) == whole


@pytest.mark.slow
def test_a_large_pool_is_looked_at_first_and_frozen_later(
    tiny_pair_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = made_study(tmp_path / "inputs", tiny_pair_folder)
    at_once = frozen(study, tmp_path / "at once")
    monkeypatch.setattr(freezing, "_AT_ONCE_BYTES", 10)
    later = frozen(study, tmp_path / "later")
    states = [later.pool_is_frozen]
    for _ in range(2):
        ensure_pool(later, execution=ONE, progress=Silent())
        states.append(later.pool_is_frozen)
    assert states == [False, True, True]
    assert contents(tmp_path / "later") == contents(tmp_path / "at once")
    assert [each.id for each in later.pool.documents()] == [each.id for each in at_once.pool.documents()]
    between = frozen(study, tmp_path / "between")
    with (tmp_path / "inputs/pool.jsonl").open("a") as data:
        data.write(json.dumps(good(99)) + "\n")
    with pytest.raises(RequestError, match=r"data\.path = .* has changed since this run began"):
        ensure_pool(between, execution=ONE, progress=Silent())
    assert not between.pool.path.exists()
    monkeypatch.setattr("datablame.world.ingest.FIRST_ROWS", 2)
    data_file = tmp_path / "inputs/pool.jsonl"
    rows, left_out = data_file.read_text(), {"messages": good(1)["messages"], "label": False}
    data_file.write_text(2 * (json.dumps(left_out) + "\n") + rows)
    assert not frozen(study, tmp_path / "sorted").pool_is_frozen, "what can be used may come later"
    data_file.write_text("\0\n" * 2 + rows)
    with pytest.raises(RequestError, match=r"no usable document \(2 rows: not JSON"):
        frozen(study, tmp_path / "garbled")
    odd = made_study(tmp_path / "inputs", tiny_pair_folder)
    (tmp_path / "inputs" / "pool.parquet").write_bytes(b"PAR1")
    torn = odd.model_copy(update={"data": odd.data.model_copy(update={"path": str(tmp_path / "inputs/pool.parquet")})})  # type: ignore[union-attr]
    monkeypatch.setattr(freezing, "_AT_ONCE_BYTES", 0)
    with pytest.raises(RequestError, match="cannot be read as Parquet"):
        frozen(torn, tmp_path / "torn")


@pytest.mark.parametrize(
    ("changed", "line"), [("scores.jsonl", "attribute.scores.own"), ("model.safetensors", "models.after.weights")]
)
def test_what_changes_between_two_phases_is_refused(
    tiny_pair_folder: Path, tmp_path: Path, changed: str, line: str
) -> None:
    models = shutil.copytree(tiny_pair_folder, tmp_path / "models")
    world = frozen(made_study(tmp_path / "inputs", models), tmp_path / "run")
    check_unchanged(world)
    (tmp_path / "inputs/truth.jsonl").unlink()
    check_unchanged(world)
    if changed == "scores.jsonl":
        jsonl(tmp_path / "inputs", [{"doc_id": "d4", "score": 1.0}], changed)
    else:
        shutil.copyfile(models / "before" / changed, models / "after" / changed)
    with pytest.raises(RequestError, match=rf"^{line}\S* is not what it was when this run began; put it back, or"):
        check_unchanged(world)


PAIRS = [{"id": f"d{n}", "chosen": f"so {n}", "rejected": "no", "prompt": "how ?"} for n in range(12)]
REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"attribute__top_k": 13, "prefilter": {"method": "none"}},
        "attribute.top_k = 13 is more than the 12 duplicate clusters of the pool; lower it or enlarge the pool",
    ),
    (
        {"patch__k": [2, 100], "patch__size": 200, "prefilter": {"method": "none"}},
        "patch.k = 100 is more than the 12 duplicate clusters of the pool; lower it or enlarge the pool",
    ),
    (
        {"patch__size": 12},
        "patch.size = 12 leaves no fillers in a pool of 12 documents; lower it or enlarge the pool",
    ),
    (
        {"patch__size": 11},
        "patch.size = 11 leaves 1 documents to stand in for at least 2 removed ones; lower it or enlarge the pool",
    ),
    (
        {"patch__size": 1},
        "patch.size = 1 is less than the 2 flagged documents; raise it or lower attribute.top_k (and the largest of "
        "patch.k)",
    ),
    (
        {"patch__intervention": "swap"},
        "patch.intervention = swap exchanges the answers of preference pairs, and data.path = POOL has none; choose "
        "remove, or a pool of pairs",
    ),
    (
        {"rows": [*PAIRS, good(99)]},
        "data.path = POOL mixes preference pairs with documents of one answer, which are trained on in different ways; "
        "keep one kind",
    ),
    (
        {"rows": [{"id": "d1", "text": "x"}]},
        "attribute.top_k = 2 is more than the 1 duplicate clusters of the pool; lower it or enlarge the pool",
    ),
    (
        {"attribute__max_tokens": 3},
        "attribute.max_tokens = 3 cuts away the response of every document; raise it",
    ),
    (
        {"rows": [good(n) for n in range(11)] + [{"id": "l", "text": "word " * 400}], "attribute__max_tokens": 2048},
        "attribute.max_tokens = 2048 lets a document of ",
    ),
    (
        {"rows": [good(n + 20) for n in range(12)]},
        "attribute.scores.own = SCORES: 1 of 1 documents are not in the pool, the first is d3; take them out, or score "
        "the pool that data names",
    ),
    (
        {"truth": "nowhere.jsonl"},
        "truth = nowhere.jsonl cannot be read (No such file or directory; paths go from ",
    ),
]


@pytest.mark.parametrize(("changed", "line"), REFUSED)
def test_what_only_the_pool_shows_is_refused_with_nothing_written(
    tiny_pair_folder: Path, tmp_path: Path, changed: dict[str, Any], line: str
) -> None:
    study = made_study(tmp_path / "inputs", tiny_pair_folder, **changed)
    with pytest.raises(RequestError) as caught:
        frozen(study, tmp_path / "run")
    names = {"POOL": str(tmp_path / "inputs/pool.jsonl"), "SCORES": str(tmp_path / "inputs/scores.jsonl")}
    for name, path in names.items():
        line = line.replace(name, path)
    assert str(caught.value).startswith(line)
    assert not (tmp_path / "run").exists()


def test_a_pool_that_was_frozen_is_held_against_every_later_study(made: tuple[Study, World], tmp_path: Path) -> None:
    study, world = made
    root = tmp_path / "run"
    shutil.copytree(world.root, root)
    before = contents(root)
    larger = study.model_copy(update={"patch": study.patch.model_copy(update={"size": 12})})
    with pytest.raises(RequestError, match="leaves no fillers in a pool of 12"):
        frozen(larger, root)
    assert contents(root) == before


def test_rows_that_a_file_counts_are_refused_before_it_is_read(tiny_pair_folder: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    study = made_study(tmp_path / "inputs", tiny_pair_folder, patch__size=50)
    pq.write_table(pa.Table.from_pylist([good(n) for n in range(12)]), tmp_path / "pool.parquet")
    data = study.data.model_copy(update={"path": str(tmp_path / "pool.parquet")})  # type: ignore[union-attr]
    with pytest.raises(RequestError, match=r"patch\.size = 50 leaves no fillers in a pool of 12 documents"):
        freeze(study.model_copy(update={"data": data}), tmp_path / "run", execution=ONE, progress=Dies(1))
    assert not (tmp_path / "run").exists()


def test_an_old_run_folder_is_refused_with_the_version_that_wrote_it(made: tuple[Study, World], tmp_path: Path) -> None:
    study, _ = made
    for root, path in ((tmp_path / "a", "artifacts/scan/done.json"), (tmp_path / "b", "artifacts/world/world.json")):
        (root / path).parent.mkdir(parents=True)
        (root / path).write_text('{"format": 0, "datablame": "0.0.7"}')
        (root / "manifest.json").write_text('{"versions": {"datablame": "0.0.7"}}')
        for open_world in (load, lambda root: frozen(study, root), lambda root: preview(study, root)):
            with pytest.raises(RequestError) as caught:
                open_world(root)
            assert str(caught.value) == (
                f"{root} was written by datablame 0.0.7, whose run folders this version does not read; datablame run "
                "STUDY --out NEW starts over"
            )
