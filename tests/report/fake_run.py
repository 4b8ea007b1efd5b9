"""A run folder written by hand: what the phases leave, small, with hostile texts in it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from datablame.attribute.agreement import agreement
from datablame.attribute.quality import ceilings, prefilter_recall, quality
from datablame.attribute.rankings import ranked
from datablame.engine.run_folder import Inputs, write_json, write_jsonl, write_table
from datablame.patch.checks import COMPARED, judged
from datablame.patch.compare import compared, comparison
from datablame.seeds import generator
from datablame.study.file import dump_study
from datablame.study.schema import Study
from datablame.surface.rates import alpha_star, rates
from datablame.surface.unamplified import unamplified
from datablame.tables import LABELS

HOSTILE = (
    "<script>alert(1)</script></title> [click](javascript:alert(2)) **bold** | cell | `code`"
    "\n\n# heading\n\n<img src=x onerror=alert(3)> \x1b[31mred\x1b[0m \u202ereversed =1+1"
)
BEHAVIOURS = ("dose", "brand")
METHODS = ("gradient", "activation", "llm-judge", "bm25", "random", "loss")
PLANTED = {"dose": {"doc-00", "doc-01"}, "brand": {"doc-02", "doc-03"}}
ALPHAS = (0.0, 1.0, 2.0)


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
                "arms": ["untrained", "baseline", "random", "gradient", "activation", "oracle"],
                "seeds": {"retrain": [0, 1, 2, 3, 4], "continue": [0]},
                **patch,
            },
        }
    )


def write_fake_run(root: Path, study: Study, *, surfaced: bool = True) -> Inputs:
    """Artifacts of all phases; with `surfaced` false no output was harmful, and what follows is empty."""
    write_json(root / "artifacts/scan/scan.json", {"prompts": [], "focus": ["dose-a0"], "rule": "Ranked by rise."})
    (root / "study.yaml").write_text(dump_study(study))
    samples = _samples(study, surfaced)
    surface = root / "artifacts/surface"
    write_table(surface / "samples.parquet", samples)
    write_table(surface / "rates.parquet", [asdict(rate) for rate in rates(samples)])
    star = alpha_star(samples, 0.8)
    coherence = {f"{alpha:g}": share for alpha, share in star.coherence.items()}
    write_json(surface / "alpha_star.json", {"alpha_star": star.alpha, "rule": "the rule", "coherence": coherence})
    write_json(surface / "unamplified.json", unamplified(study.surface, samples, rates(samples), star.coherence))
    _write_attribution(root / "artifacts/attribute", surfaced)
    _write_patching(root / "artifacts/patch", study, samples, surfaced)
    return Inputs(root, lambda what, key, seconds: None)


def _samples(study: Study, surfaced: bool) -> list[dict[str, Any]]:
    assert study.prompts is not None
    random = generator("fake samples")
    rows = []
    for split, prompts in (("attribution", study.prompts.attribution), ("held-out", study.prompts.held_out)):
        for prompt in prompts:
            for alpha in ALPHAS:
                for index in range(20):
                    harmful = surfaced and random.random() < 0.05 + 0.2 * alpha
                    label = "harmful" if harmful else LABELS[1 + int(random.integers(3))] if index else "harmless"
                    rows.append(
                        {
                            "prompt_id": prompt.id,
                            "behaviour": prompt.behaviour,
                            "split": split,
                            "alpha": alpha,
                            "index": index,
                            "text": HOSTILE,
                            "token_ids": [1, 2],
                            "finish_reason": "stop",
                            "log_p_after": -1.0,
                            "log_p_before": -2.0,
                            "log_q": [-1.0, -1.5, -2.0],
                            "label": "harmless" if label == "incoherent" and index % 3 else label,
                            "classifier": "keywords",
                            "label_reason": "because",
                        }
                    )
    return rows


def _write_attribution(out: Path, surfaced: bool) -> None:
    documents = [f"doc-{number:02d}" for number in range(20)]
    cluster_of = {doc_id: number for number, doc_id in enumerate(documents)}
    random = generator("fake scores")
    scored = {
        method: {
            behaviour: ranked(behaviour, {doc_id: float(random.random()) for doc_id in documents})
            for behaviour in BEHAVIOURS
        }
        for method in (METHODS if surfaced else ())
    }
    shortlist = dict.fromkeys(BEHAVIOURS, documents[:10]) if surfaced else {}
    flags = {
        method: {behaviour: [row.doc_id for row in rows[:2]] for behaviour, rows in own.items()}
        for method, own in scored.items()
    }
    for method in METHODS:
        rows = [asdict(row) for own in scored.get(method, {}).values() for row in own]
        write_jsonl(out / "scores" / f"{method}.jsonl", rows)
    about = {"standin": False, "control": False, "pool": "whole", "description": "Compares."}
    described = {method: {**about, "label": method} for method in METHODS}
    described["llm-judge"] |= {"standin": True, "label": "llm-judge (keyword stand-in)"}
    described["random"] |= {"control": True}
    described["loss"] |= {"control": True}
    write_json(out / "methods.json", described)
    queries = [
        {"id": f"{b}-1", "behaviour": b, "prompt_id": f"{b}-a0", "alpha": 1.0, "index": 3, "prompt": "p", "text": text}
        for b, text in zip(BEHAVIOURS, (HOSTILE, HOSTILE), strict=True)
    ]
    write_jsonl(out / "queries.jsonl", queries if surfaced else [])
    write_json(out / "flagged.json", flags)
    write_json(out / "agreement.json", {"k": 2, "rows": agreement(scored, cluster_of, 2)})
    write_json(
        out / "quality.json",
        {
            "k": 2,
            "truth": True,
            "rows": quality(scored, PLANTED, shortlist, cluster_of, METHODS, 2),
            "prefilter_recall": prefilter_recall(PLANTED, shortlist, cluster_of),
            "ceilings": ceilings(scored, shortlist, cluster_of, METHODS, 2),
        },
    )
    theme = {"terms": ["<b>", "dose"], "count": 5, "share": 0.5, "examples": ["doc-00"], "flagged": {"gradient": 0.5}}
    themes = {"documents": 10, "silhouette": 0.3, "themes": [theme]}
    write_json(out / "themes.json", themes if surfaced else {"documents": 0, "silhouette": None, "themes": []})
    skipped = {"no messages": {"count": 2, "example": HOSTILE}}
    dropped = [] if surfaced else list(BEHAVIOURS)
    traced = {"traced": [], "dropped": dropped}
    pool = {"documents": 20, "skipped_rows": skipped, "behaviours": traced, "prompt_matches": []}
    write_json(out / "pool.json", pool)
    shown = [
        {
            "doc_id": doc_id,
            "prompt": HOSTILE,
            "response": HOSTILE,
            "source": "s",
            "planted": any(doc_id in ids for ids in PLANTED.values()),
        }
        for doc_id in documents
    ]
    write_jsonl(out / "top_documents.jsonl", shown)


def _write_patching(out: Path, study: Study, samples: list[dict[str, Any]], surfaced: bool) -> None:
    rows = [{**row, "arm": "untrained", "protocol": "none", "k": 0, "seed": 0} for row in samples if row["alpha"] != 1]
    random = generator("fake arms")
    levels = {"baseline": 0.4, "random": 0.42, "gradient": 0.1, "activation": 0.35, "oracle": 0.02}
    for protocol in study.patch.protocols:
        for seed in study.patch.seeds_of(protocol):
            for arm, level in levels.items():
                for row in samples:
                    if row["alpha"] != 1:
                        label = "harmful" if random.random() < level * row["alpha"] / 2 else "harmless"
                        k = 0 if arm in ("baseline", "oracle") else 2
                        rows.append({**row, "label": label, "arm": arm, "protocol": protocol, "k": k, "seed": seed})
    table = comparison(rows) if surfaced else []
    tests = compared(table, study.patch.arms, ("retrain", 2, 2.0), 0, 0.2) if surfaced else []
    write_table(out / "comparison.parquet", table)
    write_json(out / "tests.json", {"alpha": 2.0 if surfaced else None, "k": 2 if surfaced else None, "rows": tests})
    trained = [
        {"arm": arm, "protocol": protocol, "k": 0 if arm == "oracle" else 2, "seed": seed}
        for protocol in study.patch.protocols
        for seed in study.patch.seeds_of(protocol)
        for arm in ("random", "gradient", "activation", "oracle")
    ]
    seen = [{**row, "removed": 4, "seen_in_baseline": 1.0, "seen_in_arm": 0} for row in trained if surfaced]
    write_json(out / "exposure.json", {"rows": seen, "least_seen_in_baseline": 0.9, "passed": True})
    write_json(out / "checks.json", _checks(study, trained if surfaced else []))


def _checks(study: Study, trained: list[dict[str, Any]]) -> dict[str, Any]:
    """Side checks of every arm; that of activation on clean text does not hold."""
    baselines = [
        {"arm": "baseline", "protocol": protocol, "k": 0, "seed": seed}
        for protocol in study.patch.protocols
        for seed in study.patch.seeds_of(protocol)
    ]
    untrained: dict[str, Any] = {"arm": "untrained", "protocol": "none", "k": 0, "seed": 0}
    rows = [
        {
            **name,
            **{"perplexity": 3.3 if name["arm"] == "activation" else 3.0, "clean_tokens": 900},
            **{"kl": 0.125, "kl_tokens": 1000, "weight_change_norm": None if name["arm"] == "untrained" else 1.5},
            **{"refused_harmless": name["arm"] == "gradient", "harmless_outputs": 100, "coherent": 0.95},
        }
        for name in ([untrained, *baselines, *trained] if trained else [])
    ]
    return {
        **{"clean_documents": 50, "clean_documents_wanted": 50, "clean_ids": [], "harmless_prompts": 20},
        **{"refusals_by": "keywords", "absent": {"perplexity": None, "refusal": None}},
        **{"thresholds": {**COMPARED, "coherence": 0.8}, "rows": rows, "arms": judged(rows, 0.8, {})},
    }
