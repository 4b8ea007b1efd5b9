"""Items on the machines of a Ray cluster: actors hold a worker's state, the driver alone writes the run folder.

A node needs the same packages and the checkpoints, nothing of the run folder: files that an actor neither sees nor has
go through the object store, once to each. A node that dies loses what it was at, which others do again; one that joins
is used from the next item on. (Ray: Moritz et al., OSDI 2018, arXiv 1712.05889.)
"""

import contextlib
import logging
import os
import platform
import socket
import tempfile
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from datablame.engine.files import write_atomic
from datablame.engine.mirror import Mirror, Stamp, packed, stamps, unpacked
from datablame.engine.usage import Worked, heard, worked
from datablame.errors import DatablameError, PhaseError, RequestError, problem

if TYPE_CHECKING:
    from datablame.engine.execute import Cluster

C = TypeVar("C")
I = TypeVar("I")  # noqa: E741
R = TypeVar("R")

_logger = logging.getLogger(__name__)
_SAME = ("datablame", "torch", "transformers")
"""Packages whose versions results depend on."""
_LOOK_SECONDS = 2.0
"""After so long without a finished item the cluster is asked for new nodes."""
_ANSWER_SECONDS = 5.0
_DEATHS = 3
"""Of actors on the same item, or one after another as they begin, before it is given up."""


def connected(address: str) -> Any:
    """Ray, as a client of the cluster at `auto` or HOST:PORT.

    Raises RequestError where Ray is not installed or no cluster answers.
    """
    try:
        import ray
    except ImportError:
        raise RequestError(problem("engine", "no ray")) from None
    if not ray.is_initialized():
        try:
            if address != "auto":
                # Ray itself asks again for minutes.
                host, _, port = address.rpartition(":")
                socket.create_connection((host, int(port)), _ANSWER_SECONDS).close()
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            why = " ".join(str(error).split())[:200]
            raise RequestError(problem("engine", "no cluster", address=address, why=why)) from None
    return ray


def versions() -> dict[str, str]:
    """Of what has to be the same on every node."""
    return {"Python": platform.python_version(), **{package: metadata.version(package) for package in _SAME}}


class _Lacking(NamedTuple):
    """Files of the run folder that an actor neither sees nor was sent."""

    names: list[str]


class Worker:
    """An actor: what a worker process is on one machine."""

    def __init__(self, where: str, threads: int) -> None:
        from datablame.engine.workers import use_threads

        # Paths of a study may be relative.
        with contextlib.suppress(OSError):
            os.chdir(where)
        self._folder = tempfile.TemporaryDirectory(prefix="datablame-")
        self._mirror = Mirror(Path(self._folder.name))
        self._context: tuple[str, Callable[..., Any], Any] | None = None
        use_threads(threads)

    def about(self) -> tuple[str, dict[str, str]]:
        """Its node's name, and the versions there."""
        return socket.gethostname(), versions()

    def work(
        self, stage: str, sent: bytes, root: str, wanted: Mapping[str, tuple[Stamp, Any]], item: bytes
    ) -> tuple[Worked, dict[str, bytes]] | DatablameError | _Lacking:
        """One item's result with the files that it wrote; or what stopped it, or which files it lacks.

        `wanted` holds references, which are followed for what is not here yet; None where a file was not sent so far.
        """
        import ray

        try:
            if self._context is None or self._context[0] != stage:
                self._context = None
                stamps_of = {name: stamp for name, (stamp, _) in wanted.items()}
                if not_sent := [n for n in self._mirror.lacking(Path(root), stamps_of) if wanted[n][1] is None]:
                    return _Lacking(not_sent)
                self._mirror.update(Path(root), stamps_of, lambda name: bytes(ray.get(wanted[name][1])))
                setup, work = unpacked(sent, self._mirror.root)
                self._context = stage, work, setup()
            _, work, context = self._context
            one = unpacked(item, self._mirror.root)
            return worked(lambda: work(context, one)), self._mirror.take_new()
        except DatablameError as error:
            return type(error)(f"on {socket.gethostname()}: {error}")


