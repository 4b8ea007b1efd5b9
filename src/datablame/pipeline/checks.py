"""What a study names, looked at before a run: methods and arms, prompts that must differ, files and the classifier."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from datablame.attribute.evidence.precomputed_scores import check_files
from datablame.attribute.phase import ATTRIBUTE, check_evidence
from datablame.attribute.registry import METHODS, is_voter
from datablame.config.file import load_study
from datablame.config.report import Figures
from datablame.config.schema import Data, Study
from datablame.engine.phase import Work, left_by
from datablame.errors import RequestError, problem
from datablame.judge.calibration import check_labelled
from datablame.judge.choice import ClassifierInput, build, has_key
from datablame.patch.registry import ARMS, bottom_method
from datablame.plan.subject import subject_of
from datablame.words import normalised
from datablame.world import World
from datablame.world.freeze import check_layers
from datablame.world.pool import check_count
from datablame.world.sources import pool_files
from datablame.world.world import prompts_of

_ENDS = ".?!,;:。"
"""With one of these, or without, a prompt asks the same; others are among them in NFKC."""
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
    """Refuse methods and arms that are not known or cannot be together, prompts that are one, and unknown fonts.

    Raises:
        RequestError: the first of them, with the remedy.
    """
    for name, values in _problems(study):
        raise RequestError(problem("pipeline", name, **values))
    if study.figures.font != Figures().font:
        from datablame.report.figures import check_font

        check_font(study.figures.font)


def check_recipe(study: Study, work: Work) -> None:
    """Refuse what does not fit an organism, before it is made.

    Raises:
        RequestError: as `check_study_files` and `check_evidence`, and where the organism has too few documents or
            blocks for the study.
    """
    subject = subject_of(study, on_gpu=False)
    check_study_files(subject.study)
    if has_key() or subject.world.judge.attribution != "claude":
        check_evidence(subject.world, work)
    if subject.documents is not None:
        check_count(subject.study, subject.documents)
    if subject.is_sized:
        check_layers(subject.study, {"before": subject.before.shape.layers, "after": subject.after.shape.layers})


def check_study_files(study: Study) -> None:
    """Refuse files and keys of files that cannot be used, before anything runs.

    Raises:
        RequestError: about scores or labelled outputs, or a key that says something of a place where there is none.
    """
    check_files(study)
    check_labelled(study)
    for name, values in _unused(study):
        raise RequestError(problem("pipeline", name, **values))


def check_world(world: World, work: Work) -> None:
    """Refuse what labels outputs, and what methods judge by, where it cannot work in a world that is not frozen yet.

    Raises:
        RequestError: as `judge.choice.build`, its classifier and `attribute.phase.check_evidence`.
    """
    asks = "claude" in (world.judge.classifier, world.judge.attribution)
    # What is said without a key hangs on whether the run has begun, which freezing it finds out.
    if not left_by(ATTRIBUTE, world.root) and (has_key() or not asks):
        classifier = build(world.study, world.judge, work)
        if world.judge.classifier != "claude":
            # Rules know the behaviours that their file describes.
            classifier.label([ClassifierInput(behaviour.id, "", "") for behaviour in world.behaviours])
        check_evidence(world, work)


def _unused(study: Study) -> Iterator[tuple[str, dict[str, object]]]:
    """Keys that say which part of a hub's repository or folder is meant, beside a path that has no such parts."""
    data, models = study.data, study.models
    if data is not None and pool_files(data.path):
        is_folder = Path(data.path).expanduser().is_dir()
        of_file = () if is_folder else ("subset", "split")
        for key in ("revision", *of_file):
            if (value := getattr(data, key)) != Data.model_fields[key].default:
                yield "part of a file", {"key": key, "value": value, "data": data}
    index = Path(study.attribute.index or "").expanduser()
    if not next(folder for folder in (index, *index.absolute().parents) if folder.exists()).is_dir():
        yield "no folder", {"index": study.attribute.index}
    for name in ("before", "after") if models is not None else ():
        reference = getattr(models, name)
        if reference.revision is not None and Path(reference.path).expanduser().exists():
            yield "revision here", {"name": name, "reference": reference}


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
    prompts = prompts_of(study) if study.prompts is not None else ()
    for what in ("id", "text"):
        seen = dict[str, str]()
        for prompt in prompts:
            value = prompt.id if what == "id" else "".join(normalised(prompt.text).split()).rstrip(_ENDS)
            here = f"{prompt.split} {prompt.id}"
            if value in seen:
                yield "prompt twice", {"what": what, "value": getattr(prompt, what), "one": seen[value], "other": here}
            seen[value] = here


def _broken(problems: Sequence[str]) -> str:
    """What is wrong with others' packages, after a sentence without its full stop."""
    return f".{''.join(f' {problem}.' for problem in problems)}" if problems else ""
