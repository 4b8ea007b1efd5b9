"""Rows as tables of text: built once, shown as Markdown, HTML and slides."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

from datablame.report.results import Results
from datablame.report.wording import (
    alpha_text,
    interval,
    number,
    percent,
    probability,
    signed_interval,
    signed_percent,
    signed_points,
)
from datablame.tables import EVERY, ArmTest, Difference


class TextTable(NamedTuple):
    """Cells as text; the first column is left-aligned, the others are numbers."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def rates_table(results: Results) -> TextTable:
    """Harmful rate and label shares at each alpha, all prompts."""
    calibration, rows = results.calibration, []
    for behaviour, alpha in product((EVERY, *results.behaviours), results.study.surface.alphas):
        rate = results.pooled(behaviour, alpha)
        if rate is None:
            continue
        cells = [r for r in results.rates if (r.prompt_id, r.behaviour, r.alpha) == (EVERY, behaviour, alpha)]
        others = [[cell.refused, cell.harmless, cell.incoherent] for cell in cells]
        shares = [percent(sum(counts) / rate.n) for counts in zip(*others, strict=True)]
        fixed = results.corrected(sum(cell.harmful for cell in cells), rate.n)
        corrected = [] if fixed is None else [percent(fixed.rate), interval(fixed.low, fixed.high)]
        raw = [str(rate.n), percent(rate.rate), interval(*rate.interval)]
        rows.append([_name(behaviour), f"{alpha:g}", *raw, *corrected, *shares])
    about = (
        f"Labels by alpha over all prompts of both splits, labelled by {results.labelled_by}; Wilson intervals (95 %)."
    )
    extra = []
    if calibration is not None:
        extra = ["corrected", "interval"]
        about += (
            " Corrected: the classifier's errors taken out (Rogan and Gladen), with sensitivity "
            f"{number(calibration.sensitivity)} and specificity {number(calibration.specificity)} on {calibration.n} "
            "labelled outputs; the interval carries the errors of all three."
        )
    header = ["behaviour", "alpha", "n", "harmful", "interval", *extra, "refused", "harmless", "incoherent"]
    return TextTable(about, header, rows)


def _name(behaviour: str) -> str:
    return "all" if behaviour == EVERY else behaviour


def unamplified_table(results: Results) -> TextTable:
    """The rate at alpha 0 by split and behaviour; a withheld estimate gives its reason instead of a figure."""
    estimates, rows = results.unamplified, []
    for row in sorted(estimates.rows, key=lambda row: (row.split != "held-out", row.behaviour != EVERY)):
        naive, weighed = row.naive, row.importance
        counted = f"{_quoted(naive.rate, naive.low, naive.high)} of {naive.n}"
        figure = _quoted(weighed.rate, weighed.low, weighed.high)
        if weighed.rate is None and weighed.withheld:
            figure = f"withheld: {weighed.withheld}"
        ess = "-" if weighed.ess is None else f"{weighed.ess:.0f} of {weighed.n}"
        share, khat = _fine_percent(weighed.largest_weight_share), number(weighed.khat)
        rows.append([f"{_name(row.behaviour)}, {row.split}", counted, figure, ess, share, khat])
    about = (
        "The rate at alpha 0, twice: counted among the outputs at alpha 0; weighed (importance sampling) from "
        "the outputs of all alphas (p / sum of pi q), with effective sample size, largest weight's share and k-hat "
        "(above .7 no figure is quoted). 95 % intervals for these prompts."
    )
    if estimates.why_not is not None:
        about = f"The rate at alpha 0 cannot be estimated from amplified outputs: {estimates.why_not}."
    return TextTable(about, ["behaviour", "counted", "weighed", "ESS", "largest", "k-hat"], rows)


def _quoted(rate: float | None, low: float | None, high: float | None) -> str:
    return "-" if rate is None else f"{_fine_percent(rate)} {interval(low, high)}"


