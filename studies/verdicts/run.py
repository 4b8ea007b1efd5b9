"""Four studies of the embedded organism that must end in four ways; writes this folder's README.

    python studies/verdicts/run.py                       # all of them
    python studies/verdicts/run.py --only two-seeds      # one of them (and the one whose samples it shares)

It can be stopped at any time and goes on where it was; what is finished is not computed again. Two of the studies take
the samples and rankings of the first over and only train anew. The README has what is finished, and names the others.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))
from studies.running import run_study, take_over

HERE = Path(__file__).parent
SHARED = ("scan", "surface", "attribute")


class Situation(NamedTuple):
    """A run of the preset with other keys; `shares` takes over the first one's samples and rankings."""

    name: str
    what: str
    sets: tuple[str, ...]
    expected: str
    shares: bool = False


SITUATIONS = (
    Situation("planted", "the preset: 20 planted documents a behaviour, five training seeds", (), "SUCCESS"),
    Situation("nothing-planted", "nothing is planted", ("organism.planted=0",), "FAILURE"),
    Situation(
        "never-seen",
        "training stops after 20 of 125 steps: most flagged documents are left out of what the no-removal arm saw",
        (
            "patch.protocols=[retrain]",
            "patch.retrain={method: full, steps: 20, batch: 16, learning_rate: 5.0e-4}",
        ),
        "INVALID",
        shares=True,
    ),
    Situation(
        "two-seeds",
        "two training seeds",
        ("patch.protocols=[retrain]", "patch.seeds=[0, 1]"),
        "INCONCLUSIVE",
        shares=True,
    ),
)


def main() -> None:
    """Run what isn't finished, then write the README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/studies/verdicts"), help="where the run folders are")
    names = [situation.name for situation in SITUATIONS]
    parser.add_argument("--only", choices=names, help="the only one to run")
    options = parser.parse_args()
    first = SITUATIONS[0]
    wanted = [situation for situation in SITUATIONS if options.only in (None, situation.name)]
    if any(situation.shares for situation in wanted) and first not in wanted:
        wanted.insert(0, first)
    for situation in wanted:
        folder = options.runs / situation.name
        if situation.shares:
            take_over(options.runs / first.name, folder, SHARED)
        # Of the first, a study that shares needs the rankings only.
        until = "attribute" if situation is first and options.only not in (None, first.name) else None
        code = run_study("organism", folder, sets=situation.sets, until=until)
        if until is None:
            _exit_code(folder).write_text(f"{code}\n", encoding="utf-8")
    (HERE / "README.md").write_text(_readme(options.runs), encoding="utf-8")


def _exit_code(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.exit")


def _finished(folder: Path) -> bool:
    return (folder / "artifacts" / "report" / "done.json").exists()


def _readme(runs: Path) -> str:
    there = [s for s in SITUATIONS if _finished(runs / s.name) and _exit_code(runs / s.name).exists()]
    results = {s.name: json.loads((runs / s.name / "final_results.json").read_text(encoding="utf-8")) for s in there}
    rows = [_row(situation, results[situation.name], runs / situation.name) for situation in there]
    missing = [f"`{situation.name}`" for situation in SITUATIONS if situation not in there]
    sections = "\n".join(_section(situation, results[situation.name]) for situation in there)
    return f"""# Verdicts: four studies that must end in four ways

Made by `python studies/verdicts/run.py`: the preset `organism` as it is and with the keys below. The verdict is decided
by code from the artifacts, in the order INVALID, FAILURE, SUCCESS, PARTIAL, INCONCLUSIVE; what was expected was written
down here before the runs.

{_table(["study", "changed", "expected", "verdict", "decided by", "exit code"], rows)}
{f"Not run yet: {', '.join(missing)}." if missing else ""}

{sections}"""


def _row(situation: Situation, result: dict[str, Any], folder: Path) -> list[str]:
    verdict = result["verdict"]
    changed = "; ".join(f"`{each}`" for each in situation.sets) or "nothing"
    code = _exit_code(folder).read_text(encoding="utf-8").strip()
    decided = ", ".join(verdict["numbers"]["decided_by"])
    return [situation.name, changed, situation.expected, f"**{verdict['label']}**", decided.replace("*", "\\*"), code]


def _section(situation: Situation, result: dict[str, Any]) -> str:
    verdict = result["verdict"]
    reasons = "\n".join(f"- {text}".replace("*", "\\*") for text in verdict["reasons"])
    blamed = sum(len(ids) for own in result["flagged"].values() for ids in own.values())
    return f"""## {situation.name}: {verdict["label"]}

In this study {situation.what}. Attribution flagged {blamed} documents over all methods and behaviours.

{reasons}
"""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, [":--"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
