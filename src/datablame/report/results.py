"""What the phases found, read once from the world and the tables, and what is asked of it in several places."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any, get_args

import datablame.tables as rows
from datablame.config.schema import Study
from datablame.engine.files import digest
from datablame.report.people import People, people
from datablame.seeds import stream_key
from datablame.stats.calibration import Accuracy, TwoPhase, corrected_rate
from datablame.stats.intervals import Share, share
from datablame.tables import EVERY

if TYPE_CHECKING:
    from datablame.engine.phase import Tables
    from datablame.judge.choice import Choice
    from datablame.world.world import World

_LEAST_SEEN = 0.9
"""What the exposure gate would have asked where no arm was trained."""
MOST_SOURCES = 12
"""Of the sources, or themes, the first that are shown."""
_ACTING = {
    "remove": "removing",
    "swap": "exchanging the answers of",
    "drop-source": "removing the sources of",
}
SHOWN_RANKS = 3
"""Of a method's ranking, the first documents that are shown."""


@dataclass(frozen=True)
class Results:
    """Every row that the report rests on; a phase that has not run, or found nothing, leaves none."""

    study: Study
    prompts: Sequence[rows.Prompt]
    judge: "Choice"
    truth: bool
    """Whether planted documents are known."""
    provenance: Mapping[str, str]
    """What names the study's inputs, by what they are."""
    distance: rows.Distance | None
    """Of the two checkpoints; None where nobody looked."""
    pool: rows.PoolSummary
    coverage: Mapping[str, float]
    """The share of the blocks' weights that gradients and LoRA see, by the key that names the blocks."""
    calibration: rows.Calibration | None
    """What the classifier is worth against people's labels; those of this run's outputs come before a file's."""
    people: People | None
    """Who labelled outputs of this run; None where nobody did."""
    scan: rows.Scan
    scanned: Sequence[rows.ScannedPrompt]
    samples: Sequence[rows.SurfaceSample]
    rates: Sequence[rows.Rate]
    alpha_star: rows.AlphaStar
    unamplified: rows.Unamplified
    attribution: rows.Attribution
    methods: Mapping[str, rows.MethodInfo]
    queries: Sequence[rows.Query]
    scores: Sequence[rows.Score]
    """Of documents that some method ranks among its first, by every method."""
    flags: Sequence[rows.Flag]
    agreement: Sequence[rows.Agreement]
    quality: Sequence[rows.Quality]
    prefilter_recall: Sequence[rows.PrefilterRecall]
    ceilings: Sequence[rows.Ceiling]
    themes: Sequence[rows.Theme]
    blame: Sequence[rows.Blame]
    groups: Sequence[rows.OutputGroup]
    documents: Mapping[str, rows.ShownDocument]
    patching: rows.Patching
    arms: Mapping[str, rows.ArmInfo]
    interventions: Sequence[rows.Arm]
    exposure: Sequence[rows.Exposure]
    comparison: Sequence[rows.ArmRate]
    tests: Sequence[rows.ArmTest]
    checks: Sequence[rows.Check]
    arm_checks: Sequence[rows.ArmCheck]

    @property
    def title(self) -> str:
        """What the study is called."""
        return self.study.title or self.study.name

    @property
    def behaviours(self) -> list[str]:
        """The behaviours' ids in the study's order."""
        return [behaviour.id for behaviour in self.study.behaviours]

    @property
    def protocols(self) -> list[str]:
        """The study's protocols, the headline first."""
        headline = self.study.patch.headline
        return [headline, *(name for name in self.study.patch.protocols if name != headline)]

    @property
    def acting(self) -> str:
        """What the study does about what is flagged."""
        return _ACTING[self.study.patch.intervention]

    @property
    def classifier(self) -> str:
        """The name of the classifier that labelled every sample."""
        return self.samples[0].classifier if self.samples else "no classifier"

    @property
    def labelled_by(self) -> str:
        """The classifier in words: a stand-in is called one."""
        return "keywords, a stand-in for a judge" if self.classifier == "keywords" else self.classifier

    @property
    def unscored(self) -> dict[str, int]:
        """Why samples have no label, without the details, and how often."""
        reasons = [sample.label_reason.partition(":")[0] for sample in self.samples if sample.label == "unscored"]
        return dict(sorted(Counter(reasons).items()))

    @property
    def untraced(self) -> str:
        """Why there is no traced output, in words."""
        return "The harmful rate does not rise" if self.attribution.no_rise else "No harmful output was found"

    @property
    def headline(self) -> list[rows.ArmTest]:
        """The rows that decide: headline protocol, held-out prompts, alpha*, all behaviours."""
        return [test for test in self.tests if test.headline]

    @property
    def mean_ceilings(self) -> dict[str, float | None]:
        """Of each method, the share of its first K that the prefilter keeps, mean over behaviours."""
        return {row.method: row.ceiling for row in self.ceilings if row.behaviour == EVERY}

    def split(self, name: rows.Split) -> list[rows.Prompt]:
        """The prompts of one split."""
        return [prompt for prompt in self.prompts if prompt.split == name]

    @property
    def titles(self) -> dict[str, str]:
        """What figures call the behaviours, by id."""
        return {behaviour: behaviour.replace("-", " ") for behaviour in self.behaviours}

    def tested(self, protocol: str, *, behaviour: str = EVERY, k: int | None = None) -> list[rows.ArmTest]:
        """Arms on held-out prompts where they are compared, one row each; at the K that decides if none is given."""
        cell, ks = (protocol, behaviour, "held-out", self.patching.alpha), (0, k or self.patching.k)
        return [t for t in self.tests if (t.protocol, t.behaviour, t.split, t.alpha) == cell and t.k in ks]

    def actual(self, test: rows.ArmTest) -> rows.ArmTest | None:
        """The same comparison at alpha 0, the model as it is; None where the row is that one."""
        cell = (test.arm, test.protocol, test.behaviour, test.split, test.k)
        plain = (t for t in self.tests if t.alpha == 0 and (t.arm, t.protocol, t.behaviour, t.split, t.k) == cell)
        return next(plain, None) if test.alpha else None

    def of_role(self, role: rows.Role, protocol: str | None = None) -> rows.ArmTest | None:
        """The row of the arm with that role under a protocol, or among the rows that decide; None without one."""
        tests = self.headline if protocol is None else self.tested(protocol)
        return next((test for test in tests if self.arms[test.arm].role == role), None)

    def checked(self) -> dict[str, rows.ArmCheck]:
        """The side checks of the arms where the verdict comes from, by arm."""
        protocols = (self.study.patch.headline, "none")
        return {row.arm: row for row in self.arm_checks if row.protocol in protocols and row.k in (0, self.patching.k)}

    def label(self, name: str) -> str:
        """What figures and tables call an arm or a method; a stand-in is called one."""
        info = self.arms.get(name) or self.methods.get(name)
        return info.label if info else name

    def is_control(self, method: str) -> bool:
        """Whether it is a method that is a control."""
        return method in self.methods and self.methods[method].control

    def is_proper(self, arm: str) -> bool:
        """Whether an arm acts on what a method flagged that is no control."""
        return self.arms[arm].role == "method" and not self.is_control(arm)

    def flagged(self, method: str, k: int) -> dict[str, list[str]]:
        """What a method flagged for each behaviour at one K."""
        ids: dict[str, list[str]] = {}
        for flag in self.flags:
            if (flag.method, flag.k) == (method, k):
                ids.setdefault(flag.behaviour, []).append(flag.doc_id)
        return ids

    @property
    def blaming(self) -> list[str]:
        """The methods whose blame of sources and themes is shown: those that are no control."""
        return [name for name in dict.fromkeys(row.method for row in self.blame) if not self.is_control(name)]

    def blamed(self, kind: rows.GroupKind, behaviour: str | None = None) -> list[str]:
        """Sources or themes, those first whose intervals' lower ends are highest, summed over the methods shown."""
        ends: dict[str, float] = {}
        for row in self.blame:
            if row.kind == kind and row.method in self.blaming and behaviour in (None, row.behaviour):
                ends[row.group] = ends.get(row.group, 0.0) + row.low
        return sorted(ends, key=lambda group: (-round(ends[group], 9), group))

    def compared_methods(self) -> list[rows.Agreement]:
        """Agreement over all behaviours of each pair of methods that are no controls, where it is defined."""
        pairs = [pair for pair in self.agreement if pair.behaviour == EVERY and pair.jaccard is not None]
        return [pair for pair in pairs if not (self.is_control(pair.a) or self.is_control(pair.b))]

    @property
    def mean_jaccard(self) -> float | None:
        """Of the first K, over all pairs of methods that are no controls; None where there is no pair."""
        values = [pair.jaccard or 0.0 for pair in self.compared_methods()]
        return sum(values) / len(values) if values else None

    def pooled(self, behaviour: str, alpha: float) -> rows.Counted | None:
        """The harmful rate over all prompts of both splits; None if no output was scored."""
        pooled = (EVERY, behaviour, alpha)
        cells = [rate for rate in self.rates if (rate.prompt_id, rate.behaviour, rate.alpha) == pooled]
        harmful, scored = sum(cell.harmful for cell in cells), sum(cell.n - cell.unscored for cell in cells)
        return rows.Counted(*share(harmful, scored), scored) if scored else None

    def ends(self, behaviour: str = EVERY) -> tuple[rows.Counted | None, rows.Counted | None]:
        """Its pooled rates at alpha 0 and at the study's largest alpha."""
        return self.pooled(behaviour, 0.0), self.pooled(behaviour, max(self.study.surface.alphas))

    @property
    def corrects(self) -> bool:
        """Whether rates can be corrected: there is a calibration, and the classifier is better than chance."""
        return self.calibration is not None and self.calibration.sensitivity + self.calibration.specificity > 1

    def corrected(self, harmful: int, scored: int) -> Share | None:
        """Rogan and Gladen's rate of `harmful` among `scored`.

        None without a calibration or a scored output, or where the classifier is no better than chance. One stream
        serves all rates: they share the calibration, and so its draws.
        """
        known = self.calibration
        if known is None or not self.corrects or not scored:
            return None
        by = known.by_prediction
        accuracy = TwoPhase(**vars(by)) if by else Accuracy(**vars(known.counts))
        return corrected_rate(harmful, scored, accuracy, stream_key("calibration", "rates", self.study.seed))


