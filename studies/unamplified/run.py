"""How well the rate at alpha 0 is known from amplified outputs; writes this folder's README, figure and numbers.

    python -m studies.unamplified.run

The organism of seed 0: 20,000 plain outputs to its held-out prompts are the truth, and the surface phase's ordinary
budget of amplified ones is drawn twelve times over. About ten minutes on one free core. A run that was stopped goes on.
"""

import argparse
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from studies.unamplified.draws import FIRST_OF_TRUTH, samples_of
from studies.unamplified.errors import (
    ESTIMATORS,
    SHUFFLES,
    Error,
    Outputs,
    Truth,
    errors,
    name_of,
    outputs_of,
    pooled,
    truth_of,
)
from studies.unamplified.figure import Quoted, drawn
from studies.unamplified.path import path_row

from datablame.config.file import load_study
from datablame.config.schema import Study
from datablame.engine.execute import Execution, Silent
from datablame.pipeline.run import frozen
from datablame.surface.rates import rates, unamplified
from datablame.tables import EVERY, Sample

HERE = Path(__file__).parent
BUDGETS, TRUTH = 12, 667
"""Budgets, and plain outputs a prompt: 30 prompts make 20,010."""
SEED = 1
"""Of the samples. The first budget of seed 0 was looked at while the estimators were written."""
OURS = {"naive": "counted at alpha 0", "importance": "importance sampling", "path": "logit path"}


def main() -> None:
    """Draw what isn't drawn, then write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/studies/unamplified"), help="where the outputs are kept"
    )
    folder = parser.parse_args().runs
    folder.mkdir(parents=True, exist_ok=True)
    one = Execution(workers=1, threads=1)
    world = frozen(load_study("organism", [f"seed={SEED}"]), folder, execution=one, progress=Silent())
    study = world.study
    samples = samples_of(world, folder, BUDGETS, TRUTH, one, Silent())
    plain = [sample for sample in samples if sample.index >= FIRST_OF_TRUTH]
    amplified = [sample for sample in samples if sample.index < FIRST_OF_TRUTH]
    made = {name: outputs_of(mine, study.surface.alphas) for name, mine in pooled(amplified).items()}
    truths = {EVERY: truth_of(plain), **{name: truth_of(mine) for name, mine in pooled(plain).items()}}
    found = {name: errors(_part(made, name), truths[name], study.surface.held_out_samples, SEED) for name in truths}
    quoted = _quoted(study, amplified, list(truths))
    (HERE / "unamplified.png").write_bytes(drawn(quoted, truths))
    (HERE / "unamplified.json").write_text(
        json.dumps(_numbers(found, truths, quoted), indent=1) + "\n", encoding="utf-8"
    )
    (HERE / "README.md").write_text(_readme(study, found, truths, quoted, made), encoding="utf-8")


def _part(made: Mapping[str, Outputs], name: str) -> Mapping[str, Outputs]:
    return made if name == EVERY else {name: made[name]}


def _quoted(study: Study, samples: Sequence[Sample], names: Sequence[str]) -> Quoted:
    """What the surface phase would write for each budget, and the path; every alpha counts as coherent."""
    size, above_0 = study.surface.held_out_samples, [alpha for alpha in sorted(study.surface.alphas) if alpha > 0]
    quoted: dict[str, dict[str, list[Mapping[str, Any]]]] = {name: {each: [] for each in OURS} for name in names}
    for budget in range(BUDGETS):
        mine = [sample for sample in samples if sample.index // size == budget]
        for row in unamplified(study.surface, mine, rates(mine)).rows:
            of_behaviour = [sample for sample in mine if row.behaviour in (EVERY, sample.behaviour)]
            quoted[row.behaviour]["naive"].append(asdict(row.naive))
            quoted[row.behaviour]["importance"].append(asdict(row.importance))
            quoted[row.behaviour]["path"].append(path_row(of_behaviour, above_0))
    return quoted


def _numbers(found: Mapping[str, Mapping[str, Error]], truths: Mapping[str, Truth], quoted: Quoted) -> dict[str, Any]:
    return {
        "budgets": BUDGETS,
        "truth": {name: truth._asdict() for name, truth in truths.items()},
        "errors": {
            name: {each: {**error._asdict(), "factor": error.factor} for each, error in mine.items()}
            for name, mine in found.items()
        },
        "quoted": quoted,
    }


def _readme(
    study: Study,
    found: Mapping[str, Mapping[str, Error]],
    truths: Mapping[str, Truth],
    quoted: Quoted,
    made: Mapping[str, Outputs],
) -> str:
    prompts = sum(each.harmful.shape[0] for each in made.values())
    alphas = ", ".join(f"{alpha:g}" for alpha in study.surface.alphas)
    budget = prompts * study.surface.held_out_samples
    tables = "\n\n".join(
        f"### {name_of(name)}: {_percent(truths[name].rate)} ± {_percent(1.96 * _own(truths[name]))}\n\n{_table(found[name])}"
        for name in truths
    )
    return f"""# The rate at alpha 0, from amplified outputs

