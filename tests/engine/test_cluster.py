"""Items on a real Ray cluster of two nodes on this machine: what comes back, who dies, who is refused."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.finished import finished
from tests.test_resume import REDUCED, contents

from datablame.engine import cluster as subject
from datablame.engine.execute import Cluster, Execution, Silent, run_items
from datablame.errors import PhaseError, RequestError

pytest.importorskip("ray")
_PATIENCE_SECONDS = 90
NODE = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    import ray
    from ray.cluster_utils import Cluster as Nodes

    nodes = Nodes(initialize_head=True, head_node_args=NODE)
    nodes.add_node(num_cpus=1, object_store_memory=100 << 20)
    yield nodes
    ray.shutdown()
    nodes.shutdown()  # type: ignore[no-untyped-call]


class Place(NamedTuple):
    """Where items of a test work, and how many workers have to have one before any but the first ends."""

    root: Path
    seen: Path
    workers: int


def _place(place: Place) -> Place:
    return place


def _wait(place: Place, item: int) -> None:
    """A worker that starts late gets an item too; where none starts, the test fails and does not hang."""
    import ray

    (place.seen / str(ray.get_runtime_context().get_actor_id())).touch()
    until = time.monotonic() + _PATIENCE_SECONDS
    while item and len(list(place.seen.iterdir())) < place.workers and time.monotonic() < until:
        time.sleep(0.1)


def _read_and_write(place: Place, item: int) -> tuple[str, int]:
    """What is there of the world, on which node; a file of the item's own."""
    import ray

    _wait(place, item)
    folder = place.root
    (folder / "artifacts/attribute.part/items").mkdir(parents=True, exist_ok=True)
    (folder / f"artifacts/attribute.part/items/{item}.txt").write_text(str(item))
    text = (folder / "artifacts/world/world.txt").read_text()
    return ray.get_runtime_context().get_node_id(), item + int(text)


def _look(place: Place, item: int) -> tuple[bool, str]:
    """Whether the world's file is the run folder's own, and its text."""
    _wait(place, item)
    path = place.root / "artifacts/world/world.txt"
    return path.is_symlink(), path.read_text()


def _die_once(marker: str, item: int) -> int:
    try:
        (Path(marker) / str(item)).touch(exist_ok=False)
    except FileExistsError:
        return item
    os.kill(os.getpid(), signal.SIGKILL)
    return -1


def _die_at_1(_: str, item: int) -> int:
    if item == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def _refuse(_: str, item: int) -> int:
    raise PhaseError(f"item {item} cannot be done")


def _made(root: Path, workers: int) -> Any:
    """A run folder with a file of the world, and beside the test's folder a place where workers are seen."""
    seen = root.parent.with_name(f"{root.parent.name}-seen")
    seen.mkdir()
    (root / "artifacts/world").mkdir(parents=True)
    (root / "artifacts/world/world.txt").write_text("100")
    return partial(_place, Place(root, seen, workers))


def _ran(nodes: Any, root: Path, setup: Any, work: Any, n: int = 4) -> dict[str, Any]:
    root.mkdir(exist_ok=True)
    results: dict[str, Any] = {}
    _run(nodes, root, setup, work, n, results.__setitem__)
    return results


def _run(nodes: Any, root: Path, setup: Any, work: Any, n: int, done: Any) -> None:
    run_items(
        setup,
        work,
        {f"item {i}": i for i in range(n)},
        execution=Execution(1, 1, cluster=Cluster(nodes.address, None, 0)),
        done=done,
        progress=Silent(),
        description="trying",
        root=root,
    )


def test_both_nodes_work_and_what_they_write_is_in_the_run_folder(nodes: Any, tmp_path: Path) -> None:
    root = tmp_path / "run"
    results = _ran(nodes, root, _made(root, 2), _read_and_write, 8)
    assert {key: number for key, (_, number) in results.items()} == {f"item {i}": 100 + i for i in range(8)}
    assert len({node for node, _ in results.values()}) == 2
    items = root / "artifacts/attribute.part/items"
    assert {path.name: path.read_text() for path in items.iterdir()} == {f"{i}.txt": str(i) for i in range(8)}


@pytest.fixture
def blind(nodes: Any, tmp_path: Path) -> Iterator[None]:
    """A third node, in a mount namespace of its own, where the test's folder is empty."""
    import ray

    hide = f"mount -t tmpfs none {tmp_path}"
    if subprocess.run(["unshare", "--mount", "bash", "-c", hide], capture_output=True).returncode:
        pytest.skip("mount namespaces are not allowed here")
    start = f"{sys.executable} -m ray.scripts.scripts start --address {nodes.address} --num-cpus 1 --block"
    hidden = f"{hide} && exec {start} --object-store-memory {100 << 20}"
    ray.init(address=nodes.address, ignore_reinit_error=True)

    def alive() -> int:
        every: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        return sum(node["Alive"] for node in every)

    before = alive()
    process = subprocess.Popen(
        ["unshare", "--mount", "bash", "-c", hidden],
        stdout=subprocess.DEVNULL,
        process_group=0,
        stderr=subprocess.STDOUT,
    )
    try:
        while alive() <= before:
            assert process.poll() is None
            time.sleep(0.2)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


