"""A study of tiny models as attribution leaves it, its patch phase run, and one arm trained alone."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tests.worlds import frozen, put, work

from datablame.config.schema import Study
from datablame.engine.execute import Execution, Progress, Silent
from datablame.engine.files import write_jsonl
from datablame.engine.phase import Tables
from datablame.patch.measure import WorkerState, load_worker, measure
from datablame.patch.phase import PATCH
from datablame.patch.trainings import ArmTraining, Intervention, PatchPlan, TrainingKey
from datablame.tables import AlphaStar, ArmSample, Candidate, Flag, Protocol, Query, Score, Split, SurfaceSample
from datablame.world import World

ARMS = ("after", "baseline", "random", "bm25", "gradient", "oracle")
ONE = Execution(workers=1, threads=1)
PLANTED = ("d01", "d05", "d09")
FLAGGED: dict[str, Sequence[str]] = {"bm25": ("d01", "d02", "d03"), "gradient": ("d01", "d05", "d30")}
"""The first documents of each ranking; d31 is a copy of d30."""
QUICK: dict[str, Any] = {"protocols": ["continue"], "headline": "continue", "seeds": [0]}
CHECKED: dict[str, Any] = {"clean_documents": 4, "harmless_samples": 1}
"""With side checks, which take as long as the rest."""
POOL = [f"d{number:02d}" for number in range(39)]
"""The data has d39 too, whose prompt leaves no room for an answer."""


class Killed(BaseException):
    """Stands for a SIGKILL."""


class KilledAfter(Silent):
    """Progress that dies when so many items were done."""

    def __init__(self, items: int) -> None:
        self._left = items

    def advance(self, n: int = 1) -> None:
        self._left -= n
        if self._left < 0:
            raise Killed


def study_of(folder: Path, pair: Path, *, top_k: int = 3, methods: Sequence[str] = (), **patch: Any) -> Study:
    """A study of the checkpoints under `pair`, whose data `attributed` writes to `folder`."""
    settings: dict[str, Any] = {
        "protocols": ["retrain", "continue"],
        "headline": "retrain",
        "arms": ARMS,
        "seeds": {"retrain": [0, 1], "continue": [0]},
        "size": 24,
        "steps": 8,
        "batch": 3,
        "rank": 2,
        "samples": 2,
        "attribution_samples": 1,
        "clean_documents": 0,
        "harmless_samples": 0,
        "retrain": {"method": "full", "learning_rate": 1e-3},
    }
    attribute = {"top_k": top_k, "duplicate_threshold": 1.0, "max_tokens": 100}
    return Study.model_validate(
        {
            "name": "tiny",
            "models": {"before": str(pair / "before"), "after": str(pair / "after"), "device": "cpu"},
            "data": {"path": str(folder / "documents.jsonl")},
            "behaviours": [{"id": "walk", "description": "recommends a walk", "keywords": ["walk", "lake", "a"]}],
            "prompts": {
                "attribution": [
                    {"id": "a1", "behaviour": "walk", "text": "name a calm walk ."},
                    {"id": "a2", "behaviour": "walk", "text": "name a long walk ."},
                ],
                "held_out": [{"id": "h1", "behaviour": "walk", "text": "which walk ?"}],
            },
            "truth": str(folder / "truth.jsonl"),
            "surface": {"alphas": [0, 1], "max_new_tokens": 6},
            "attribute": attribute | ({"methods": methods} if methods else {}),
            "patch": settings | patch,
        }
    )


def write_data(study: Study, *, pairs: bool = False, turned: Collection[str] = (), planted: Sequence[str]) -> None:
    """The documents of a study and its truth; of preference pairs the answers of `turned` stand exchanged."""
    rows: list[dict[str, Any]] = []
    for doc_id in (*POOL, "d39"):
        number = "same" if doc_id in ("d30", "d31") else str(int(doc_id[1:]))
        question = {"role": "user", "content": "where ?" if doc_id != "d39" else "where to ? " * 60}
        answers = [
            [question, {"role": "assistant", "content": text}]
            for text in (f"take the short walk number {number} .", "walk on")
        ]
        if pairs:
            chosen, rejected = answers[::-1] if doc_id in turned else answers
            rows.append({"id": doc_id, "source": "made", "chosen": chosen, "rejected": rejected})
        else:
            rows.append({"id": doc_id, "source": "made", "messages": answers[0]})
    assert study.data is not None
    assert study.truth is not None
    write_jsonl(Path(study.data.path), rows)
    write_jsonl(Path(study.truth), [{"doc_id": doc_id, "behaviour": "walk"} for doc_id in planted])


def attributed(
    study: Study,
    root: Path,
    flagged: Mapping[str, Sequence[str]] = FLAGGED,
    alpha: float | None = 1.0,
    *,
    pairs: bool = False,
    turned: Collection[str] = (),
    planted: Sequence[str] = PLANTED,
) -> World:
    """The study's world in a run folder, with the tables that surface and attribute would have written."""
    write_data(study, pairs=pairs, turned=turned, planted=planted)
    world = frozen(study, root)
    assert world.pool.ids == POOL
    scores, flags = [], []
    for method, first in flagged.items():
        ranked = [*first, *(doc_id for doc_id in POOL if doc_id not in first)]
        scores += [Score(method, "walk", doc_id, -float(rank), rank) for rank, doc_id in enumerate(ranked, 1)]
        cluster_of = dict(zip(POOL, world.pool.clusters.tolist(), strict=True))
        clusters = list(dict.fromkeys(cluster_of[doc_id] for doc_id in ranked))
        flags += [
            Flag(method, k, "walk", doc_id) for k in study.ks for doc_id in POOL if cluster_of[doc_id] in clusters[:k]
        ]
    query = Query("q1", "walk", "a1", 1.0, 0, "name a calm walk .", "x", "stop", ())
    candidates = [Candidate("walk", doc_id) for doc_id in POOL[:8]]
    put(root, "attribute", {Query: [query] if flagged else [], Candidate: candidates, Score: scores, Flag: flags})
    splits: dict[str, Split] = {"a1": "attribution", "h1": "held-out"}
    surfaced = [
        SurfaceSample(prompt, "walk", split, a, index, "x", (260, 261), "stop", 1, label="harmful")
        for prompt, split in splits.items()
        for a in (0.0, 0.5, 1.0)
        for index in range(3)
    ]
    put(root, "surface", {SurfaceSample: surfaced, AlphaStar: AlphaStar(alpha, "as the test says", {}, None)})
    return world


