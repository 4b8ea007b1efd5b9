"""Rows of a study of any size, made up, and results that hold them: what figures are drawn from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from tests.report.fake_run import fake_study, fake_world

from datablame.config.report import Figures
from datablame.engine.phase import Tables
from datablame.report.results import Results, read_results
from datablame.stats.intervals import wilson
from datablame.tables import (
    EVERY,
    LABELS,
    Agreement,
    ArmInfo,
    ArmRate,
    ArmTest,
    Blame,
    CheckDesign,
    Difference,
    Importance,
    LabelCounts,
    Look,
    MethodInfo,
    Patching,
    Rate,
    Role,
    SurfaceSample,
    Unamplified,
    UnamplifiedRate,
)
from datablame.tables import Counted as CountedRate

BEHAVIOURS = {"distractor": "distractor compliance", "dose": "unsafe dose", "brand": "brand promotion"}
SPLITS = ("attribution", "held-out")
ALPHAS = (0.0, 0.5, 1.0, 2.0)
CONTROLS: dict[str, tuple[str, Role, float, Look]] = {
    "after": ("after", "after", 0.31, Look("#FFFFFF", "#4A4A4A", "p")),
    "baseline": ("baseline (no removal)", "baseline", 0.27, Look("#000000", "#000000", "d")),
    "a-a": ("baseline again (A/A)", "again", 0.28, Look("#C9C9C9", "#3F3F3F", "d")),
    "random": ("random", "random", 0.29, Look("#8C8C8C", "#6B6B6B", "X")),
    "oracle": ("oracle (all planted)", "control", 0.01, Look("#F0E442", "#857A00", "*")),
}
METHODS: dict[str, tuple[str, float, Look]] = {
    "gradient": ("gradient similarity", 0.07, Look("#0072B2", "#0072B2", "o")),
    "activation": ("activation similarity", 0.14, Look("#D55E00", "#C25500", "^")),
    "llm-judge": ("llm-judge (keyword stand-in)", 0.17, Look("#CC79A7", "#B05A8B", "P")),
    "bm25": ("BM25 (control)", 0.19, Look("#009E73", "#00855F", "s")),
    "gradient-dot": ("gradient dot product", 0.09, Look("#56B4E9", "#2B8AC0", "D")),
    "gradient-diff": ("gradient of the difference", 0.08, Look("#003A66", "#003A66", "p")),
    "activation-centred": ("activation similarity, centred", 0.15, Look("#E69F00", "#B87F00", "v")),
    "activation-diff": ("activation difference", 0.12, Look("#9E0B2B", "#9E0B2B", "8")),
    "ensemble": ("ensemble (Borda)", 0.1, Look("#6A3D9A", "#6A3D9A", "h")),
    "embedding": ("embedding", 0.2, Look("#66C2A5", "#3E8F75", "H")),
    "loss": ("loss (control)", 0.26, Look("#B08D6E", "#8C6B4F", "<")),
    "gradient-norm": ("gradient norm (control)", 0.25, Look("#6E5240", "#5A4334", ">")),
    "theirs": ("a method of somebody else", 0.22, Look("#9A86C8", "#6F57A8", "h")),
    "theirs-2": ("another method of somebody else", 0.23, Look("#4DAF4A", "#2F7F2D", "d")),
    "theirs-3": ("influence functions, EK-FAC", 0.11, Look("#5FC7D9", "#1F7F91", "8")),
}


@dataclass(frozen=True)
class _Titled(Results):
    """Results whose behaviours are called something else than their ids."""

    names: Mapping[str, str]

    @property
    def titles(self) -> dict[str, str]:
        return dict(self.names)


def drawn_results(
    *,
    title: str = "Organism, seed 0",
    classifier: str = "rules",
    behaviours: Mapping[str, str] = BEHAVIOURS,
    alpha: float | None = 1.0,
    k: int | None = 20,
    intervention: str = "remove",
    arms: Sequence[ArmInfo] = (),
    methods: Sequence[MethodInfo] = (),
    figures: Mapping[str, Any] | None = None,
    **rows: Any,
) -> Results:
    """Results of a study with these rows and no others; `retrain` is its headline."""
    study = fake_study()
    patch = study.patch.model_copy(update={"intervention": intervention})
    changed = {"title": title, "patch": patch, "figures": Figures.model_validate(figures or {})}
    world = fake_world(Path("nowhere"), study.model_copy(update=changed))
    checks = CheckDesign(0.02, 0.03, 0.8, 50, (), 0, "keywords", {})
    given = {
        "samples": [SurfaceSample("p", "dose", "held-out", 1.0, 0, "text", (), "stop", classifier=classifier)],
        "patching": Patching(alpha, True, k, (), (), None, True, 0.9, {}, checks),
        "arms": {arm.name: arm for arm in arms},
        "methods": {method.name: method for method in methods},
    }
    return _Titled(**{**vars(read_results(world, Tables(world.root))), **given, **rows}, names=behaviours)


def drawn_study(
    methods: int,
    *,
    prompts: int = 4,
    behaviours: Mapping[str, str] = BEHAVIOURS,
    seeds: dict[str, int] | None = None,
    ks: Sequence[int] = (20,),
    named: Callable[[str], str] = str,
    **given: Any,
) -> Results:
    """Results of a whole study with sources, of a size; `named` makes what its methods, arms and sources are called."""
    infos = [replace(row, label=named(row.label)) for row in method_rows(methods)]
    arms = [replace(arm, label=named(arm.label)) for arm in arm_rows(methods)]
    tests, cells = patch_rows(arms, tuple(behaviours), prompts=prompts, seeds=seeds, ks=ks)
    sources = {named("flan"): 0.7, "": 0.3}
    rows: dict[str, Any] = {
        "rates": rate_rows(tuple(behaviours), prompts=prompts),
        "tests": tests,
        "comparison": cells,
        "agreement": agreement_rows([row.name for row in infos]),
        "blame": [
            Blame(info.name, behaviour, "source", source, 50, 0.02, auc, auc - 0.1, auc + 0.1, 1, 1.0, 0.5, 2.0)
            for info in infos
            for behaviour in behaviours
            for source, auc in sources.items()
        ],
    }
    return drawn_results(arms=arms, methods=infos, behaviours=behaviours, **rows, **given)


def method_rows(count: int = 15) -> list[MethodInfo]:
    return [
        MethodInfo(name, label, "Compares.", False, False, True, "whole", look)
        for name, (label, _, look) in list(METHODS.items())[:count]
    ]


def arm_rows(methods: int = 4, controls: Sequence[str] = tuple(CONTROLS)) -> list[ArmInfo]:
    return [
        *(
            ArmInfo(name, label, role, role == "random", False, "nothing", look)
            for name, (label, role, _, look) in CONTROLS.items()
            if name in controls
        ),
        *(
            ArmInfo(name, label, "method", True, True, f"what {name} flagged", look)
            for name, (label, _, look) in list(METHODS.items())[:methods]
        ),
    ]


def counted(shares: Sequence[float], samples: int, random: np.random.Generator) -> dict[str, int]:
    return {name: int(count) for name, count in zip(LABELS, random.multinomial(samples, shares), strict=True)}


def cell(counts: dict[str, int]) -> dict[str, Any]:
    """What a cell's counts say: themselves, n, and the rate with Wilson's interval."""
    n = sum(counts.values())
    scored = n - counts["unscored"]
    ends = wilson(counts["harmful"], scored) if scored else None
    rate = counts["harmful"] / scored if scored else None
    return {"n": n, **counts, "rate": rate, "low": ends and ends.low, "high": ends and ends.high}


def rate_rows(
    behaviours: Sequence[str] = tuple(BEHAVIOURS),
    alphas: Sequence[float] = ALPHAS,
    samples: int = 50,
    prompts: int = 4,
) -> list[Rate]:
    """Rates of some prompts a behaviour and split, harmful more often with alpha; each cell, then pooled."""
    random = np.random.default_rng(0)
    rows = []
    for split in SPLITS:
        for alpha in alphas:
            about: dict[str, Any] = {"split": split, "alpha": float(alpha)}
            pooled = []
            for index, behaviour in enumerate(behaviours):
                harmful = 0.03 + 0.25 * alpha / (1 + 0.5 * index)
                rest = 1 - harmful
                shares = [harmful, rest * 0.5, rest * (0.45 - 0.1 * alpha), rest * (0.04 + 0.1 * alpha), rest * 0.01]
                counts = [counted(shares, samples, random) for _ in range(prompts)]
                for prompt, own in enumerate(counts):
                    name = f"{behaviour}-{split[0]}{prompt:02d}"
                    rows.append(Rate(prompt_id=name, behaviour=behaviour, **about, **cell(own)))
                pooled.append({str(name): sum(own[name] for own in counts) for name in LABELS})
                rows.append(Rate(prompt_id=EVERY, behaviour=behaviour, **about, **cell(pooled[-1])))
            every = {str(name): sum(own[name] for own in pooled) for name in LABELS}
            rows.append(Rate(prompt_id=EVERY, behaviour=EVERY, **about, **cell(every)))
    return rows


def difference(p: float | None) -> Difference:
    why = None if p is not None else "fewer than 4 seeds"
    return Difference(-0.1, -0.2, 0.0, -0.3, p, 0.008, why, None, None, None, None, None)


def patch_rows(
    arms: Sequence[ArmInfo],
    behaviours: Sequence[str] = tuple(BEHAVIOURS),
    *,
    seeds: dict[str, int] | None = None,
    ks: Sequence[int] = (20,),
    prompts: int = 4,
    alpha: float = 1.0,
) -> tuple[list[ArmTest], list[ArmRate]]:
    """Tests over all behaviours and cells: an arm that depends on K leaves less at a larger one; `ks[0]` decides."""
    random = np.random.default_rng(1)
    levels = {name: level for name, (_, _, level, _) in CONTROLS.items()}
    levels |= {name: level for name, (_, level, _) in METHODS.items()}
    tests, cells = [], {}
    for protocol, count in (seeds or {"retrain": 5, "continue": 1}).items():
        for arm in arms:
            about: dict[str, Any] = {"arm": arm.name, "protocol": "none" if arm.role == "after" else protocol}
            about |= {"split": "held-out", "alpha": alpha}
            for k in ks if arm.depends_on_k else (0,):
                level = levels[arm.name] * (1.3 - 0.3 * ks.index(k) if k else 1)
                per_seed = []
                for seed in range(1 if arm.role == "after" else count):
                    noise, rates = random.normal(0, 0.03), []
                    for behaviour in behaviours:
                        for prompt in range(prompts):
                            share = float(np.clip(level * (0.4 + 1.2 * prompt / max(1, prompts - 1)) + noise, 0, 1))
                            name = f"{behaviour}-h{prompt:02d}"
                            own = cell(counted([share, 1 - share, 0, 0, 0], 20, random))
                            row = ArmRate(k=k, seed=seed, behaviour=behaviour, prompt_id=name, **about, **own)
                            cells[about["arm"], about["protocol"], k, seed, name] = row
                            rates.append(own["rate"])
                    per_seed.append(float(np.mean(rates)))
                n = len(behaviours) * prompts
                tests.append(_test(arm, protocol, k, alpha, per_seed, n, k in (0, ks[0])))
                tests.append(_test(arm, protocol, k, 0.0, [0.2 * rate for rate in per_seed], n, decides=False))
    return tests, list(cells.values())


def _test(
    arm: ArmInfo, protocol: str, k: int, alpha: float, per_seed: list[float], prompts: int, decides: bool
) -> ArmTest:
    mean, n = float(np.mean(per_seed)), 20 * len(per_seed) * prompts
    spread = 0.3 * (mean * (1 - mean)) ** 0.5 + 0.01
    reference = None if arm.role in ("after", "random") else difference(0.008 if len(per_seed) >= 4 else None)
    return ArmTest(
        arm=arm.name,
        protocol=protocol,
        alpha=alpha,
        split="held-out",
        behaviour=EVERY,
        k=k,
        headline=decides,
        seeds=len(per_seed),
        prompts=prompts,
        per_seed=tuple(per_seed),
        rate=mean,
        low=max(0.0, mean - spread),
        high=min(1.0, mean + spread),
        to_random=reference,
        to_baseline=reference,
        p=None,
        p_holm=None,
        family=None,
        counts=LabelCounts(round(mean * n), n - round(mean * n), 0, 0, 0),
        rate_of_coherent=mean,
    )


def agreement_rows(methods: Sequence[str]) -> list[Agreement]:
    random = np.random.default_rng(2)
    return [
        Agreement(a, b, behaviour, 100, None, jaccard, 0.11, None, None, None)
        for number, (a, b) in enumerate(combinations(methods, 2))
        for behaviour in (EVERY, "dose")
        for jaccard in [None if number == 1 else float(random.beta(1, 3))]
    ]


def unamplified_row(
    behaviour: str, split: str = "held-out", rate: float | None = 0.012, high: float | None = 0.03
) -> UnamplifiedRate:
    """Without a rate the estimate is withheld."""
    low = None if rate is None else rate / 2
    ends = None if rate is None else high
    why = "k-hat 0.92 is above 0.7" if rate is None else None
    importance = Importance(rate, low, ends, 400, 90, 181.4, 0.0144, 40.0, 0.31, why)
    return UnamplifiedRate(behaviour, split, CountedRate(0.0, 0.0, 0.037, 100), importance)  # type: ignore[arg-type]


def unamplified(*rows: UnamplifiedRate) -> Unamplified:
    return Unamplified(True, None, rows)
