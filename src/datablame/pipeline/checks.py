"""Names of methods and arms, and combinations that hang on what is registered under them, looked at before a run."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from datablame.attribute.registry import METHODS, is_voter
from datablame.config.file import load_study
from datablame.config.schema import Study
from datablame.errors import RequestError, problem
from datablame.patch.registry import ARMS, bottom_method

_COMPARED = ("after", "baseline", "random")
"""Roles of arms that no comparison can do without."""


def load(source: str, overrides: Sequence[str] = ()) -> Study:
    """The study of a YAML file or preset (`study.file.load_study`) whose names are known.

    Raises:
        RequestError: as `load_study` and `check_names`, after the file's name.
    """
    study = load_study(source, overrides)
    try:
        check_names(study)
    except RequestError as error:
        raise RequestError(f"{Path(source).name}: {error}") from None
    return study


def check_names(study: Study) -> None:
    """Refuse methods and arms that are not known or cannot be together.

    Raises:
        RequestError: the first of them, with the remedy.
    """
    for name, values in _problems(study):
        raise RequestError(problem("pipeline", name, **values))


def _problems(study: Study) -> Iterator[tuple[str, dict[str, object]]]:
    """Each may rest on those before it being none."""
    known, kinds, scores, methods = METHODS.all(), ARMS.all(), study.attribute.scores, study.attribute.methods
    for name in scores:
        if name in known or name in kinds:
            yield "taken name", {"name": name}
    for name in methods:
        if name not in known and name not in scores:
            choices = ", ".join((*known, *scores))
            yield "unknown method", {"name": name, "choices": choices, "broken": _broken(METHODS.problems)}
    voters = {name for name in methods if name in scores or is_voter(known[name])}
    for name in methods:
        # What is neither a control nor a voter joins the others' votes.
        joins = name in known and not known[name].control and not is_voter(known[name])
        if joins and len(voters) < 2:
            yield "nothing to join", {"name": name, "voters": len(voters)}
    arms = study.patch.arms
    for name in arms:
        if name not in kinds and name not in methods:
            yield "unknown arm", {"name": name, "choices": ", ".join(kinds), "broken": _broken(ARMS.problems)}
    compared = [kind.name for role in _COMPARED for kind in kinds.values() if kind.role == role]
    if not set(compared) <= set(arms):
        yield "nothing to compare", {"choices": ", ".join(compared)}
    if "bottom" in arms and bottom_method(study) is None:
        yield "no bottom", {}
    for name in arms:
        if name in kinds and kinds[name].needs_truth and study.organism is None and study.truth is None:
            yield "no truth", {"name": name}


def _broken(problems: Sequence[str]) -> str:
    """What is wrong with others' packages, after a sentence without its full stop."""
    return f".{''.join(f' {problem}.' for problem in problems)}" if problems else ""