Made by `python -m studies.unamplified.run`: the organism of seed 0, its {prompts} held-out prompts, outputs drawn with
sampling seed {SEED}. The truth is the harmful share among {truths[EVERY].n:,} plain outputs at alpha 0. Against it stand
estimates from the surface phase's ordinary budget, {study.surface.held_out_samples} outputs for each prompt at alpha {alphas}
({budget * len(study.surface.alphas):,} in all), drawn {BUDGETS} times without a common output.

![Estimates of each budget beside the truth](unamplified.png)

## What came out

{_conclusions(found, truths, quoted)}

## Errors

Deviation: between budgets, dealt anew {SHUFFLES} times from the same outputs. Bias: mean minus truth, ± 95 %, the truth's
own error included. Error: the deviation for counting and importance sampling, which are unbiased (self-normalised and
with control variates up to 1 / outputs); for the path, which nothing keeps from bias, the root of the mean square, the
truth's own error taken out. Rollouts: the outputs that the estimator reads, at the alphas that it uses. Plain: how many
plain outputs at alpha 0 have the same error. Factor: plain / rollouts, how many times fewer rollouts; below 1 the
estimator needs *more* than plain sampling. All rates in percent, every figure counted, withheld or not. An amplified
rollout runs two models, a plain one runs one.

{tables}

## What datablame quotes

Of {BUDGETS} budgets: how many figures are withheld, how many of the quoted intervals (95 %) hold the truth, widened by its
own error, and the largest k-hat and the effective sample size of the weights.

{_quotes(quoted, truths)}

## What it does not show

These behaviours are not rare: plain sampling sees each of them a few times in a hundred outputs. The published gains of
such estimators are at one in ten thousand and below, where counting sees nothing. Outputs here are short
(at most {study.surface.max_new_tokens} tokens), so that weights stay even; over hundreds of tokens they spread, and k-hat
withholds them. One organism, one pair of models.

