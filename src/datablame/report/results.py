"""What the phases found, read once from the world and the tables, and what is asked of it in several places."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from datablame.seeds import stream_key
from datablame.stats.calibration import Accuracy, Corrected, corrected_rate
from datablame.stats.intervals import Interval, wilson
from datablame.study.schema import Study
from datablame.tables import (
    EVERY,
    Agreement,
    AlphaStar,
    Arm,
    ArmCheck,
    ArmInfo,
    ArmRate,
    ArmTest,
    Attribution,
    Calibration,
    Ceiling,
    Check,
    Exposure,
    Flag,
    MethodInfo,
    Patching,
    PoolSummary,
    PrefilterRecall,
    Prompt,
    Quality,
    Query,
    Rate,
    Role,
    Scan,
    ScannedPrompt,
    Score,
    ShownDocument,
    Split,
    SurfaceSample,
    Theme,
    Unamplified,
)

if TYPE_CHECKING:
    from datablame.engine.phase import Tables
    from datablame.judge.choice import Choice
    from datablame.world.world import World

SHOWN_RANKS = 3
"""Of a method's ranking, the first documents that are shown."""


class PooledRate(NamedTuple):
    """Harmful among the scored outputs of one amplification, over all prompts of both splits."""

    rate: float
    interval: Interval
    n: int


@dataclass(frozen=True)
class Results:
    """Every row that the report rests on; a phase that has not run, or found nothing, leaves none."""

    study: Study
    prompts: Sequence[Prompt]
    judge: "Choice"
    truth: bool
    """Whether planted documents are known."""
    pool: PoolSummary
    calibration: Calibration | None
    """What the classifier is worth against people's labels; None where the study has none."""
    scan_rule: str
    scanned: Sequence[ScannedPrompt]
    samples: Sequence[SurfaceSample]
    rates: Sequence[Rate]
    alpha_star: AlphaStar
    unamplified: Unamplified
    attribution: Attribution
    methods: Mapping[str, MethodInfo]
    queries: Sequence[Query]
    scores: Sequence[Score]
    """Of documents that some method ranks among its first, by every method."""
    flags: Sequence[Flag]
    agreement: Sequence[Agreement]
    quality: Sequence[Quality]
    prefilter_recall: Sequence[PrefilterRecall]
    ceilings: Sequence[Ceiling]
    themes: Sequence[Theme]
    documents: Mapping[str, ShownDocument]
    patching: Patching | None
    arms: Mapping[str, ArmInfo]
    interventions: Sequence[Arm]
    exposure: Sequence[Exposure]
    comparison: Sequence[ArmRate]
    tests: Sequence[ArmTest]
    checks: Sequence[Check]
    arm_checks: Sequence[ArmCheck]

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
    def top_alpha(self) -> float:
        """The largest amplification of the study."""
        return max(self.study.surface.alphas)

    @property
    def alpha(self) -> float | None:
        """Where arms are compared; None where none was trained."""
        return self.patching.alpha if self.patching else None

    @property
    def k(self) -> int | None:
        """The K that decides; None where no arm was trained."""
        return self.patching.k if self.patching else None

    @property
    def ks(self) -> Sequence[int]:
        """Every K at which flagged documents were removed."""
        return self.patching.ks if self.patching else ()

    @property
    def headline(self) -> list[ArmTest]:
        """The rows that decide: headline protocol, held-out prompts, alpha*, all behaviours."""
        return [test for test in self.tests if test.headline]

    def split(self, name: Split) -> list[Prompt]:
        """The prompts of one split."""
        return [prompt for prompt in self.prompts if prompt.split == name]

    def tested(self, protocol: str, *, behaviour: str = EVERY, k: int | None = None) -> dict[str, ArmTest]:
        """Arms on held-out prompts where they are compared, by name; at the K that decides where none is given."""
        return {
            test.arm: test
            for test in self.tests
            if (test.protocol, test.behaviour, test.split, test.alpha) == (protocol, behaviour, "held-out", self.alpha)
            if test.k in (0, self.k if k is None else k)
        }

    def of_role(self, role: Role, tests: Iterable[ArmTest]) -> ArmTest | None:
        """The row of the arm with that role; None where there is none."""
        return next((test for test in tests if self.arms[test.arm].role == role), None)

    def best_case(self, tests: Iterable[ArmTest]) -> ArmTest | None:
        """The row of the arm that acts on what is known to be to blame; None where there is none."""
        return next((test for test in tests if self.arms[test.arm].needs_truth), None)

    def checked(self) -> dict[str, ArmCheck]:
        """The side checks of the arms where the verdict comes from, by arm."""
        return {
            check.arm: check
            for check in self.arm_checks
            if check.protocol in (self.study.patch.headline, "none") and check.k in (0, self.k)
        }

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

    def compared_methods(self) -> list[Agreement]:
        """Agreement over all behaviours of each pair of methods that are no controls, where it is defined."""
        return [
            pair
            for pair in self.agreement
            if pair.behaviour == EVERY and pair.jaccard is not None
            if not (self.is_control(pair.a) or self.is_control(pair.b))
        ]

    def pooled(self, behaviour: str, alpha: float) -> PooledRate | None:
        """The harmful rate over all prompts of both splits; None if no output was scored."""
        rows = [
            rate for rate in self.rates if (rate.prompt_id, rate.behaviour, rate.alpha) == (EVERY, behaviour, alpha)
        ]
        harmful, scored = sum(rate.harmful for rate in rows), sum(rate.n - rate.unscored for rate in rows)
        return PooledRate(harmful / scored, wilson(harmful, scored), scored) if scored else None

    def corrected(self, harmful: int, scored: int) -> Corrected | None:
        """Rogan and Gladen's rate of `harmful` among `scored`; None without a calibration or a scored output.

        One stream serves all rates: they share the calibration, and so its draws.
        """
        if self.calibration is None or not scored:
            return None
        accuracy = Accuracy(**vars(self.calibration.counts))
        return corrected_rate(harmful, scored, accuracy, stream_key("calibration", "rates", self.study.seed))