class _Team:
    """The actors of a run; they outlive a phase, as worker processes do."""

    def __init__(self, ray: Any, cluster: "Cluster", threads: int) -> None:
        self.asked = cluster, threads
        self.ready: list[Any] = []
        self._ray, self._actors = ray, list[Any]()
        self._asked_of: dict[Any, tuple[Any, bool]] = {}
        """Actors whose answer is awaited by its reference, and whether they never answered before."""
        cards = cluster.cards if "GPU" in ray.cluster_resources() else 0
        self._needs = {"num_cpus": threads, "num_gpus": cards}
        self._key, self._each = ("GPU", cards) if cards else ("CPU", threads)
        self._warned, self._failures = False, 0
        self._files: dict[Path, tuple[Stamp, Any]] = {}

    def files(self, root: Path) -> dict[str, tuple[Stamp, Any]]:
        """The files of a run folder by name, with what was put into the object store of them."""
        now = {root / name: stamp for name, stamp in stamps(root).items()}
        kept = {path: held for path, held in self._files.items() if held[0] == now.get(path)}
        self._files = {path: kept.get(path, (stamp, None)) for path, stamp in now.items()}
        return {path.relative_to(root).as_posix(): held for path, held in self._files.items()}

    def sent(self, root: Path, names: Iterable[str]) -> dict[str, tuple[Stamp, Any]]:
        """The files, each put into the object store once."""
        found = {}
        for name in names:
            stamp, reference = self._files[root / name]
            if reference is None:
                reference = self._ray.put((root / name).read_bytes())
            found[name] = self._files[root / name] = stamp, reference
        return found

    def grow(self) -> None:
        """Have as many actors as the nodes that are alive have room for."""
        alive = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        room = sum(int(has.get(self._key, 0) // self._each) for has in alive)
        workers = self.asked[0].workers
        for _ in range(min(room, workers or room) - len(self._actors)):
            actor = self._ray.remote(**self._needs)(Worker).remote(str(Path.cwd()), self.asked[1])
            self._actors.append(actor)
            self._asked_of[actor.about.remote()] = actor, True
        if not self._actors and not self._warned:
            self._warned = True
            _logger.warning("no node of the cluster has room for a worker (%s %s); waiting", self._each, self._key)

    @property
    def greetings(self) -> list[Any]:
        """What is awaited of actors that have not begun, or may have died since."""
        return [*self._asked_of]

    def welcome(self, reference: Any) -> None:
        """Take an actor that answers.

        Raises RequestError where it has other versions than this process, PhaseError where one after another fails.
        """
        actor, new = self._asked_of.pop(reference)
        try:
            node, theirs = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self._actors.remove(actor)
            self._failures += new
            if self._failures >= _DEATHS:
                why = " ".join(str(error).split())[-300:]
                raise PhaseError(problem("engine", "no worker", n=_DEATHS, why=why)) from None
            return
        self._failures = 0
        for package, version in versions().items():
            if theirs[package] != version:
                about = {"node": node, "package": package, "theirs": theirs[package], "ours": version}
                raise RequestError(problem("engine", "other version", **about))
        self.ready.append(actor)

    def lose(self, actor: Any) -> None:
        """An actor has died; those that are idle may have, with its node, and are asked before they get an item."""
        self._actors.remove(actor)
        self._asked_of |= {idle.about.remote(): (idle, False) for idle in self.ready}
        self.ready.clear()

    def end(self) -> None:
        """Stop all actors."""
        for actor in self._actors:
            self._ray.kill(actor)


_team: _Team | None = None


def on_cluster(
    setup: Callable[[], C],
    work: Callable[[C, I], R],
    items: Mapping[str, I],
    cluster: "Cluster",
    threads: int,
    root: Path,
) -> Generator[tuple[str, R], None, None]:
    """Each item's key and result as it finishes; the files that it wrote are in the run folder before.

    Raises PhaseError when an item has ended three actors.
    """
    global _team
    ray = connected(cluster.address)
    if _team is None or _team.asked != (cluster, threads):
        if _team is not None:
            _team.end()
        _team = _Team(ray, cluster, threads)
    team, waiting, deaths = _team, deque(items), Counter[str]()
    sent = uuid.uuid4().hex, ray.put(packed((setup, work), root)), str(root.absolute())
    wanted = team.files(root)
    running: dict[Any, tuple[str, Any]] = {}
    try:
        while waiting or running:
            team.grow()
            while waiting and team.ready:
                key, actor = waiting.popleft(), team.ready.pop()
                running[actor.work.remote(*sent, wanted, packed(items[key], root))] = key, actor
            done, awaited = [], [*running, *team.greetings]
            if awaited:
                done, _ = ray.wait(awaited, num_returns=1, timeout=_LOOK_SECONDS)
            else:
                time.sleep(_LOOK_SECONDS)
            for reference in done:
                if reference not in running:
                    team.welcome(reference)
                    continue
                key, actor = running.pop(reference)
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    # What no one foresaw, as it was raised there.
                    raise error.as_instanceof_cause() from None
                except ray.exceptions.RayError:
                    # The actor or its node died, by lack of memory for instance, and its result with it.
                    team.lose(actor)
                    deaths[key] += 1
                    if deaths[key] >= _DEATHS:
                        raise PhaseError(problem("engine", "deadly", item=key, n=_DEATHS)) from None
                    _logger.warning("a worker of the cluster died; %s runs again", key)
                    waiting.append(key)
                    continue
                if isinstance(result, DatablameError):
                    raise result
                team.ready.append(actor)
                if isinstance(result, _Lacking):
                    wanted |= team.sent(root, result.names)
                    waiting.appendleft(key)
                    continue
                taken, files = result
                heard(taken)
                for name, content in files.items():
                    write_atomic(root / name, content)
                yield key, taken.result
    finally:
        if waiting or running:
            team.end()
            _team = None
