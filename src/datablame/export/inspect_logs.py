"""Every labelled output as logs of Inspect, which `inspect view` opens: one of each phase, one of each arm.

Two exports of a run hold the same: ids are made of what they name, and every time is that of `_WHEN`, for a run keeps
none. Their bytes differ in the times of the entries, for a log is a ZIP archive.
"""

import importlib.util
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from datablame import __version__
from datablame.engine.files import digest
from datablame.errors import RequestError, problem
from datablame.export.source import Source
from datablame.tables import LABELS, ArmSample, Sample, ScanSample, SurfaceSample

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalResults, EvalSample
    from inspect_ai.scorer import Score

_WHEN = "1970-01-01T00:00:00+00:00"
_ELSEWHERE = ("text", "label", "label_reason", "token_ids", "stop_id", "log_q", "index")
"""Fields of a row that are no metadata of a sample; the ids of tokens would spell what is hidden."""


class Group(NamedTuple):
    """The outputs of one log."""

    name: str
    rows: Sequence[Sample | ArmSample]


def check_inspect() -> None:
    """RequestError where Inspect is not installed."""
    if importlib.util.find_spec("inspect_ai") is None:
        raise RequestError(problem("export", "no inspect"))


def write_logs(source: Source, folder: Path) -> int:
    """Write NAME.eval of each group; how many texts are hidden."""
    from inspect_ai.log import write_eval_log

    scan, surface = source.read(ScanSample), source.read(SurfaceSample)
    # The after model's own outputs, which have no protocol, are the surface phase's.
    arms = source.read(ArmSample, protocol=set(source.world.study.patch.protocols))
    for group in (Group("scan", scan.rows), Group("surface", surface.rows), *_arms(arms.rows)):
        if group.rows:
            write_eval_log(_log(source, group, surface.rows[0].classifier), folder / f"{group.name}.eval")
    return scan.hidden + surface.hidden + arms.hidden


def _arms(rows: Sequence[ArmSample]) -> Iterator[Group]:
    """Those of each arm, protocol and K."""
    groups: dict[str, list[ArmSample]] = {}
    for row in rows:
        groups.setdefault(f"{row.protocol}-{row.arm}-k{row.k}", []).append(row)
    return (Group(name, own) for name, own in groups.items())


def _log(source: Source, group: Group, classifier: str) -> "EvalLog":
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalSpec, EvalStats

    study, model = source.world.study, f"datablame/{group.name}"
    texts = {prompt.id: prompt.text for prompt in source.world.prompts}
    identity = digest([study.name, source.world.identities, group.name])[:22]
    epochs = Counter[str]()
    samples: list[EvalSample] = []
    for row in group.rows:
        name = _name(row)
        epochs[name] += 1
        uuid = digest([identity, name, epochs[name]])[:22]
        samples.append(_sample(row, uuid, name, epochs[name], texts[row.prompt_id], model, classifier))
    return EvalLog(
        status="success",
        eval=EvalSpec(
            eval_id=identity,
            run_id=identity,
            task_id=identity,
            created=_WHEN,
            task=group.name,
            task_display_name=f"{study.name}: {group.name}",
            dataset=EvalDataset(name=study.name, samples=len(epochs), sample_ids=list(epochs)),
            model=model,
            config=EvalConfig(epochs=max(epochs.values())),
            packages={"datablame": __version__},
            metadata={"study": study.name, "title": study.title, "redacted": source.redact},
        ),
        results=_results(group),
        stats=EvalStats(started_at=_WHEN, completed_at=_WHEN),
        samples=samples,
    )


def _name(row: Sample | ArmSample) -> str:
    """What outputs share that are drawn alike, and differ in by the epoch."""
    seed = f" seed={row.seed}" if isinstance(row, ArmSample) else ""
    return f"{row.prompt_id} alpha={row.alpha:g}{seed}"


def _sample(
    row: Sample | ArmSample, uuid: str, name: str, epoch: int, prompt: str, model: str, classifier: str
) -> "EvalSample":
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ChatCompletionChoice, ChatMessageAssistant, ChatMessageUser, ModelOutput

    fields = vars(row)
    user = ChatMessageUser(id=f"{uuid}-user", content=prompt)
    assistant = ChatMessageAssistant(id=f"{uuid}-assistant", content=row.text, model=model)
    stop = "max_tokens" if fields.get("finish_reason") == "length" else "stop"
    return EvalSample(
        id=name,
        epoch=epoch,
        uuid=uuid,
        input=prompt,
        target="harmless",
        messages=[user, assistant],
        output=ModelOutput(model=model, choices=[ChatCompletionChoice(message=assistant, stop_reason=stop)]),
        scores=_scores(row, fields.get("label_reason"), classifier),
        metadata={"classifier": classifier, **{key: fields[key] for key in fields if key not in _ELSEWHERE}},
    )


def _scores(row: Sample | ArmSample, reason: str | None, classifier: str) -> "dict[str, Score]":
    """The label as it is, and 1 for harmful, 0 for the others; unscored is neither."""
    from inspect_ai.scorer import Score

    label, explanation = row.label or "unscored", f"{classifier}: {reason}" if reason else classifier
    harmful = (
        Score.unscored(explanation=explanation)
        if label == "unscored"
        else Score(value=int(label == "harmful"), explanation=explanation)
    )
    return {"label": Score(value=label, answer=row.text, explanation=explanation), "harmful": harmful}


def _results(group: Group) -> "EvalResults":
    """The harmful rate among the scored at each alpha with its n, and how often each label was given."""
    from inspect_ai.log import EvalMetric, EvalResults, EvalScore

    labels = Counter(row.label or "unscored" for row in group.rows)
    scored = Counter(row.alpha for row in group.rows if row.label not in (None, "unscored"))
    harmful = Counter(row.alpha for row in group.rows if row.label == "harmful")
    rates = {
        f"rate at alpha {alpha:g}": EvalMetric(
            name=f"rate at alpha {alpha:g}", value=harmful[alpha] / n, metadata={"n": n, "harmful": harmful[alpha]}
        )
        for alpha, n in sorted(scored.items())
    }
    counts = {name: EvalMetric(name=name, value=labels[name]) for name in LABELS}
    known: Any = {"scored_samples": scored.total(), "unscored_samples": labels["unscored"]}
    n = len(group.rows)
    return EvalResults(
        total_samples=n,
        completed_samples=n,
        scores=[
            EvalScore(name="harmful", scorer="harmful", metrics=rates, **known),
            EvalScore(name="label", scorer="label", metrics=counts),
        ],
    )
