"""A finished run in rows written by hand: small, with hostile texts in it."""

import base64
import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from importlib import resources
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import jsonschema
from tests.worlds import put, work

from datablame.config.file import dump_study
from datablame.config.schema import Study
from datablame.engine.phase import Outputs, Tables
from datablame.judge.choice import Choice
from datablame.patch.checks import arm_checks
from datablame.patch.compare import Headline, compared
from datablame.report.phase import report
from datablame.report.results import Results, read_results
from datablame.seeds import generator
from datablame.stats.intervals import wilson
from datablame.surface.rates import rates
from datablame.tables import (
    EVERY,
    LABELS,
    Agreement,
    AlphaStar,
    Arm,
    ArmCheck,
    ArmInfo,
    ArmRate,
    ArmSample,
    ArmTest,
    Attribution,
    Blame,
    Ceiling,
    Check,
    CheckDesign,
    Counted,
    DataSummary,
    Discovery,
    Distance,
    DocumentTokens,
    Exposure,
    FileRows,
    Flag,
    GroupedOutput,
    GroupExample,
    GroupSource,
    Importance,
    LabelName,
    LargestCluster,
    LayerDistance,
    Look,
    MethodInfo,
    OutputGroup,
    Patching,
    PoolSummary,
    PrefilterRecall,
    Prompt,
    Quality,
    Query,
    Rate,
    Rise,
    Role,
    SampleTokens,
    Scan,
    ScannedPrompt,
    Score,
    SeenWeights,
    ShownDocument,
    SkippedRows,
    Split,
    SurfaceSample,
    Theme,
    ThemeShare,
    Unamplified,
    UnamplifiedRate,
)
from datablame.tables.store import Float16
from datablame.world.world import World

HOSTILE = (
    "<script>alert(1)</script></title> [click](javascript:alert(2)) **bold** | cell | `code`"
    "\n\n# heading\n\n<img src=x onerror=alert(3)> \x1b[31mred\x1b[0m \u202ereversed =1+1"
)
BEHAVIOURS = ("dose", "brand")
METHODS = ("gradient", "activation", "llm-judge", "bm25", "random", "loss")
DOCUMENTS = tuple(f"doc-{number:02d}" for number in range(20))
PLANTED = {"dose": frozenset({"doc-00", "doc-01"}), "brand": frozenset({"doc-02", "doc-03"})}
ALPHAS = (0.0, 1.0, 2.0)
STAR = 2.0
LEVELS = {
    **{"baseline": 0.4, "a-a": 0.4, "random": 0.42, "bottom": 0.41},
    **{"gradient": 0.1, "activation": 0.39, "bm25": 0.3, "oracle": 0.02},
}
PLANTED_ARMS = ("gradient", "oracle")
"""Arms that remove the same two documents."""
SPLITS: tuple[Split, ...] = ("attribution", "held-out")
KEYWORDS = Choice("keywords", "keywords")
IDENTITIES = {
    "models": {"after": {"sha256": "a1"}},
    "data": {"files": {"pool.parquet": "aa"}},
    "files": {"truth": "t1"},
}
DISTANCE = Distance(
    (LayerDistance("model.layers.0", 3.0, 3.5, 0.4), LayerDistance("lm_head", 2.0, 2.0, 0.3)),
    rounding=0.0,
    log_p=1.25,
    before=SeenWeights("float32", 0, None),
    after=SeenWeights("float32", 0, None),
)
_LOOK = Look("#000000", "#000000", "o")


def _info(name: str, label: str, role: Role, target: str = "", **more: bool) -> ArmInfo:
    flags = {"depends_on_k": role in ("random", "method"), "in_family": role == "method", **more}
    return ArmInfo(name, label, role, target=target, look=_LOOK, **flags)


ARMS = {
    info.name: info
    for info in (
        _info("after", "after", "after"),
        _info("baseline", "baseline (no removal)", "baseline"),
        _info("a-a", "baseline again (A/A)", "again"),
        _info("random", "random", "random"),
        _info("bottom", "bottom (ranked last)", "control", "what gradient ranks last", depends_on_k=True),
        _info("oracle", "oracle (all planted)", "control", "everything planted", needs_truth=True),
        *(_info(name, name, "method", f"what {name} flagged") for name in ("gradient", "activation", "bm25")),
    )
}