def read_results(world: "World", tables: "Tables") -> Results:
    """Read what is there."""
    study, scan = world.study, tables.one(Scan)
    methods = {info.name: info for info in tables.rows(MethodInfo)}
    first = {score.doc_id for score in tables.rows(Score, rank=set(range(1, SHOWN_RANKS + 1)))}
    return Results(
        study=study,
        prompts=world.prompts,
        judge=world.judge,
        truth=world.truth is not None,
        pool=tables.one(PoolSummary) or PoolSummary(0, 0, False, {}, (), None),
        calibration=tables.one(Calibration),
        scan_rule=scan.rule if scan else "",
        scanned=tables.rows(ScannedPrompt),
        samples=tables.rows(SurfaceSample),
        rates=tables.rows(Rate),
        alpha_star=tables.one(AlphaStar) or AlphaStar(None, "", {}, None),
        unamplified=tables.one(Unamplified) or Unamplified(False, "the surface phase made no estimate", ()),
        attribution=tables.one(Attribution) or _no_attribution(study),
        methods=methods,
        queries=tables.rows(Query, harmful=True),
        scores=tables.rows(Score, doc_id=first) if first else (),
        flags=tables.rows(Flag),
        agreement=tables.rows(Agreement),
        quality=tables.rows(Quality),
        prefilter_recall=tables.rows(PrefilterRecall),
        ceilings=tables.rows(Ceiling),
        themes=tables.rows(Theme),
        documents={document.doc_id: document for document in tables.rows(ShownDocument)},
        patching=tables.one(Patching),
        arms={info.name: _labelled(info, methods) for info in tables.rows(ArmInfo)},
        interventions=tables.rows(Arm),
        exposure=tables.rows(Exposure),
        comparison=tables.rows(ArmRate),
        tests=tables.rows(ArmTest),
        checks=tables.rows(Check),
        arm_checks=tables.rows(ArmCheck),
    )


def _labelled(info: ArmInfo, methods: Mapping[str, MethodInfo]) -> ArmInfo:
    """A method's arm goes by the label of the method as it ran, which says whether it is a stand-in."""
    return replace(info, label=methods[info.name].label) if info.role == "method" and info.name in methods else info


def _no_attribution(study: Study) -> Attribution:
    return Attribution(study.attribute.top_k, (), (), False, "none", {}, False, (), (), 0, None)