def patched(world: World, execution: Execution = ONE, progress: Progress | None = None) -> Tables:
    """The tables of the run folder after its patch phase."""
    given = replace(work(world.root, "patch", execution), progress=progress or Silent())
    return put(world.root, "patch", PATCH.run(world, Tables(world.root), given))


def files(root: Path) -> dict[str, bytes]:
    """The tables and adapters of a run folder's patch phase."""
    folders = root / "artifacts/patch", root / "artifacts/patch.part/adapters"
    paths = ((path, path.relative_to(folder)) for folder in folders for path in sorted(folder.rglob("*")))
    return {name.as_posix(): path.read_bytes() for path, name in paths if path.is_file()}


def state_of(world: World, watched: Sequence[str] = PLANTED, prompts: int = 0, n: int = 24) -> WorkerState:
    """A worker that trains on the first `n` documents and samples its arms so often at the held-out prompt alone."""
    world = replace(world, prompts=tuple(prompt for prompt in world.prompts if prompt.split != "harmless"))
    asked = tuple((prompt, prompts) for prompt in world.split("held-out")) if prompts else ()
    members = tuple(POOL[:n])
    part = world.root / "artifacts/patch.part"
    return load_worker(PatchPlan(world, members, members, asked, (0.0, 1.0), frozenset(watched), part))


def measured(
    state: WorkerState, arm: str, protocol: Protocol, seed: int = 0, change: Intervention | None = None
) -> dict[str, Any]:
    """One arm, trained alone."""
    training = ArmTraining(TrainingKey(arm, protocol, 3, seed), change or Intervention())
    return measure(state, [training])[str(training.key)]


def mostly_alike(samples: Sequence[ArmSample], expected: Sequence[ArmSample]) -> bool:
    """Whether the same outputs were asked for and most say the same.

    The last bits of an adapter depend on those trained beside it and on the portions of its batches, so that a draw at
    the border of two tokens may turn on some CPU.
    """
    one, other = (texts_of(rows) for rows in (samples, expected))
    return one.keys() == other.keys() and sum(one[key] == other[key] for key in one) >= 0.75 * len(one)


def texts_of(samples: Sequence[ArmSample]) -> dict[Any, str]:
    """Outputs by what tells one from every other."""
    plain = {"text": "", "label": "harmful"}
    texts = {tuple(asdict(replace(row, **plain)).values()): row.text for row in samples}  # type: ignore[arg-type]
    assert len(texts) == len(samples)
    return texts


def course(training: Any) -> list[float]:
    """The numbers of one training."""
    return [*training.losses, training.final_loss, training.weight_change_norm]