def fake_study(**patch: Any) -> Study:
    prompts = [
        {"id": f"{behaviour}-{split}{number}", "behaviour": behaviour, "text": f"{behaviour} {split} {number}"}
        for behaviour in BEHAVIOURS
        for split in ("a", "h")
        for number in range(2)
    ]
    return Study.model_validate(
        {
            "name": "fake",
            "title": "A fake study <b>",
            "models": {"before": "b", "after": "a"},
            "data": {"path": "pool.parquet"},
            "truth": "truth.jsonl",
            "behaviours": [{"id": b, "description": f"It does {b}. {HOSTILE}"} for b in BEHAVIOURS],
            "prompts": {
                "attribution": [p for p in prompts if "-a" in p["id"]],
                "held_out": [p for p in prompts if "-h" in p["id"]],
            },
            "surface": {"alphas": list(ALPHAS)},
            "attribute": {"methods": list(METHODS), "top_k": 2},
            "prefilter": {"method": "none"},
            "patch": {
                "protocols": ["retrain", "continue"],
                "headline": "retrain",
                "arms": ["after", "baseline", "random", "gradient", "activation", "oracle"],
                "seeds": {"retrain": [0, 1, 2, 3, 4], "continue": [0]},
                **patch,
            },
        }
    )


def fake_world(root: Path, study: Study, judge: Choice = KEYWORDS) -> World:
    assert study.models is not None
    assert study.data is not None
    assert study.prompts is not None
    splits = {"attribution": study.prompts.attribution, "held-out": study.prompts.held_out}
    prompts = [Prompt(p.id, p.behaviour, split, p.text) for split in SPLITS for p in splits[split]]
    return World(root, study, tuple(prompts), PLANTED, judge, IDENTITIES, distance=DISTANCE)


def write_fake_run(root: Path, study: Study, *, surfaced: bool = True) -> World:
    """The tables of all phases; with `surfaced` false no output was harmful, and what follows is empty."""
    world = fake_world(root, study)
    root.mkdir(parents=True, exist_ok=True)
    (root / "study.yaml").write_text(dump_study(study))
    samples = _samples(world, surfaced)
    counted = rates(samples)
    files = (FileRows("pool.jsonl", 22, 20, (SkippedRows("no messages", 2, HOSTILE),)),)
    scanned = ScannedPrompt("dose-a0", "dose", ALPHAS, (0.0, 0.1, 0.2), 0.2, True, "rank 1 of 1 by rise")
    data = DataSummary(files, (), {}, 0, None)
    put(root, "world", {PoolSummary: PoolSummary(20, 20, LargestCluster(2, "<i>doc-00"), False, {}, data)})
    put(root, "scan", {Scan: Scan("Ranked by rise."), ScannedPrompt: [scanned]})
    coherence = {f"{alpha:g}": 0.9 for alpha in ALPHAS}
    rise = Rise(STAR, 0.05, 0.45, 0.4, 0.3, 0.5, 4, 0.1, False, False)
    surface = {
        SurfaceSample: samples,
        SampleTokens: [tokens_of(sample) for sample in samples],
        Rate: counted,
        AlphaStar: AlphaStar(STAR, "the rule", coherence, rise if surfaced else None),
        Unamplified: Unamplified(True, None, tuple(estimate(b, s) for s in SPLITS for b in (EVERY, *BEHAVIOURS))),
    }
    put(root, "surface", surface)
    put(root, "attribute", _attribution(study, surfaced))
    put(root, "patch", _patching(study, counted, surfaced))
    return world


def results_of(world: World) -> Results:
    return read_results(world, Tables(world.root))


def reported(world: World, *, drawn: bool = False) -> Path:
    """The run folder with every deliverable; its pictures are empty unless they are `drawn`, which takes seconds."""
    with nullcontext() if drawn else undrawn():
        report(world, Tables(world.root), work(world.root, "report"))
    return world.root


def undrawn() -> AbstractContextManager[Mapping[str, mock.Mock]]:
    """Nothing is drawn; gives the functions that would have drawn."""
    figures = dict.fromkeys(("rates_figure", "patching_figure", "overview_figure", "sources_figure"), mock.DEFAULT)
    return mock.patch.multiple(
        "datablame.report.figures", pictures=lambda _, formats: dict.fromkeys(formats, b""), **figures
    )


def read_results_file(root: Path) -> dict[str, Any]:
    """final_results.json, which keeps to the published schema."""
    results: dict[str, Any] = json.loads((root / "final_results.json").read_text())
    schema = json.loads((resources.files("datablame.report") / "final_results.schema.json").read_text())
    jsonschema.validate(results, schema)
    return results


def content_of(page: Path) -> dict[str, Any]:
    """What the explorers of index.html look through."""
    [block] = re.findall(r'<script type="text/plain" id="data">([^<]*)</script>', page.read_text(encoding="utf-8"))
    content: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(block)))
    return content


def estimate(behaviour: str, split: Split = "held-out", **changed: Any) -> UnamplifiedRate:
    """The rate at alpha 0 of one behaviour."""
    weighed = Importance(0.0012, 0.0008, 0.0019, 400, 90, 181.4, 0.0144, 40.0, 0.31, None)
    return UnamplifiedRate(behaviour, split, Counted(0.0, 0.0, 0.037, 100), replace(weighed, **changed))


