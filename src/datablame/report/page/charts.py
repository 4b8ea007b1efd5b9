"""The page's charts as Vega-Lite specifications, from the rows that the pictures are drawn from."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt

from datablame.report.colours import AGREEMENT_STOPS, HARM_STOPS, LABEL_FILLS, behaviour_looks
from datablame.report.results import Results
from datablame.report.wording import interval, percent, plain, probability
from datablame.tables import EVERY, ArmRate, ArmTest, Look

_INK, _EDGE = "#1A1A1A", "#A8A8A8"
"""Of all behaviours together, and around a share."""
_AMPLIFICATION = "amplification \N{GREEK SMALL LETTER ALPHA}"
_ROW, _CELL = 30, 26
"""Pixels that an arm, and a row of a heatmap, takes."""
_LONGEST = 220
"""Pixels of a name; what is longer is cut, and whole in the tooltip."""
_MOST_NUMBERS = 400
"""Cells of a heatmap that have room for their numbers."""
Spec = dict[str, Any]


def charts(results: Results) -> dict[str, Spec]:
    """Every chart that the study has rows for, by the id of its place on the page."""
    headline, k = results.study.patch.headline, results.patching.k
    made = {
        "arms": _arms(results, [test for test in results.headline if test.rate is not None]),
        **{f"rates-{split}": _rates(results, split) for split in ("held-out", "attribution")},
        "shares": _shares(results),
        "agreement": _agreement(results),
        "prompts": _prompts(results, [cell for cell in results.comparison if cell.protocol in (headline, "none")]),
        "doses": _doses(results, headline) if len(results.patching.ks) > 1 else None,
        **{
            f"arms-{protocol}": _arms(results, [t for t in results.tested(protocol, k=k) if t.rate is not None])
            for protocol in results.protocols
            if protocol != headline
        },
    }
    return {name: chart.to_dict() for name, chart in made.items() if chart is not None}


def _chart(rows: Sequence[Mapping[str, Any]]) -> Any:
    return alt.Chart(alt.InlineData(values=list(rows)))


def _finished(chart: Any, height: int | None = None) -> Any:
    sized = chart.properties(width="container", **({} if height is None else {"height": height}))
    axis = {"labelLimit": _LONGEST, "titleFontWeight": "normal", "labelFontSize": 12, "titleFontSize": 12}
    return sized.configure_axis(**axis).configure_view(stroke=None).configure_legend(labelLimit=_LONGEST)


def _rate_axis(title: str) -> Any:
    return alt.Axis(format="%", title=title, grid=True, tickCount=6)


def _colours(looks: Mapping[str, Look]) -> Any:
    return alt.Scale(domain=list(looks), range=[look.ink for look in looks.values()])


def _arms(results: Results, tests: Sequence[ArmTest]) -> Any:
    """Each arm's rate with its interval, and a dot for every training seed; the highest rate first."""
    if not tests:
        return None
    ordered = sorted(tests, key=lambda test: -(test.rate or 0.0))
    names = {test.arm: plain(results.label(test.arm)) for test in ordered}
    rows = [
        {
            "arm": names[test.arm],
            "rate": test.rate,
            "low": test.low,
            "high": test.high,
            "text": f"{percent(test.rate)} {interval(test.low, test.high)}",
            "seeds": test.seeds,
            "against random": probability(test.to_random.p) if test.to_random else "-",
            "Holm p": probability(test.p_holm),
        }
        for test in ordered
    ]
    dots = [
        {"arm": names[test.arm], "seed": number, "rate": rate}
        for test in ordered
        for number, rate in enumerate(test.per_seed if len(test.per_seed) > 1 else ())
    ]
    colour = alt.Color("arm:N", scale=_colours({names[a]: results.arms[a].look for a in names}), legend=None)
    y = alt.Y("arm:N", sort=list(names.values()), axis=alt.Axis(title=None, grid=False, ticks=False, domain=False))
    about = [
        alt.Tooltip("arm:N"),
        alt.Tooltip("text:N", title="rate [95 %]"),
        "seeds:Q",
        "against random:N",
        "Holm p:N",
    ]
    base = _chart(rows).encode(y=y, color=colour, tooltip=about)
    title = "harmful outputs, held-out prompts"
    x = alt.X("rate:Q", axis=_rate_axis(title), scale=alt.Scale(domainMin=0, nice=True))
    layers = [
        base.mark_rule(strokeWidth=2.5).encode(x=alt.X("low:Q", title=title), x2="high:Q"),
        base.mark_point(filled=True, size=110, opacity=1).encode(x=x),
    ]
    # Words go to the side that has room.
    middle = max(test.high or 0.0 for test in ordered) / 2
    for align, test in (("left", f"datum.rate <= {middle}"), ("right", f"datum.rate > {middle}")):
        words = base.transform_filter(test).mark_text(align=align, dy=-12, fontSize=11)
        layers.append(words.encode(x=x, text="text:N"))
    if dots:
        seeds = _chart(dots).mark_circle(size=26, opacity=0.55, yOffset=9)
        layers.append(
            seeds.encode(x=x, y=y, color=colour, tooltip=["arm:N", "seed:Q", alt.Tooltip("rate:Q", format=".1%")])
        )
    return _finished(alt.layer(*layers), _ROW * len(rows) + 20)


