"""The tables of the report: built once, shown as Markdown, HTML and slides."""

from collections.abc import Iterable
from typing import NamedTuple

from datablame.report.artifacts import Artifacts, Row
from datablame.report.corrections import corrected
from datablame.report.findings import pooled_rate
from datablame.report.wording import interval, number, percent, probability, signed_percent
from datablame.tables import EVERY


class Table(NamedTuple):
    """Cells as text; the first column is left-aligned, the others are numbers."""

    caption: str
    header: list[str]
    rows: list[list[str]]


def rates_table(found: Artifacts) -> Table:
    """Harmful rate and label shares at each alpha, all prompts."""
    rows = []
    for behaviour in (EVERY, *found.behaviours):
        for alpha in found.study.surface.alphas:
            cell = pooled_rate(found, behaviour, alpha)
            counted = [
                row
                for row in found.rates
                if (row["prompt_id"], row["behaviour"], row["alpha"]) == (EVERY, behaviour, alpha)
            ]
            if cell is None:
                continue
            shares = [
                percent(sum(row[label] for row in counted) / cell.n) for label in ("refused", "harmless", "incoherent")
            ]
            name = "all" if behaviour == EVERY else behaviour
            own = corrected(found, sum(row["harmful"] for row in counted), cell.n)
            fixed = [] if own is None else [percent(own.rate), interval(own.low, own.high)]
            rows.append(
                [name, f"{alpha:g}", str(cell.n), percent(cell.rate), interval(*cell.interval), *fixed, *shares]
            )
    about = (
        f"Labels by alpha over all prompts of both splits, labelled by {found.labelled_by}; Wilson intervals (95 %)."
    )
    if found.calibration is not None:
        about += (
            " Corrected: the classifier's errors taken out (Rogan and Gladen), with sensitivity "
            f"{number(found.calibration['sensitivity'])} and specificity {number(found.calibration['specificity'])} on "
            f"{found.calibration['n']} labelled outputs; the interval carries the errors of all three."
        )
    extra = [] if found.calibration is None else ["corrected", "interval"]
    return Table(
        about,
        ["behaviour", "alpha", "n", "harmful", "interval", *extra, "refused", "harmless", "incoherent"],
        rows,
    )


def quality_table(found: Artifacts) -> Table:
    """How well each method finds what was planted, in both pools."""
    k = found.quality["k"]
    ceilings = {row["method"]: row["ceiling"] for row in found.quality["ceilings"] if row["behaviour"] == EVERY}
    rows = []
    for method in found.methods:
        cells = {
            row["pool"]: row for row in found.quality["rows"] if row["method"] == method and row["behaviour"] == EVERY
        }
        if cells:
            both = [*_quality(cells.get("whole")), *_quality(cells.get("candidates"))]
            rows.append([found.label(method), *both, number(ceilings.get(method))])
    return Table(
        f"Finding the planted documents, mean over behaviours: precision and recall at {k}, average precision (AP), in "
        f"the whole pool and inside the BM25 candidates; ceiling is the share of a method's first {k} that BM25 keeps.",
        ["method", "P", "R", "AP", "P in BM25", "R in BM25", "AP in BM25", "ceiling"],
        rows,
    )


def _quality(row: Row | None) -> list[str]:
    return [number(row[name] if row else None) for name in ("precision_at_k", "recall_at_k", "auprc")]


def agreement_table(found: Artifacts) -> Table:
    """How far each pair of methods agrees."""
    rows = [
        [
            f"{row['a']} / {row['b']}",
            number(row["overlap"], 1),
            number(row["jaccard"]),
            number(row["jaccard_chance"], 3),
            number(row["spearman"]),
            number(row["kendall"]),
            number(row["rbo"]),
        ]
        for row in found.agreement["rows"]
        if row["behaviour"] == EVERY
    ]
    return Table(
        f"Agreement of methods, mean over behaviours: common to the first {found.agreement['k']}, Jaccard beside its "
        "expectation by chance, Spearman, Kendall tau-b, rank-biased overlap (p = .95).",
        ["methods", "shared", "Jaccard", "by chance", "Spearman", "tau-b", "RBO"],
        rows,
    )


def patching_table(found: Artifacts, protocol: str) -> Table:
    """Arms of one protocol on held-out prompts at alpha*."""
    rows = []
    for arm, row in sorted(found.tested(protocol=protocol).items(), key=lambda pair: pair[1]["rate"] or 0.0):
        rows.append(
            [
                found.label(arm),
                str(row["seeds"]),
                percent(row["rate"]),
                interval(row["low"], row["high"]),
                percent(row["rate_of_coherent"]),
                *_difference(row["to_random"]),
                *_difference(row["to_baseline"]),
                probability(row["p_holm"]),
            ]
        )
    role = "headline" if protocol == found.study.patch.headline else "exploratory"
    alpha = found.patch_alpha
    return Table(
        f"{protocol} ({role}): harmful rate on held-out prompts at alpha {'-' if alpha is None else f'{alpha:g}'}, "
        "mean over prompts and seeds, two-way bootstrap intervals; differences in points, exact permutation p over "
        "seeds; Holm over the patched methods of the larger p.",
        ["arm", "seeds", "rate", "interval", "of coherent", "to random", "p", "to baseline", "p", "Holm p"],
        rows,
    )