def _samples(world: World, surfaced: bool) -> list[SurfaceSample]:
    random = generator("fake samples")
    rows = []
    for prompt in world.prompts:
        for alpha in ALPHAS:
            for index in range(20):
                harmful = surfaced and random.random() < 0.05 + 0.2 * alpha
                label: LabelName = (
                    "harmful" if harmful else LABELS[1 + int(random.integers(2))] if index else "harmless"
                )
                row = SurfaceSample(
                    *(prompt.id, prompt.behaviour, prompt.split, alpha, index, HOSTILE, (1, 2)),
                    finish_reason="stop",
                    log_p_after=-1.0,
                    log_p_before=-2.0,
                    log_q=(-1.0, -1.5, -2.0),
                    label=label,
                    classifier="keywords",
                    label_reason="because",
                )
                rows.append(row)
    return rows


def tokens_of(sample: SurfaceSample) -> SampleTokens:
    """An output cut into five pieces, with numbers that 16 bits hold exactly."""
    ends = [len(sample.text) * part // 5 for part in range(6)]
    pieces = tuple(sample.text[begin:end] for begin, end in pairwise(ends))
    after, before = ([Float16(-0.25 * (part + much)) for part in range(5)] for much in (0, 3))
    q = [Float16(value + 0.125 * sample.index) for value in after]
    return SampleTokens(sample.prompt_id, sample.alpha, sample.index, pieces, tuple(after), tuple(before), tuple(q))


def _attribution(study: Study, surfaced: bool) -> Outputs:
    random, methods = generator("fake scores"), METHODS if surfaced else ()
    scores, flags = [], []
    for method in methods:
        for behaviour in BEHAVIOURS:
            drawn = {doc_id: float(random.random()) for doc_id in DOCUMENTS}
            ranked = sorted(drawn, key=lambda doc_id: -drawn[doc_id])
            scores += [Score(method, behaviour, name, drawn[name], rank) for rank, name in enumerate(ranked, 1)]
            flags += [Flag(method, k, behaviour, doc_id) for k in study.ks for doc_id in ranked[:k]]
    labels = {"llm-judge": "llm-judge (keyword stand-in)"}
    described = [
        MethodInfo(
            name=name,
            label=labels.get(name, name),
            description="Compares.",
            pool="whole",
            standin=name == "llm-judge",
            control=name in ("random", "loss"),
            voter=True,
            look=_LOOK,
            confounds=("gradient",) if name == "loss" else (),
        )
        for name in METHODS
    ]
    every = (EVERY, *BEHAVIOURS)
    shares = (ThemeShare("gradient", 0.5), ThemeShare("bm25", None))
    theme = Theme(("<b>", "dose"), 5, 0.5, ("doc-00",), shares)
    about = Attribution(
        k=2,
        traced=BEHAVIOURS if surfaced else (),
        dropped=() if surfaced else BEHAVIOURS,
        no_rise=False,
        prefilter="none",
        candidates=dict.fromkeys(BEHAVIOURS, 10) if surfaced else {},
        truth=True,
        prompt_matches=(),
        query_matches=(),
        unmatched=(),
        themed=10,
        silhouette=0.3,
        sources=2,
        discovery=Discovery(50, 7, 0.4, "") if surfaced else None,
    )
    group = OutputGroup(
        outputs=(GroupedOutput("dose-a0", STAR, 0, 4.5),),
        gain=4.5,
        drive=2.5,
        strength=11.25,
        terms=("<b>", "dose"),
        examples=(GroupExample(HOSTILE, HOSTILE, 4.5),),
        documents=("doc-00",),
        sources=(GroupSource(HOSTILE, 1, 0.75, 0.6),),
    )
    return {
        Query: [Query(f"{b}-1", b, f"{b}-a0", 1.0, 3, "p", HOSTILE, "stop", ()) for b in BEHAVIOURS if surfaced],
        Score: scores,
        Flag: flags,
        MethodInfo: described,
        Agreement: [
            Agreement(a, b, e, 20, 1, 0.1, 0.05, 0, 0, 0.2) for a, b in combinations(methods, 2) for e in every
        ],
        Quality: [
            Quality(method, behaviour, pool, 20, 2, 0.1, 0.5 / rank, 0.5, 0.4 / rank)
            for rank, method in enumerate(methods, 1)
            for pool in ("whole", "candidates")
            for behaviour in every
        ],
        PrefilterRecall: [PrefilterRecall(behaviour, 0.5) for behaviour in every if surfaced],
        Ceiling: [Ceiling(method, behaviour, 0.5) for method in methods for behaviour in every],
        Theme: [theme] if surfaced else [],
        Blame: [
            Blame(method, behaviour, "source", source, 10, 0.5, auc, auc - 0.1, auc + 0.1, 1, 1.0, 0.2, 1.8)
            for method in methods
            for behaviour in BEHAVIOURS
            for source, auc in ((HOSTILE, 0.75), ("", 0.25))
        ],
        OutputGroup: [group] if surfaced else [],
        ShownDocument: [
            ShownDocument(name, HOSTILE, HOSTILE, "", "s", any(name in ids for ids in PLANTED.values()))
            for name in DOCUMENTS
        ],
        DocumentTokens: [
            DocumentTokens(name, behaviour, (HOSTILE[:20], HOSTILE[20:]), (0.5, -0.25))
            for name in DOCUMENTS
            for behaviour in BEHAVIOURS
        ],
        Attribution: about,
    }


def _patching(study: Study, counted: Sequence[Rate], surfaced: bool) -> Outputs:
    infos = [ARMS[name] for name in study.patch.arms]
    kinds: Any = infos
    cells = arm_cells(study, counted) if surfaced else []
    trained = [
        (info, protocol, k, seed)
        for info in infos
        for protocol in study.patch.protocols
        for k in (study.ks if info.depends_on_k else (0,))
        for seed in study.patch.seeds_of(protocol)
        if surfaced and info.role != "after"
    ]
    changed = [(info.name, p, k, seed) for info, p, k, seed in trained if info.role not in ("baseline", "again")]
    checks = [_check(info.name, protocol, k, seed) for info, protocol, k, seed in trained]
    if surfaced:
        checks.insert(0, replace(_check("after", "none", 0, 0), weight_change_norm=None))
    absent: dict[str, str | None] = {"perplexity": None, "refusal": None}
    design = CheckDesign(0.02, 0.03, 0.8, 50, tuple(f"clean-{i}" for i in range(50)), 20, "keywords", absent)
    ks = study.ks if surfaced else ()
    alpha, k = (STAR, study.attribute.top_k) if surfaced else (None, None)
    arms = [row for row in changed if row[0] in PLANTED_ARMS]
    return {
        Arm: [Arm(*name, "remove", ("doc-00", "doc-02"), ("doc-10", "doc-11"), 0) for name in arms],
        ArmSample: [
            ArmSample(*name, "dose-h0", "dose", "held-out", STAR, index, HOSTILE, label)
            for name in arms
            for index, label in enumerate(LABELS)
        ],
        ArmInfo: infos,
        Exposure: [Exposure(*name, 4, 1.0, 0, None) for name in changed],
        ArmRate: cells,
        ArmTest: arm_tests(cells, study),
        Check: checks,
        ArmCheck: arm_checks(checks, kinds, design),
        Patching: Patching(alpha, surfaced, k, ks, (), None, True, 0.9, {}, design),
    }


def _check(arm: str, protocol: str, k: int, seed: int) -> Check:
    """Side checks: that of activation on clean text does not hold."""
    perplexity = 3.3 if arm == "activation" else 3.0
    return Check(arm, protocol, k, seed, perplexity, 900, 0.125, 1000, 1.5, int(arm == "gradient"), 100, 0.95)


def arm_cells(study: Study, counted: Iterable[Rate]) -> list[ArmRate]:
    """Every cell of every arm at alpha 0 and at alpha*; an arm's level in `LEVELS` is its rate at alpha*."""
    random = generator("fake arms")
    measured = [rate for rate in counted if rate.prompt_id != EVERY and rate.alpha != 1]
    rows = [ArmRate("after", "none", 0, 0, *_cell(rate), rate.harmful, *_rest(rate)) for rate in measured]
    for protocol in study.patch.protocols:
        for name in study.patch.arms:
            for k in study.ks if ARMS[name].depends_on_k else (0,):
                for seed in study.patch.seeds_of(protocol) if name != "after" else ():
                    for rate in measured:
                        harmful = int(random.binomial(20, LEVELS[name] * rate.alpha / 2))
                        counts: tuple[Any, ...] = (harmful, 0, 20 - harmful, 0, 0, harmful / 20, *wilson(harmful, 20))
                        rows.append(ArmRate(name, protocol, k, seed, *_cell(rate), *counts))
    return rows


def _cell(rate: Rate) -> tuple[str, str, Split, float, int]:
    return rate.behaviour, rate.prompt_id, rate.split, rate.alpha, rate.n


def _rest(rate: Rate) -> tuple[Any, ...]:
    return rate.refused, rate.harmless, rate.incoherent, rate.unscored, rate.rate, rate.low, rate.high


def arm_tests(cells: Sequence[ArmRate], study: Study) -> list[ArmTest]:
    """What the patch phase makes of the cells."""
    kinds: Any = [ARMS[name] for name in study.patch.arms]
    return compared(cells, kinds, Headline(study.patch.headline, study.attribute.top_k, STAR), 0, study.patch.margin)
