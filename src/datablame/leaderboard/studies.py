"""The studies behind a leaderboard: an ordinary run for each organism, which is a kind of planting and a seed."""

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from datablame.config.schema import Study
from datablame.engine.execute import Execution, Progress, Silent, run_items
from datablame.engine.files import packaged_yaml
from datablame.errors import RequestError, one_line, problem
from datablame.patch.phase import PATCH
from datablame.patch.registry import ARMS
from datablame.pipeline.checks import load
from datablame.pipeline.phases import open_run
from datablame.pipeline.run import run_study

_SEED = re.compile(r"\d{1,9}")


class Organism(NamedTuple):
    """One organism of the family."""

    kind: str
    seed: int

    def __str__(self) -> str:
        """Names its run folder."""
        return f"{self.kind}-{self.seed}"


class Kind(NamedTuple):
    """How documents are planted."""

    about: str
    overrides: Mapping[str, Any]
    """Keys of the study that are other there, as `patch.k`."""
    without: tuple[str, ...]
    """Methods that cannot be had there."""


def kinds() -> dict[str, Kind]:
    """Every kind by name, in the order in which they are shown."""
    known = packaged_yaml("datablame.leaderboard", "kinds.yaml")
    return {name: Kind(of["about"], of.get("set", {}), tuple(of.get("without", ()))) for name, of in known.items()}


def family(of_kinds: Sequence[str], seeds: Sequence[str]) -> list[Organism]:
    """Every kind with every seed.

    Raises:
        RequestError: a kind is not known, a seed is no whole number, one is named twice, or there is none.
    """
    known = kinds()
    for name in of_kinds:
        if name not in known:
            raise RequestError(problem("leaderboard", "unknown kind", name=name, known=", ".join(known)))
    for seed in seeds:
        if not _SEED.fullmatch(seed):
            raise RequestError(problem("leaderboard", "no seed", seed=seed))
    for option, values in (("kinds", of_kinds), ("seeds", seeds)):
        if not values or len(set(values)) < len(values):
            raise RequestError(problem("leaderboard", "twice", option=option, values=",".join(values)))
    return [Organism(kind, int(seed)) for kind in of_kinds for seed in seeds]


def patterns(given: Sequence[str]) -> dict[str, str]:
    """Patterns of score files by name, from NAME=PATTERN; RequestError where one is not that."""
    named = {text: [part.strip() for part in text.partition("=")] for text in given}
    for text, parts in named.items():
        if not all(parts):
            raise RequestError(problem("leaderboard", "no scores", given=text))
    return {name: pattern for name, _, pattern in named.values()}


def studies_of(
    source: str,
    organisms: Sequence[Organism],
    methods: Sequence[str] | None,
    scores: Mapping[str, str],
    overrides: Sequence[str],
) -> dict[Organism, Study]:
    """The study of every organism: `source` with its kind's keys, then `overrides`, then what it is; methods are arms.

    `scores` are patterns of JSONL files by name, with {kind} and {seed}; an organism without its file goes without.

    Raises:
        RequestError: as `pipeline.checks.load`; a pattern is no file for any organism, or one file for several.
    """
    known, files = kinds(), {name: _files(name, pattern, organisms) for name, pattern in scores.items()}
    chosen = list(load(source, overrides).attribute.methods if methods is None else methods)
    studies = {}
    for organism in organisms:
        kind = known[organism.kind]
        brought = {name: str(paths[organism]) for name, paths in files.items() if organism in paths}
        names = [*(name for name in chosen if name not in kind.without), *brought]
        arms = ["after", "baseline", "random", "oracle", *(name for name in names if name not in ARMS.all())]
        keys = {
            "organism.planting": organism.kind,
            "organism.seed": organism.seed,
            # Noise of sampling and training is no more shared by organisms than their truth.
            "seed": organism.seed,
            "attribute.methods": names,
            "attribute.scores": brought,
            "patch.arms": arms,
            "name": str(organism),
        }
        studies[organism] = load(source, [*_written(kind.overrides), *overrides, *_written(keys)])
    return studies


def _written(keys: Mapping[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in keys.items()]


def _files(name: str, pattern: str, organisms: Sequence[Organism]) -> dict[Organism, Path]:
    paths = {each: Path(pattern.replace("{kind}", each.kind).replace("{seed}", str(each.seed))) for each in organisms}
    if len(set(paths.values())) < len(paths):
        raise RequestError(problem("leaderboard", "one file", name=name, pattern=pattern))
    there = {organism: path.resolve() for organism, path in paths.items() if path.is_file()}
    if not there:
        raise RequestError(problem("leaderboard", "no file", name=name, pattern=pattern, first=paths[organisms[0]]))
    return there


class _Ran(NamedTuple):
    """How one study ended: what stopped it, if anything did, and what it warned of."""

    error: str | None
    warnings: tuple[str, ...]


def run_all(
    studies: Mapping[Organism, Study],
    out: Path,
    *,
    done: Callable[[Organism], None],
    execution: Execution,
    progress: Progress,
) -> dict[Organism, str]:
    """Bring every organism's run folder up to date, each in one process; those that failed, with why."""
    by_name, failures = {str(organism): organism for organism in studies}, dict[Organism, str]()

    def ended(name: str, ran: _Ran) -> None:
        for warning in ran.warnings:
            progress.note(f"{name}: {warning}")
        if ran.error is not None:
            failures[by_name[name]] = ran.error
            progress.note(f"{name} failed: {ran.error}")
        else:
            done(by_name[name])

    run_items(
        _no_state,
        partial(_run, out),
        {str(organism): study for organism, study in studies.items()},
        execution=execution,
        done=ended,
        progress=progress,
        description="leaderboard: organisms",
    )
    return failures


def _no_state() -> None:
    """Nothing is shared by studies but their caches on disk."""


def _run(out: Path, _: None, study: Study) -> _Ran:
    """One study up to its patching, in this process; whatever a stranger's method raises stops no other study."""
    warnings = list[str]()

    class _Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                warnings.append(one_line(record.getMessage()))

    logger, handler = logging.getLogger("datablame"), _Heard()
    before, logger.handlers, logger.propagate = logger.handlers, [handler], False
    try:
        root = out / study.name
        opened = open_run(root, study, resume=True)
        run_study(opened, root, execution=Execution(1, 1), progress=Silent(), until=PATCH.name)
    except Exception as error:
        return _Ran(one_line(f"{error}" or type(error).__name__), tuple(dict.fromkeys(warnings)))
    finally:
        logger.handlers, logger.propagate = before, True
    return _Ran(None, tuple(dict.fromkeys(warnings)))