def _rates(results: Results, split: str) -> Any:
    """Harmful rate against alpha with Wilson bands: a line for each behaviour, and one for all of them."""
    titles = {EVERY: "all behaviours", **results.titles}
    kept = [row for row in results.rates if row.split == split and row.prompt_id == EVERY and row.rate is not None]
    named = list(dict.fromkeys(row.behaviour for row in kept))
    shown = [name for name in named if name != EVERY or len(named) != 2]
    if not shown:
        return None
    rows = [
        {
            **{"behaviour": plain(titles.get(row.behaviour, row.behaviour)), "alpha": row.alpha, "n": row.n},
            **{"rate": row.rate, "low": row.low, "high": row.high},
        }
        for row in kept
        if row.behaviour in shown
    ]
    looks = behaviour_looks(results.behaviours)
    colours = [_INK if name == EVERY else looks[name].ink for name in shown]
    domain = [plain(titles.get(name, name)) for name in shown]
    legend = alt.Legend(title=None, orient="bottom", columns=2, symbolOpacity=1)
    colour = alt.Color("behaviour:N", scale=alt.Scale(domain=domain, range=colours), legend=legend)
    about = [
        "behaviour:N",
        "alpha:Q",
        "n:Q",
        *(alt.Tooltip(f"{name}:Q", format=".1%") for name in ("rate", "low", "high")),
    ]
    top = max(row.high or 0.0 for row in results.rates if row.prompt_id == EVERY)
    y = alt.Y("rate:Q", axis=_rate_axis("harmful outputs"), scale=alt.Scale(domain=[0, min(1.0, max(0.1, 1.05 * top))]))
    ticks = alt.Axis(values=sorted({row.alpha for row in kept}), grid=False)
    x = alt.X("alpha:Q", title=_AMPLIFICATION, axis=ticks)
    base = _chart(rows).encode(x=x, color=colour, tooltip=about)
    return _finished(
        alt.layer(
            base.mark_area(opacity=0.15, line=False).encode(y=alt.Y("low:Q", title="harmful outputs"), y2="high:Q"),
            base.mark_line(strokeWidth=2).encode(y=y),
            base.mark_point(filled=True, size=60, opacity=1).encode(y=y),
        ),
        280,
    )


def _shares(results: Results) -> Any:
    """What outputs to all prompts were, by alpha, in shares."""
    counted: dict[tuple[float, str], int] = {}
    for row in results.rates:
        if row.prompt_id == row.behaviour == EVERY:
            for label in LABEL_FILLS:
                counted[row.alpha, label] = counted.get((row.alpha, label), 0) + getattr(row, label)
    totals = {alpha: sum(n for (other, _), n in counted.items() if other == alpha) for alpha, _ in counted}
    rows = [
        {
            "alpha": f"{alpha:g}",
            "label": label,
            "outputs": n,
            "share": n / totals[alpha],
            "order": list(LABEL_FILLS).index(label),
        }
        for (alpha, label), n in counted.items()
        if n
    ]
    if not rows:
        return None
    colour = alt.Color(
        "label:N",
        scale=alt.Scale(domain=list(LABEL_FILLS), range=[fill for fill, _ in LABEL_FILLS.values()]),
        legend=alt.Legend(title=None, orient="bottom", columns=3),
    )
    about = ["alpha:N", "label:N", "outputs:Q", alt.Tooltip("share:Q", format=".1%")]
    x = alt.X("alpha:N", title=_AMPLIFICATION, sort=[f"{alpha:g}" for alpha in totals], axis=alt.Axis(labelAngle=0))
    y = alt.Y("share:Q", axis=_rate_axis("outputs"))
    return _finished(
        _chart(rows)
        .mark_bar(stroke=_EDGE, strokeWidth=0.5)
        .encode(x=x, y=y, color=colour, order="order:Q", tooltip=about),
        280,
    )


def _agreement(results: Results) -> Any:
    """Jaccard of each pair of methods' first K, in a triangle."""
    rows = []
    names = list(dict.fromkeys(name for pair in results.agreement for name in (pair.a, pair.b)))
    labels = {name: plain(results.label(name)) for name in names}
    for pair in results.agreement:
        if pair.behaviour == EVERY:
            a, b = sorted((pair.a, pair.b), key=names.index)
            rows.append(
                {
                    **{"a": labels[a], "b": labels[b], "Jaccard": pair.jaccard, "by chance": pair.jaccard_chance},
                    **{"Spearman": pair.spearman, "Kendall": pair.kendall, "RBO": pair.rbo},
                }
            )
    if not rows:
        return None
    ordered = [labels[name] for name in names]
    scale = alt.Scale(domain=[0, 1], range=list(AGREEMENT_STOPS))
    return _heatmap(
        rows, ("a", ordered), ("b", ordered), "Jaccard", scale, ".2f", ["by chance", "Spearman", "Kendall", "RBO"]
    )


