"""What the phases left behind, read once."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datablame.engine.run_folder import Inputs, read_json, read_jsonl, read_table
from datablame.report.registration import read_registration
from datablame.study.schema import Study
from datablame.tables import EVERY

Row = Mapping[str, Any]

_NO_ESTIMATES: Row = {"possible": False, "why_not": "the surface phase made no estimate", "rows": ()}
_CONTROL_LABELS = {
    "untrained": "untrained",
    "baseline": "baseline (no removal)",
    "a-a": "baseline again (A/A)",
    "random": "random",
    "bottom": "bottom (ranked last)",
    "oracle": "oracle (all planted)",
}


@dataclass(frozen=True)
class Artifacts:
    """Every finished artifact of a run; a phase that hasn't run, or found nothing, leaves empty ones."""

    study: Study
    scan: Row
    samples: Sequence[Row]
    rates: Sequence[Row]
    alpha_star: Row
    methods: Mapping[str, Row]
    pool: Row
    queries: Sequence[Row]
    flagged: Mapping[str, Mapping[str, Sequence[str]]]
    scores: Mapping[str, Sequence[Row]]
    agreement: Row
    quality: Row
    themes: Row
    documents: Mapping[str, Row]
    exposure: Row
    comparison: Sequence[Row]
    tests: Sequence[Row]
    judge: Row
    """Who was chosen to label outputs and to answer for llm-judge; empty in runs that kept no choice."""
    attribution_judge: Row
    """What a model was asked about documents and left unanswered; empty where none was asked."""
    unscored_arms: Mapping[str, int]
    """Why outputs of arms have no label."""
    calibration: Row | None
    """What the classifier is worth against people's labels; None where the study has none."""
    patch_alpha: float | None
    k: int | None
    """The K that decides."""
    ks: Sequence[int] = ()
    """Every K at which flagged documents were removed."""
    aa: Row | None = None
    """The baseline trained again on other seeds against itself; None where it was not."""
    unamplified: Row = field(default_factory=lambda: dict(_NO_ESTIMATES))
    """The rate at alpha 0 estimated from amplified outputs."""
    checks: Row = field(default_factory=dict)
    """Side checks of every arm; empty in runs that made none."""
    arms: Sequence[Row] = ()
    """What each training removed and what stands there instead."""
    preregistration: Row = field(default_factory=dict)
    """What was registered, what the patch phase began with, and the study as it ran; empty where nothing was."""

    @property
    def behaviours(self) -> list[str]:
        """The behaviours' ids in the study's order."""
        return [behaviour.id for behaviour in self.study.behaviours]

    @property
    def classifier(self) -> str:
        """The name of the classifier that labelled every sample."""
        return str(self.samples[0]["classifier"]) if self.samples else "no classifier"

    @property
    def labelled_by(self) -> str:
        """The classifier in words: a stand-in is called one."""
        return "keywords, a stand-in for a judge" if self.classifier == "keywords" else self.classifier

    @property
    def unscored(self) -> dict[str, int]:
        """Why samples have no label, without the details, and how often."""
        reasons = [str(row["label_reason"]).partition(":")[0] for row in self.samples if row["label"] == "unscored"]
        return dict(sorted(Counter(reasons).items()))

    @property
    def no_rise(self) -> bool:
        """Whether attribution traced nothing because the harmful rate does not rise."""
        return bool(self.pool.get("behaviours", {}).get("no_rise", False))

    @property
    def untraced(self) -> str:
        """Why there is no traced output, in words."""
        return "The harmful rate does not rise" if self.no_rise else "No harmful output was found"

    @property
    def headline(self) -> list[Row]:
        """The rows that decide: headline protocol, held-out prompts, alpha*, all behaviours."""
        return [row for row in self.tests if row["headline"]]

    def tested(
        self, *, protocol: str, behaviour: str = EVERY, split: str = "held-out", k: int | None = None
    ) -> dict[str, Row]:
        """Arms of one comparison at alpha*, by name; at the K that decides where none is given."""
        return {
            row["arm"]: row
            for row in self.tests
            if (row["protocol"], row["behaviour"], row["split"], row["alpha"])
            == (protocol, behaviour, split, self.patch_alpha)
            if row["k"] in (0, self.k if k is None else k)
        }

    def label(self, arm: str) -> str:
        """What figures and tables call an arm or a method."""
        return arm_labels(self.methods).get(arm, arm)