@pytest.mark.usefixtures("blind")
def test_a_node_that_does_not_see_the_run_folder_is_sent_its_files(nodes: Any, tmp_path: Path) -> None:
    root = tmp_path / "run"
    results = _ran(nodes, root, _made(root, 3), _look, 12)
    assert {seen for seen, _ in results.values()} == {True, False}
    assert {text for _, text in results.values()} == {"100"}


def test_a_node_that_joins_is_used(nodes: Any, tmp_path: Path) -> None:
    root, joined = tmp_path / "run", list[Any]()
    results: dict[str, Any] = {}

    def done(key: str, result: Any) -> None:
        results[key] = result
        if not joined:
            joined.append(nodes.add_node(num_cpus=1, object_store_memory=100 << 20))

    _run(nodes, root, _made(root, 3), _read_and_write, 12, done)
    assert joined[0].node_id in {node for node, _ in results.values()}
    nodes.remove_node(joined[0])


def test_idle_workers_whose_node_died_are_not_counted_against_an_item(nodes: Any, tmp_path: Path) -> None:
    root = tmp_path / "run"
    setup = _made(root, 5)
    joined = nodes.add_node(num_cpus=3, object_store_memory=100 << 20)
    results = _ran(nodes, root, setup, _read_and_write, 12)
    assert joined.node_id in {node for node, _ in results.values()}
    nodes.remove_node(joined)
    for _ in range(3):
        assert [number for _, number in _ran(nodes, root, setup, _read_and_write, 1).values()] == [100]


def test_an_item_whose_worker_dies_runs_again_and_is_given_up_the_third_time(nodes: Any, tmp_path: Path) -> None:
    (tmp_path / "markers").mkdir()
    results = _ran(nodes, tmp_path / "run", partial(str, tmp_path / "markers"), _die_once, 3)
    assert results == {f"item {i}": i for i in range(3)}
    with pytest.raises(PhaseError, match=r"^item 1 ended its worker process 3 times"):
        _ran(nodes, tmp_path / "run", partial(str, ""), _die_at_1)


def test_what_stops_an_item_is_told_with_its_node(nodes: Any, tmp_path: Path) -> None:
    with pytest.raises(PhaseError, match=r"^on .+: item \d cannot be done"):
        _ran(nodes, tmp_path / "run", partial(str, ""), _refuse)


def test_a_node_with_another_version_is_refused_by_name(
    nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = {**subject.versions(), "torch": "1.0"}
    monkeypatch.setattr(subject, "versions", lambda: ours)
    with pytest.raises(RequestError, match=r"^the node .+ has torch .+, and this process 1\.0; "):
        _ran(nodes, tmp_path / "run", partial(str, ""), _die_at_1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--executor", "ray", "--address", "127.0.0.1:1"], "--address 127.0.0.1:1: no Ray cluster answers there"),
        (["--executor", "slurm"], "--executor slurm is none; choose local or ray"),
        (["--address", "auto"], "--address auto is of a Ray cluster; add --executor ray"),
        (["--executor", "ray", "--devices", "0"], "on a cluster Ray chooses them"),
    ],
)
def test_a_cluster_that_cannot_be_had_is_refused_and_nothing_written(
    options: list[str], message: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "datablame", "run", "organism", "--out", str(tmp_path / "run"), *options]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert [*tmp_path.iterdir()] == []


def _begun(root: Path, executor: Mapping[str, str], cache: Path) -> "subprocess.Popen[bytes]":
    words = [word for override in REDUCED for word in ("--set", override)]
    words += [word for option in executor.items() for word in option]
    command = [sys.executable, "-m", "datablame", "run", "organism", "--out", str(root), "--resume", *words]
    return subprocess.Popen(command, env={**os.environ, "DATABLAME_CACHE": str(cache), "OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_a_study_on_a_cluster_that_loses_a_node_and_gains_one_ends_with_the_same_bytes(
    nodes: Any, tmp_path: Path
) -> None:
    here, there, cache = tmp_path / "here", tmp_path / "there", tmp_path / "cache"
    local = _begun(here, {"--workers": "2"}, cache)
    local.wait()
    assert finished(local, here)
    dying = nodes.add_node(num_cpus=1, object_store_memory=100 << 20)
    on_ray = _begun(there, {"--executor": "ray", "--address": nodes.address}, cache)
    journal = there / "artifacts/patch.part/journal.jsonl"
    while not (journal.exists() and journal.stat().st_size):
        assert on_ray.poll() is None
        time.sleep(0.1)
    nodes.remove_node(dying, allow_graceful=False)
    nodes.add_node(num_cpus=1, object_store_memory=100 << 20)
    on_ray.wait()
    assert finished(on_ray, there)
    assert contents(here, cache) == contents(there, cache)