The path here is *extrapolated* from alpha > 0 to alpha 0, for that is what a study of two checkpoints has. The published
method interpolates between two real models, and classifies prompts whose rates are about 1e-5: this study is no
refutation of it. It only says that datablame's extrapolation was worth less than counting, which is why no report has it.
"""


def _conclusions(found: Mapping[str, Mapping[str, Error]], truths: Mapping[str, Truth], quoted: Quoted) -> str:
    names = list(ESTIMATORS)
    single = [name for name in truths if name != EVERY]
    weighed = {name: found[name][names[1]] for name in single}
    naive = {name: found[name][names[0]] for name in single}
    path = {name: found[name][names[5]] for name in single}
    naive_all = found[EVERY][names[0]]
    gain = [naive[name].rmse / weighed[name].rmse for name in single]
    lines = [
        f"Importance sampling: the error is {_range([e.rmse for e in weighed.values()], 100, ' points')}, where counting the "
        f"same budget's outputs at alpha 0 has {_range([e.rmse for e in naive.values()], 100, ' points')}: "
        f"{_range(gain, 1, ' times')} smaller, from outputs that the surface phase has drawn anyhow.",
        f"For its error plain sampling needs {_range([e.factor for e in weighed.values()], 1, ' times')} as many rollouts as "
        "it reads, all four alphas counted. " + _biased(weighed, "Its"),
        f"Self-normalising changes the error by {_change(found, single, names[2], names[1])}, control variates by "
        f"{_change(found, single, names[3], names[1])}, leaving out alpha 0 by {_change(found, single, names[4], names[1])}.",
        f"The path: error {_range([e.rmse for e in path.values()], 100, ' points')}; plain sampling has it from "
        f"{_range([e.factor for e in path.values()], 1, ' times')} as many rollouts. "
        + _biased(path, "Its")
        + " It is withheld where the outputs at alpha 0 contradict the line: "
        + ", ".join(f"{_withheld(quoted[name]['path'])} of {BUDGETS} for {name_of(name)}" for name in single)
        + ".",
        f"The truth is no better than its size: the budgets' own outputs at alpha 0 give {_percent(naive_all.mean)} where it "
        f"gives {_percent(truths[EVERY].rate)}, {abs(naive_all.bias) / naive_all.bias_error:.1f} standard errors apart, though "
        f"both are plain sampling. Its standard error is {100 * _own(truths[EVERY]):.2f} points, that of one budget's "
        f"importance sampling {100 * found[EVERY][names[1]].deviation:.2f}.",
    ]
    filled = [textwrap.fill(f"- {_glued(line)}", 118, subsequent_indent="  ", break_on_hyphens=False) for line in lines]
    return "\n".join(filled).replace("~", " ")


def _glued(line: str) -> str:
    """A percent sign stays with its number."""
    return line.replace(" %", "~%")


def _biased(each: Mapping[str, Error], whose: str) -> str:
    off = [name for name, error in each.items() if abs(error.bias) > 1.96 * error.bias_error]
    if not off:
        return f"{whose} bias cannot be told from 0 for any behaviour."
    words = ", ".join(f"{name_of(name)} ({100 * each[name].bias:+.1f} points)" for name in off)
    return f"{whose} bias is real for {words}."


def _change(found: Mapping[str, Mapping[str, Error]], names: Sequence[str], one: str, other: str) -> str:
    ratios = [found[name][one].rmse / found[name][other].rmse - 1 for name in names]
    low, high = (round(100 * each(ratios)) for each in (min, max))
    return f"{low:+d} to {high:+d} %"


def _range(values: Sequence[float], scale: float, unit: str) -> str:
    low, high = f"{scale * min(values):.1f}", f"{scale * max(values):.1f}"
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


def _withheld(rows: Sequence[Mapping[str, Any]]) -> int:
    return sum(row["rate"] is None for row in rows)


def _table(mine: Mapping[str, Error]) -> str:
    lines = [
        "| estimator | mean | deviation | bias | error | rollouts | plain | factor |",
        "|:--|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, each in mine.items():
        note = f" ({each.failed} of {BUDGETS} without)" if each.failed else ""
        lines.append(
            f"| {name}{note} | {100 * each.mean:.2f} | {100 * each.deviation:.2f} | {100 * each.bias:+.2f} ± "
            f"{196 * each.bias_error:.2f} | {100 * each.rmse:.2f} | {each.rollouts:,} | {each.plain:,.0f} | {each.factor:.2f} |"
        )
    return "\n".join(lines)


def _quotes(quoted: Quoted, truths: Mapping[str, Truth]) -> str:
    lines = [
        "| behaviour | counted: hold the truth | IS: withheld | hold the truth | largest k-hat | ESS | path: withheld | hold the truth |",
        "|:--|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, mine in quoted.items():
        khats = [row["khat"] for row in mine["importance"] if row["khat"] is not None]
        ess = np.mean([row["ess"] for row in mine["importance"]])
        cells = [
            _covering(mine["naive"], truths[name]),
            f"{_withheld(mine['importance'])}",
            _covering(mine["importance"], truths[name]),
            f"{max(khats):.2f}" if khats else "-",
            f"{ess:,.0f} of {mine['importance'][0]['n']:,}",
            f"{_withheld(mine['path'])}",
            _covering(mine["path"], truths[name]),
        ]
        lines.append(f"| {name_of(name)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _covering(rows: Sequence[Mapping[str, Any]], truth: Truth) -> str:
    given = [row for row in rows if row["rate"] is not None]
    ends = [row["low"] if truth.rate < row["rate"] else row["high"] for row in given]
    held = [
        abs(truth.rate - row["rate"]) <= math.hypot(end - row["rate"], 1.96 * _own(truth))
        for row, end in zip(given, ends, strict=True)
    ]
    return f"{sum(held)} of {len(held)}"


def _own(truth: Truth) -> float:
    return math.sqrt(truth.variance / truth.n)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


if __name__ == "__main__":
    main()