def arm_labels(methods: Mapping[str, Row]) -> dict[str, str]:
    """Names for readers: a method's label, which says whether it is a stand-in, or the control's."""
    return {**{name: str(row["label"]) for name, row in methods.items()}, **_CONTROL_LABELS}


def read_artifacts(study: Study, inputs: Inputs) -> Artifacts:
    """Read what is there."""
    scores = inputs.artifact("attribute", "scores")
    tests = _json(inputs.artifact("patch", "tests.json"), {"rows": [], "alpha": None, "k": None})
    return Artifacts(
        study=study,
        scan=_json(inputs.artifact("scan", "scan.json"), {"prompts": [], "focus": [], "rule": ""}),
        samples=_table(inputs.artifact("surface", "samples.parquet")),
        rates=_table(inputs.artifact("surface", "rates.parquet")),
        alpha_star=_json(
            inputs.artifact("surface", "alpha_star.json"), {"alpha_star": None, "coherence": {}, "rule": ""}
        ),
        methods=_ordered(_json(inputs.artifact("attribute", "methods.json"), {}), study.attribute.methods),
        pool=_json(inputs.artifact("attribute", "pool.json"), {}),
        queries=_jsonl(inputs.artifact("attribute", "queries.jsonl")),
        flagged=_json(inputs.artifact("attribute", "flagged.json"), {}),
        scores={path.stem: read_jsonl(path) for path in sorted(scores.glob("*.jsonl"))},
        agreement=_json(inputs.artifact("attribute", "agreement.json"), {"k": None, "rows": []}),
        quality=_json(
            inputs.artifact("attribute", "quality.json"),
            {"k": None, "truth": False, "rows": [], "prefilter_recall": [], "ceilings": []},
        ),
        themes=_json(inputs.artifact("attribute", "themes.json"), {"documents": 0, "silhouette": None, "themes": []}),
        documents={row["doc_id"]: row for row in _jsonl(inputs.artifact("attribute", "top_documents.jsonl"))},
        exposure=_json(inputs.artifact("patch", "exposure.json"), {"rows": [], "passed": True}),
        comparison=_table(inputs.artifact("patch", "comparison.parquet")),
        tests=tests["rows"],
        judge=_json(inputs.root / "artifacts" / "judge.json", {}),
        attribution_judge=_json(inputs.artifact("attribute", "judge.json"), {}),
        unscored_arms=_json(inputs.artifact("patch", "unscored.json"), {}),
        calibration=_json(inputs.root / "artifacts" / "calibration.json", None),
        patch_alpha=tests["alpha"],
        k=tests["k"],
        ks=tests.get("ks", ()),
        aa=tests.get("aa"),
        unamplified=_json(inputs.artifact("surface", "unamplified.json"), dict(_NO_ESTIMATES)),
        checks=_json(inputs.artifact("patch", "checks.json"), {}),
        arms=_jsonl(inputs.artifact("patch", "arms.jsonl")),
        preregistration=read_registration(inputs.root),
    )


def _ordered(methods: Mapping[str, Row], names: Sequence[str]) -> dict[str, Row]:
    return {name: methods[name] for name in names if name in methods}


def _json(path: Path, otherwise: Any) -> Any:
    return read_json(path) if path.exists() else otherwise


def _jsonl(path: Path) -> list[dict[str, Any]]:
    return read_jsonl(path) if path.exists() else []


def _table(path: Path) -> list[dict[str, Any]]:
    return read_table(path) if path.exists() else []