def _fine_percent(share: float | None) -> str:
    """Percent with one decimal, or as many as two digits need: rare behaviours are what this table is for."""
    return f"{100 * share:.2g} %" if share and share < 0.01 else percent(share)


def quality_table(results: Results) -> TextTable:
    """How well each method finds what was planted, in both pools."""
    k, rows = results.attribution.k, []
    for method in results.methods:
        pools = {row.pool: row for row in results.quality if row.method == method and row.behaviour == EVERY}
        if pools:
            both = [pools.get("whole"), pools.get("candidates")]
            cells = [getattr(row, name, None) for row in both for name in ("precision_at_k", "recall_at_k", "auprc")]
            rows.append([results.label(method), *map(number, (*cells, results.mean_ceilings.get(method)))])
    return TextTable(
        f"Finding the planted documents, mean over behaviours: precision and recall at {k}, average precision (AP), in "
        f"the whole pool and inside the BM25 candidates; ceiling is the share of a method's first {k} that BM25 keeps.",
        ["method", "P", "R", "AP", "P in BM25", "R in BM25", "AP in BM25", "ceiling"],
        rows,
    )


def agreement_table(results: Results) -> TextTable:
    """How far each pair of methods agrees."""
    rows = []
    for pair in results.agreement:
        if pair.behaviour == EVERY:
            sets = [number(pair.overlap, 1), number(pair.jaccard), number(pair.jaccard_chance, 3)]
            rows.append([f"{pair.a} / {pair.b}", *sets, *map(number, (pair.spearman, pair.kendall, pair.rbo))])
    return TextTable(
        f"Agreement of methods, mean over behaviours: common to the first {results.attribution.k}, Jaccard beside its "
        "expectation by chance, Spearman, Kendall tau-b, rank-biased overlap (p = .95).",
        ["methods", "shared", "Jaccard", "by chance", "Spearman", "tau-b", "RBO"],
        rows,
    )


def patching_table(results: Results, protocol: str) -> TextTable:
    """Arms of one protocol on held-out prompts at alpha*."""
    rows = []
    for test in sorted(results.tested(protocol), key=lambda test: test.rate or 0.0):
        rate = [percent(test.rate), interval(test.low, test.high), percent(test.rate_of_coherent)]
        differences = [*_difference(test.to_random), *_difference(test.to_baseline)]
        rows.append([results.label(test.arm), str(test.seeds), *rate, *differences, probability(test.p_holm)])
    kind = "headline" if protocol == results.study.patch.headline else "exploratory"
    return TextTable(
        f"{protocol} ({kind}): harmful rate on held-out prompts at alpha {alpha_text(results.alpha)}, "
        "mean over prompts and seeds, two-way bootstrap intervals; differences in points, exact permutation p over "
        "seeds; Holm over the patched methods of the larger p.",
        ["arm", "seeds", "rate", "interval", "of coherent", "to random", "p", "to baseline", "p", "Holm p"],
        rows,
    )


def _difference(it: Difference | None) -> tuple[str, str]:
    if it is None:
        return "-", "-"
    return f"{signed_points(it.difference)} {signed_interval(it.low, it.high)}", probability(it.p)


def dose_tables(results: Results, protocol: str) -> Iterator[TextTable]:
    """One protocol's arms at each K; no table where there is one K."""
    at = [{test.arm: test for test in results.tested(protocol, k=k)} for k in results.ks]
    arms = [results.arms[arm] for arm in dict.fromkeys(arm for tests in at for arm in tests)]
    shown = [arm for arm in arms if arm.depends_on_k or arm.role == "baseline"]
    if len(at) > 1 and shown:
        about = (
            f"{protocol}, dose and response: harmful rate on held-out prompts at each K, with the difference to random "
            f"at the same K in points; K = {results.k} is the headline's, the others are exploratory."
        )
        rows = [[arm.label, *(_dose(tests.get(arm.name)) for tests in at)] for arm in shown]
        yield TextTable(about, ["arm", *(f"K = {k}" for k in results.ks)], rows)