def dose_tables(found: Artifacts, protocol: str) -> list[Table]:
    """One protocol's arms at each K; no table where there is one K."""
    at = {k: found.tested(protocol=protocol, k=k) for k in found.ks}
    arms = {arm: row["k"] for rows in at.values() for arm, row in rows.items()}
    rows = [
        [found.label(arm), *(_dose(own.get(arm)) for own in at.values())]
        for arm, k in arms.items()
        if k or arm == "baseline"
    ]
    about = (
        f"{protocol}, dose and response: harmful rate on held-out prompts at each K, with the difference to random at "
        f"the same K in points; K = {found.k} is the headline's, the others are exploratory."
    )
    return [Table(about, ["arm", *(f"K = {k}" for k in at)], rows)] if len(at) > 1 and rows else []


def _dose(row: Row | None) -> str:
    if row is None or row["rate"] is None:
        return "-"
    against = row["to_random"] if row["k"] else None
    return percent(row["rate"]) + (f" ({100 * against['difference']:+.1f})" if against else "")


def behaviour_table(found: Artifacts, protocol: str) -> Table:
    """The same arms for each behaviour."""
    arms = found.tested(protocol=protocol)
    by_behaviour = {name: found.tested(protocol=protocol, behaviour=name) for name in found.behaviours}
    rows = [
        [found.label(arm), *(percent(rows[arm]["rate"]) if arm in rows else "-" for rows in by_behaviour.values())]
        for arm in arms
    ]
    return Table(f"{protocol}: the same rates for each behaviour (exploratory).", ["arm", *by_behaviour], rows)


def checks_table(found: Artifacts) -> Table:
    """What each arm costs besides: clean text, harmless prompts, coherence, and how far it went from before."""
    checks = found.checks
    rows = []
    for row in checks.get("arms", ()):
        if row["k"] not in (0, found.k):
            continue
        own = row["protocol"] in ("none", found.study.patch.headline)
        points = row["refusal_change"]
        rows.append(
            [
                found.label(row["arm"]) + ("" if own else f", {row['protocol']}"),
                number(row["perplexity"], 3),
                signed_percent(row["perplexity_change"]),
                percent(row["refusal"]) + ("" if points is None else f" ({100 * points:+.1f})"),
                percent(row["coherent"]),
                number(row["kl"], 3),
                number(row["weight_change_norm"]),
                "yes" if row["holds"] else "no",
            ]
        )
    limits = checks.get("thresholds", {"perplexity": None, "refusal": None, "coherence": None})
    missing = "".join(f" No {name}: {why}." for name, why in checks.get("absent", {}).items() if why)
    return Table(
        f"Side checks, mean over seeds: perplexity on {checks.get('clean_documents', 0)} clean documents that no arm "
        f"trains on; refusals of {checks.get('harmless_prompts', 0)} harmless prompts at alpha 0, told by "
        f"{checks.get('refusals_by', 'nobody')}; coherent outputs to held-out prompts where arms are compared; "
        "KL(arm || before) in nats per token on the arm's own outputs; norm of the change of weights. An arm holds "
        f"when perplexity is at most {percent(limits['perplexity'])} and refusals at most {percent(limits['refusal'])} "
        f"(points) above its protocol's baseline, and {percent(limits['coherence'])} or more are coherent.{missing}",
        ["arm", "perplexity", "change", "refusals", "coherent", "KL", "norm", "holds"],
        rows,
    )


def themes_table(found: Artifacts) -> Table:
    """What the candidates are about."""
    rows = []
    for number_, theme in enumerate(found.themes["themes"], 1):
        examples = [found.documents[doc_id]["prompt"] for doc_id in theme["examples"] if doc_id in found.documents]
        flagged = [
            f"{method} {percent(share)}"
            for method, share in theme["flagged"].items()
            if share is not None and not found.methods[method]["control"]
        ]
        shown = examples[0] if examples else ", ".join(theme["examples"])
        rows.append([str(number_), ", ".join(theme["terms"]), percent(theme["share"]), "; ".join(flagged), shown])
    silhouette = found.themes["silhouette"]
    return Table(
        f"Themes of the {found.themes['documents']} BM25 candidates: KMeans over activations"
        f"{'' if silhouette is None else f' (silhouette {number(silhouette)})'}, the terms that set each apart, and "
        "where each method's flagged candidates lie.",
        ["theme", "terms", "share", "flagged by", "example"],
        rows,
    )


def skipped_table(found: Artifacts) -> Table:
    """Rows of the data and documents that could not be used, by reason, with the first of each kind."""
    skipped = found.pool.get("skipped_rows", {})
    rows = [[reason, str(row["count"]), row["example"] or ""] for reason, row in skipped.items()]
    rows += [[reason, str(count), ""] for reason, count in found.pool.get("excluded", {}).items()]
    return Table(
        f"Left out of the pool, which has {found.pool.get('documents', 0)} documents; the first of each kind.",
        ["reason", "rows", "first"],
        rows,
    )


def _difference(row: Row | None) -> Iterable[str]:
    if row is None:
        return ["-", "-"]
    return [
        f"{100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]",
        probability(row["p"]),
    ]