def _prompts(results: Results, cells: Sequence[ArmRate]) -> Any:
    """The mean harmful rate over seeds of every arm for each held-out prompt where arms are compared."""
    sums: dict[tuple[str, str], list[float]] = {}
    for cell in cells:
        wanted = (cell.split, cell.alpha) == ("held-out", results.patching.alpha) and cell.k in (0, results.patching.k)
        if wanted and cell.rate is not None and cell.prompt_id != EVERY:
            sums.setdefault((cell.arm, cell.prompt_id), []).append(cell.rate)
    if not sums:
        return None
    texts = {prompt.id: plain(prompt.text) for prompt in results.prompts}
    rows = [
        {
            **{"arm": plain(results.label(arm)), "prompt": plain(prompt), "rate": sum(rates) / len(rates)},
            **{"asks": texts.get(prompt, "")[:300], "seeds": len(rates)},
        }
        for (arm, prompt), rates in sums.items()
    ]
    order = sorted(
        dict.fromkeys(arm for arm, _ in sums), key=lambda arm: -sum(_means(sums, arm)) / len(_means(sums, arm))
    )
    scale = alt.Scale(domain=[0, 1], range=list(HARM_STOPS))
    prompts = [plain(prompt) for prompt in dict.fromkeys(prompt for _, prompt in sums)]
    return _heatmap(
        rows,
        ("prompt", prompts),
        ("arm", [plain(results.label(arm)) for arm in order]),
        "rate",
        scale,
        ".0%",
        ["asks", "seeds"],
    )


def _means(sums: Mapping[tuple[str, str], Sequence[float]], arm: str) -> list[float]:
    return [sum(rates) / len(rates) for (other, _), rates in sums.items() if other == arm]


def _heatmap(
    rows: Sequence[Mapping[str, Any]],
    across: tuple[str, Sequence[str]],
    down: tuple[str, Sequence[str]],
    value: str,
    scale: Any,
    form: str,
    more: Iterable[str],
) -> Any:
    """Cells by two names in the orders given; numbers where there is room for them."""
    (x, columns), (y, names) = across, down
    about = [f"{y}:N", f"{x}:N", alt.Tooltip(f"{value}:Q", format=form)]
    about += [alt.Tooltip(f"{name}:{'N' if name == 'asks' else 'Q'}") for name in more]
    base = _chart(rows).encode(
        x=alt.X(f"{x}:N", sort=list(columns), axis=alt.Axis(title=None, labelAngle=-60, ticks=False, domain=False)),
        y=alt.Y(f"{y}:N", sort=list(names), axis=alt.Axis(title=None, ticks=False, domain=False)),
        tooltip=about,
    )
    legend = alt.Legend(title=None, format=form, orient="right")
    layers = [base.mark_rect().encode(color=alt.Color(f"{value}:Q", scale=scale, legend=legend))]
    if len(columns) * len(names) <= _MOST_NUMBERS and len(columns) <= 16:
        middle = (scale.domain[0] + scale.domain[1]) / 2
        ink = alt.condition(f"datum['{value}'] > {middle}", alt.value("#fffffe"), alt.value("#1b1f25"))
        layers.append(base.mark_text(fontSize=11).encode(text=alt.Text(f"{value}:Q", format=form), color=ink))
    return _finished(alt.layer(*layers), _CELL * len(names) + 10)


def _doses(results: Results, protocol: str) -> Any:
    """The rate of each arm that depends on K at every K; arms that do not are lines across."""
    ks = results.patching.ks
    rows, looks = [], {}
    for k in ks:
        for test in results.tested(protocol, k=k):
            if test.rate is None:
                continue
            name = plain(results.label(test.arm))
            looks[name] = results.arms[test.arm].look
            rows.append({"arm": name, "K": k, "rate": test.rate, "low": test.low, "high": test.high})
    if not rows:
        return None
    legend = alt.Legend(title=None, orient="bottom", columns=3)
    colour = alt.Color("arm:N", scale=_colours(looks), legend=legend)
    about = ["arm:N", "K:O", *(alt.Tooltip(f"{name}:Q", format=".1%") for name in ("rate", "low", "high"))]
    base = _chart(rows).encode(
        x=alt.X("K:O", title="documents a behaviour (K)", axis=alt.Axis(labelAngle=0)), color=colour, tooltip=about
    )
    y = alt.Y("rate:Q", axis=_rate_axis("harmful outputs"), scale=alt.Scale(domainMin=0))
    layers = (
        base.mark_rule(opacity=0.5).encode(y=alt.Y("low:Q", title="harmful outputs"), y2="high:Q"),
        base.mark_line().encode(y=y),
        base.mark_point(filled=True, size=60, opacity=1).encode(y=y),
    )
    return _finished(alt.layer(*layers), 320)