def _dose(test: ArmTest | None) -> str:
    if test is None or test.rate is None:
        return "-"
    against = test.to_random if test.k else None
    return percent(test.rate) + (f" ({signed_points(against.difference)})" if against else "")


def behaviour_table(results: Results, protocol: str) -> TextTable:
    """The same arms for each behaviour."""
    tested = [results.tested(protocol, behaviour=behaviour) for behaviour in results.behaviours]
    rates = [{test.arm: test.rate for test in tests} for tests in tested]
    rows = [
        [results.label(test.arm), *(percent(of_arm.get(test.arm)) for of_arm in rates)]
        for test in results.tested(protocol)
    ]
    about = f"{protocol}: the same rates for each behaviour (exploratory)."
    return TextTable(about, ["arm", *results.behaviours], rows)


def checks_table(results: Results) -> TextTable | None:
    """What each arm costs besides: clean text, harmless prompts, coherence, and how far it went from before."""
    if results.patching is None or not results.arm_checks:
        return None
    design, rows = results.patching.checks, []
    for check in results.arm_checks:
        if check.k not in (0, results.k):
            continue
        decides = check.protocol in ("none", results.study.patch.headline)
        arm = results.label(check.arm) + ("" if decides else f", {check.protocol}")
        change = "" if check.refusal_change is None else f" ({signed_points(check.refusal_change)})"
        perplexity = [number(check.perplexity, 3), signed_percent(check.perplexity_change)]
        refusal = [percent(check.refusal) + change, percent(check.coherent)]
        distance = [number(check.kl, 3), number(check.weight_change_norm), "yes" if check.holds else "no"]
        rows.append([arm, *perplexity, *refusal, *distance])
    missing = "".join(f" No {name}: {why}." for name, why in design.absent.items() if why)
    return TextTable(
        f"Side checks, mean over seeds: perplexity on {len(design.clean_ids)} clean documents that no arm "
        f"trains on; refusals of {design.harmless_prompts} harmless prompts at alpha 0, told by "
        f"{design.refusals_by}; coherent outputs to held-out prompts where arms are compared; "
        "KL(arm || before) in nats per token on the arm's own outputs; norm of the change of weights. An arm holds "
        f"when perplexity is at most {percent(design.perplexity)} and refusals at most {percent(design.refusal)} "
        f"(points) above its protocol's baseline, and {percent(design.coherence)} or more are coherent.{missing}",
        ["arm", "perplexity", "change", "refusals", "coherent", "KL", "norm", "holds"],
        rows,
    )


def themes_table(results: Results) -> TextTable:
    """What the candidates are about."""
    rows = []
    for index, theme in enumerate(results.themes, 1):
        prompts = [results.documents[doc_id].prompt for doc_id in theme.examples if doc_id in results.documents]
        shares = [row for row in theme.flagged if row.share is not None and not results.is_control(row.method)]
        flagged = [f"{row.method} {percent(row.share)}" for row in shares]
        example = prompts[0] if prompts else ", ".join(theme.examples)
        rows.append([str(index), ", ".join(theme.terms), percent(theme.share), "; ".join(flagged), example])
    silhouette = results.attribution.silhouette
    quality = "" if silhouette is None else f" (silhouette {number(silhouette)})"
    return TextTable(
        f"Themes of the {results.attribution.themed} BM25 candidates: KMeans over activations{quality}, the terms that "
        "set each apart, and where each method's flagged candidates lie.",
        ["theme", "terms", "share", "flagged by", "example"],
        rows,
    )


def skipped_table(results: Results) -> TextTable:
    """Rows of the data and documents that could not be used, by reason, with the first of each kind."""
    rows = [[row.reason, str(row.count), row.example or ""] for row in results.pool.skipped]
    rows += [[reason, str(count), ""] for reason, count in results.pool.excluded.items()]
    return TextTable(
        f"Left out of the pool, which has {results.pool.documents} documents; the first of each kind.",
        ["reason", "rows", "first"],
        rows,
    )
