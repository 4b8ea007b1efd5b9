"""The table of rates at alpha 0: counted there, weighed from all alphas, and read off the logit path."""

from datablame.report.artifacts import Artifacts, Row
from datablame.report.tables import Table
from datablame.report.wording import interval, number
from datablame.tables import EVERY


def unamplified_table(found: Artifacts) -> Table:
    """A row for each split and behaviour; a withheld estimate gives its reason instead of a figure."""
    rows = []
    for row in sorted(
        found.unamplified["rows"], key=lambda row: (row["split"] != "held-out", row["behaviour"] != EVERY)
    ):
        naive, weighed, path = row["naive"], row["importance"], row["path"]
        ess = weighed["ess"]
        rows.append(
            [
                f"{'all' if row['behaviour'] == EVERY else row['behaviour']}, {row['split']}",
                f"{_quoted(naive)} of {naive['n']}",
                _quoted(weighed),
                "-" if ess is None else f"{ess:.0f} of {weighed['n']}",
                _share(weighed["largest_weight_share"]),
                number(weighed["khat"]),
                _quoted(path),
            ]
        )
    why_not = found.unamplified["why_not"]
    about = (
        "The rate at alpha 0, three times: counted among the outputs at alpha 0; weighed (importance sampling) from "
        "the outputs of all alphas (p / sum of pi q), with effective sample size, largest weight's share and k-hat "
        "(above .7 no figure is quoted); read off a line through the log odds at the two nearest alphas where the "
        "behaviour is common. 95 % intervals for these prompts; the line's holds only where the log odds are straight."
    )
    if why_not is not None:
        about = f"The rate at alpha 0 cannot be estimated from amplified outputs: {why_not}."
    return Table(about, ["behaviour", "counted", "weighed", "ESS", "largest", "k-hat", "path"], rows)


def _quoted(row: Row) -> str:
    if row["rate"] is None:
        return f"withheld: {row['withheld']}" if row.get("withheld") else "-"
    return f"{_share(row['rate'])} {interval(row['low'], row['high'])}"


def _share(share: float | None) -> str:
    """Percent with one decimal, or as many as two digits need: rare behaviours are what this table is for."""
    if share is None:
        return "-"
    return f"{100 * share:.1f} %" if share >= 0.01 or share == 0 else f"{100 * share:.2g} %"