def read_results(world: "World", tables: "Tables") -> Results:
    """Read what is there."""
    methods = {info.name: info for info in tables.rows(rows.MethodInfo)}
    # A method's arm goes by the label of the method as it ran, which says whether it is a stand-in.
    labels: dict[Any, Any] = {("method", name): {"label": info.label} for name, info in methods.items()}
    arms = [replace(arm, **labels.get((arm.role, arm.name), {})) for arm in tables.rows(rows.ArmInfo)]
    first = {score.doc_id for score in tables.rows(rows.Score, rank=set(range(1, SHOWN_RANKS + 1)))}
    checks = rows.CheckDesign(
        perplexity=0.0,
        refusal=0.0,
        coherence=0.0,
        clean_wanted=0,
        clean_ids=(),
        absent={},
        harmless_prompts=0,
        refusals_by="",
    )
    absent = {
        "pool": rows.PoolSummary(0, 0, None, False, {}, rows.DataSummary((), (), {}, 0, None)),
        "scan": rows.Scan(""),
        "alpha_star": rows.AlphaStar(None, "", {}, None),
        "unamplified": rows.Unamplified(False, "the surface phase made no estimate", ()),
        "attribution": rows.Attribution(
            world.study.attribute.top_k, (), (), False, "none", {}, False, (), (), (), 0, None
        ),
        "patching": rows.Patching(None, False, None, (), (), None, True, _LEAST_SEEN, {}, checks),
    }
    labelled = people(tables)
    held: dict[str, Any] = {
        **{name: tables.one(type(row)) or row for name, row in absent.items()},
        "study": world.study,
        "prompts": world.prompts,
        "coverage": world.coverage,
        "judge": world.judge,
        "truth": world.truth is not None,
        "provenance": _provenance(world),
        "distance": world.distance,
        "calibration": (labelled and labelled.calibration) or tables.one(rows.Calibration),
        "people": labelled,
        "methods": methods,
        "queries": tables.rows(rows.Query, harmful=True),
        "scores": tables.rows(rows.Score, doc_id=first) if first else (),
        "documents": {row.doc_id: row for row in tables.rows(rows.ShownDocument)},
        "arms": {arm.name: arm for arm in arms},
    }
    # The other fields are tables as they are: their types name the rows.
    others = {each.name: tables.rows(*get_args(each.type)) for each in fields(Results) if each.name not in held}
    return Results(**(held | others))


def _provenance(world: "World") -> dict[str, str]:
    """What a run rests on, by content, so that somebody else can tell whether theirs is the same."""
    models, files = world.identities["models"], world.identities["files"]
    return {
        **{f"{role} checkpoint": digest(models.get(role)) for role in ("before", "after")},
        "data": digest(world.identities["data"]),
        **{name: str(value) for name, value in files.items() if value},
        "seed": str(world.study.seed),
        "datablame": metadata.version("datablame"),
    }
