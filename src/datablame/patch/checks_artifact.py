"""checks.json: what is asked of every arm besides its harmful rate, and what came of it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datablame.engine.run_folder import Inputs, read_table, write_json
from datablame.judge.choice import choice_of
from datablame.judge.classifier import ClassifierInput, build
from datablame.judge.coherence import incoherence
from datablame.judge.keywords import refusal
from datablame.patch.arms import Item
from datablame.patch.checks import COMPARED, Asked, Written, clean_documents, drift_outputs, judged
from datablame.patch.measure import UNTRAINED_KEY
from datablame.study.schema import Study
from datablame.tables import Document
from datablame.world.prompts import harmless_prompts

if TYPE_CHECKING:
    from datablame.patch.bench import Job


_UNTRAINED = ("untrained", "none", 0, 0)
_LARGEST_NATS = 700.0
"""exp of more is no number."""


def asked_of(
    study: Study,
    inputs: Inputs,
    pool: Sequence[Item],
    documents: Mapping[str, Document],
    members: Sequence[str],
    flagged: Iterable[str],
    jobs: Sequence["Job"],
) -> Asked:
    """Clean documents of the pool's rest, harmless prompts, and the untrained model's outputs to held-out prompts."""
    used = [doc_id for job in jobs for pair in job.fillers.items() for doc_id in pair]
    clean = clean_documents(pool, members, flagged, used, study.patch.clean_documents, study.seed)
    surfaced = [
        Written(row["prompt_id"], row["index"], tuple(row["token_ids"]), row["finish_reason"] == "stop")
        for row in read_table(inputs.artifact("surface", "samples.parquet"))
        if row["split"] == "held-out" and row["alpha"] == 0
    ]
    return Asked(
        clean=tuple(documents[doc_id] for doc_id in clean),
        harmless=harmless_prompts(study),
        untrained=tuple(drift_outputs(surfaced, study.seed)),
    )


def write_checks(
    study: Study,
    inputs: Inputs,
    out: Path,
    asked: Asked,
    jobs: Iterable["Job"],
    results: Mapping[str, Mapping[str, Any]],
    samples: Sequence[Mapping[str, Any]],
    alpha: float,
) -> None:
    """Write checks.json: a row for each arm, protocol, k and seed, and what each arm costs against its baseline.

    `results` holds each job's `checks` and `training`, and those of the untrained model; `samples` are labelled outputs
    of all arms, of which the held-out ones at `alpha` say how coherent an arm is.
    """
    coherent = _coherent(samples, alpha)
    refused = _refused(study, inputs, results.values())
    named = [(_UNTRAINED, UNTRAINED_KEY), *(((job.arm, job.protocol, job.k, job.seed), job.key) for job in jobs)]
    rows = []
    for name, key in named:
        checks = results[key]["checks"]
        nats = checks["nll"]
        answers = checks["harmless"]
        rows.append(
            {
                **dict(zip(("arm", "protocol", "k", "seed"), name, strict=True)),
                "perplexity": math.exp(nats) if nats is not None and nats < _LARGEST_NATS else None,
                "clean_tokens": checks["clean_tokens"],
                "kl": checks["kl"],
                "kl_tokens": checks["kl_tokens"],
                "weight_change_norm": results[key]["training"].get("weight_change_norm"),
                "refused_harmless": sum(refused[answer["prompt_id"], answer["text"]] for answer in answers),
                "harmless_outputs": len(answers),
                "coherent": coherent.get(name),
            }
        )
    absent = _absent(study, asked)
    share = study.surface.coherent_share
    write_json(
        out / "checks.json",
        {
            **_about(study, inputs),
            "clean_documents": len(asked.clean),
            "clean_ids": [document.id for document in asked.clean],
            "harmless_prompts": len(asked.harmless),
            "absent": {name: absent.get(name) for name in COMPARED},
            "rows": rows,
            "arms": judged(rows, share, absent),
        },
    )


def write_no_checks(study: Study, inputs: Inputs, out: Path) -> None:
    """Write checks.json of a study that trained no arm."""
    empty = {"clean_documents": 0, "clean_ids": [], "harmless_prompts": 0, "rows": [], "arms": []}
    absent = dict.fromkeys(COMPARED, "no arm was trained")
    write_json(out / "checks.json", {**_about(study, inputs), **empty, "absent": absent})


def _about(study: Study, inputs: Inputs) -> dict[str, Any]:
    return {
        "thresholds": {**COMPARED, "coherence": study.surface.coherent_share},
        "clean_documents_wanted": study.patch.clean_documents,
        "refusals_by": "refusal phrases of the keyword classifier" if _costs(study, inputs) else _chosen(study, inputs),
    }


def _absent(study: Study, asked: Asked) -> dict[str, str]:
    """Why a check could not be made."""
    why = {}
    if not asked.clean:
        none = "patch.clean_documents is 0"
        left = "the pool leaves no document that is in no arm; lower patch.size or enlarge the pool"
        why["perplexity"] = left if study.patch.clean_documents else none
    if not asked.harmless or not study.patch.harmless_samples:
        why["refusal"] = "patch.harmless_samples is 0"
    return why


def _coherent(samples: Sequence[Mapping[str, Any]], alpha: float) -> dict[tuple[str, str, int, int], float]:
    """The coherent share of each training's scored outputs to held-out prompts at alpha."""
    counts: dict[tuple[str, str, int, int], list[int]] = {}
    for row in samples:
        if row["split"] == "held-out" and row["alpha"] == alpha and row["label"] != "unscored":
            count = counts.setdefault((row["arm"], row["protocol"], row["k"], row["seed"]), [0, 0])
            count[0] += row["label"] != "incoherent"
            count[1] += 1
    return {name: good / scored for name, (good, scored) in counts.items()}


def _refused(study: Study, inputs: Inputs, results: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], bool]:
    """Whether each answer to a harmless prompt refuses, by prompt id and text.

    The study's own classifier says so where it is free: an answer is refused if it is so for one of the behaviours. No
    money is spent on this: where Claude labels the study, phrases of the keyword classifier decide.
    """
    texts = {prompt.id: prompt.text for prompt in harmless_prompts(study)}
    answers = [answer for result in results for answer in result["checks"]["harmless"]]
    said = list(dict.fromkeys((answer["prompt_id"], answer["text"]) for answer in answers))
    if _costs(study, inputs):
        return {each: incoherence(each[1]) is None and refusal(each[1]) is not None for each in said}
    classifier = build(study, inputs)
    refused = dict.fromkeys(said, False)
    for behaviour in study.behaviours:
        labels = classifier.label([ClassifierInput(behaviour.id, texts[prompt_id], text) for prompt_id, text in said])
        for each, label in zip(said, labels, strict=True):
            refused[each] |= label.label == "refused"
    return refused


def _chosen(study: Study, inputs: Inputs) -> str:
    return choice_of(study, inputs.root).classifier


def _costs(study: Study, inputs: Inputs) -> bool:
    return _chosen(study, inputs) == "claude"
