"""The command line: parse, call, print."""

import contextlib
import errno
import json
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from datablame.errors import DatablameError, Interrupted, RequestError

if TYPE_CHECKING:
    from datablame.config import Study
    from datablame.execute import Progress

__all__ = ["app", "main"]

app = typer.Typer(
    name="datablame",
    help="git blame for the behaviour of a language model: surface a rare behaviour by Logit Diff Amplification, "
    "attribute it to training documents, remove them, and measure whether it goes away.",
    epilog="Start with: datablame run organism. It needs no GPU, key or download.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
organism_app = typer.Typer(help="Model organisms: tiny models with planted causes.", no_args_is_help=True)
app.add_typer(organism_app, name="organism")

_REMEDIES = {
    errno.ENOSPC: "the disk is full; make room and run again with --resume",
    errno.EDQUOT: "the quota is used up; make room and run again with --resume",
    errno.EROFS: "the file system is read-only; choose another --out",
    errno.EACCES: "no permission; choose another --out or change the rights",
    errno.ENOTDIR: "is below a file, not a folder; choose another --out",
}

StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help="A YAML file or the name of a preset.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder made by datablame run.")]
OutOption = Annotated[Path | None, typer.Option("--out", help="Run folder; runs/NAME if left out.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Continue a run folder; what is up to date is skipped.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, as in --set surface.samples=20; values are YAML."),
]
UntilOption = Annotated[
    str | None, typer.Option("--until", metavar="PHASE", help="Stop after scan, surface, attribute or patch.")
]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Worker processes; one a core if left out. Results stay the same."),
]
MaxCostOption = Annotated[
    float | None,
    typer.Option(
        "--max-cost",
        metavar="USD",
        min=0,
        help="Stop before the call to Claude that might bring the cost of this run folder above it, with exit code 3.",
    ),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print the plan and do nothing else.")]
LikeOption = Annotated[
    Path | None, typer.Option("--like", metavar="RUN", help="Estimate the time from this finished run of this machine.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text for people.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def main() -> None:
    """Run the command line; exit 0 done, 1 a phase failed, 2 a bad request, 3 no money left, 130 interrupted."""
    debug = "--debug" in sys.argv
    try:
        app()
    except DatablameError as error:
        _fail(str(error), error.exit_code, debug)
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        where = error.filename or "a file"
        _fail(f"{where}: {_REMEDIES[error.errno]}. What was finished stays usable.", 1, debug)


@app.command()
def run(
    study: StudyArgument = "organism",
    out: OutOption = None,
    resume: ResumeOption = False,
    until: UntilOption = None,
    overrides: SetOption = None,
    workers: WorkersOption = None,
    max_cost: MaxCostOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Run a whole study: scan, surface, attribute, patch, report.

    Everything lands in one run folder, with index.html as the page to open. A run that was stopped at any instant goes
    on with --resume and ends with the same files.
    """
    from datablame.study import PHASES, open_run
    from datablame.study_file import load_study

    names = [phase.name for phase in PHASES]
    if until is not None and until not in names:
        raise RequestError(f"--until {until} is not a phase; choose one of {', '.join(names)}")
    loaded = load_study(study, overrides or [])
    if dry_run:
        _show_plan(loaded, None, as_json)
        return
    root = out or Path("runs") / loaded.name
    _advance(root, open_run(root, loaded, resume=resume), workers, as_json, max_cost, until=until)


@app.command()
def plan(
    study: StudyArgument,
    overrides: SetOption = None,
    like: LikeOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show what a study would do, need and cost, offline and before anything is loaded.

    Cells, outputs, trainings, documents, API calls and dollars, peak memory, expected time, and what its design can
    show at best. Warnings name designs that cannot succeed.
    """
    from datablame.study_file import load_study

    _show_plan(load_study(study, overrides or []), like, as_json)


@app.command()
def doctor(out: OutOption = None, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Check this machine: Python, torch, devices and types, memory, disk, key, hub, API; say what to do.

    The key is never shown or sent. Exit code 1 means that datablame cannot run here; warnings stop nothing.
    """
    from rich.console import Console

    from datablame.doctor import can_run, examine, show

    checks = examine(out or Path("runs"))
    if as_json:
        typer.echo(json.dumps({"can_run": can_run(checks), "checks": [check._asdict() for check in checks]}))
    else:
        show(checks, Console())
    if not can_run(checks):
        raise typer.Exit(1)


@app.command()
def power(
    from_rate: Annotated[float, typer.Option("--from", help="Mean harmful rate without removal, a share.")] = 0.10,
    to_rate: Annotated[float, typer.Option("--to", help="The same where the removal works.")] = 0.05,
    prompts: Annotated[int, typer.Option(help="Held-out prompts.")] = 40,
    samples: Annotated[int, typer.Option(help="Outputs of one training for one prompt.")] = 25,
    seeds: Annotated[int, typer.Option(help="Trainings of every arm.")] = 5,
    holm: Annotated[int, typer.Option(help="Methods that are patched: the family of Holm's adjustment.")] = 3,
    prompt_deviation: Annotated[
        float, typer.Option(help="Standard deviation of prompts, logits; 1 spreads a mean of 10 % from 1 to 35 %.")
    ] = 1.0,
    seed_deviation: Annotated[
        float, typer.Option(help="Standard deviation of trainings that differ in the seed only, logits.")
    ] = 0.25,
    interaction_deviation: Annotated[
        float, typer.Option(help="How much one training moves single prompts, logits.")
    ] = 0.1,
    training_cost: Annotated[
        float, typer.Option(metavar="OUTPUTS", help="How many outputs cost as much as one training.")
    ] = 500.0,
    simulations: Annotated[int, typer.Option(help="Simulated studies; 2,000 give power to about 2 points.")] = 2000,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Say what a design can show, by simulation of whole studies and before anything is trained.

    Prints the power of the test that the report uses (exact permutation over training seeds, against random and
    against baseline, Holm over the methods), the smallest p that so many seeds can give, how often naive tests over
    samples or prompts raise a false alarm beside ours, and the cheapest design with 80 % power. The same request gives
    the same numbers.

    Example: datablame power --from .10 --to .05 --seeds 5 --holm 3
    """
    from rich.console import Console

    from datablame.console import LateProgress
    from datablame.power import answer, checked, show
    from datablame.power import as_json as numbers

    design = checked(
        from_rate=from_rate,
        to_rate=to_rate,
        prompts=prompts,
        samples=samples,
        seeds=seeds,
        holm=holm,
        prompt_deviation=prompt_deviation,
        seed_deviation=seed_deviation,
        interaction_deviation=interaction_deviation,
        training_cost=training_cost,
        simulations=simulations,
    )
    try:
        with LateProgress() as progress:
            found = answer(design, training_cost, simulations, progress)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; nothing was written") from None
    if as_json:
        typer.echo(json.dumps(numbers(found)))
    else:
        show(found, Console())


def _phase_command(name: str, summary: str) -> Callable[..., None]:
    def command(
        folder: RunArgument,
        workers: WorkersOption = None,
        max_cost: MaxCostOption = None,
        as_json: JsonOption = False,
        debug: DebugOption = False,
    ) -> None:
        from datablame.study import open_run

        _advance(folder, open_run(folder, None, resume=True), workers, as_json, max_cost, only=name)

    command.__doc__ = summary
    return command


for _name, _summary in (
    ("scan", "Phase 1: try a few prompts at every alpha and choose the focus prompts."),
    ("surface", "Phase 2: sample with LDA, label every output, draw the harmful rate against alpha."),
    ("attribute", "Phase 3: rank the training documents by every method and compare the rankings."),
    ("patch", "Phase 4: remove what each method flagged, train again, measure again."),
    ("report", "Phase 5: figures, tables, case study, write-up, slides, one HTML page."),
):
    app.command(name=_name)(_phase_command(_name, f"{_summary}\n\nWorks on an existing run folder."))


@app.command()
def status(folder: RunArgument, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Show how far each phase of a run is: done, stale, begun or missing."""
    from datablame.study import open_run, states

    found = states(open_run(folder, None, resume=True), folder)
    if as_json:
        typer.echo(json.dumps({state.name: state.state for state in found}))
        return
    for state in found:
        typer.echo(f"{state.name:10} {state.state}")


@app.command()
def presets(
    name: Annotated[str | None, typer.Argument(help="Print this preset's YAML.")] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """List the studies that ship with datablame, or print one of them as a start for your own."""
    from datablame.study_file import load_study, preset_names, preset_text

    if name is not None:
        typer.echo(preset_text(name), nl=False)
        return
    titles = {preset: load_study(preset).title for preset in preset_names()}
    if as_json:
        typer.echo(json.dumps(titles))
        return
    for preset, title in titles.items():
        typer.echo(f"{preset:16} {title}")


@app.command()
def methods(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """List the attribution methods: what each one compares and what it needs."""
    from datablame.attribute.registry import described

    rows = described()
    if as_json:
        typer.echo(json.dumps(rows))
        return
    for row in rows:
        typer.echo(f"{row['name']:20} {row['description']}")


@organism_app.command("make")
def organism_make(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write it; must not exist.")],
    seed: Annotated[int, typer.Option(help="Everything in the organism derives from it.")] = 0,
    recipe: Annotated[str, typer.Option(help="templated (tiny, from nothing) or quirk (a LoRA of a real model).")] = (
        "templated"
    ),
    planted: Annotated[int, typer.Option(min=0, help="Planted documents for each behaviour.")] = 20,
    debug: DebugOption = False,
) -> None:
    """Make a model organism: before/, after/, documents.parquet, prompts.jsonl, truth.jsonl, rules.json."""
    from datablame.config import Organism
    from datablame.organism.make import RECIPES, make

    if recipe not in RECIPES:
        raise RequestError(f"--recipe {recipe} is not a recipe; choose one of {', '.join(RECIPES)}")
    if folder.exists():
        raise RequestError(f"{folder} exists; choose a new folder")
    with _console() as progress:
        make(Organism(recipe=cast(Any, recipe), seed=seed, planted=planted), folder, progress)
    typer.echo(str(folder))


def _show_plan(study: "Study", like: Path | None, as_json: bool) -> None:
    from rich.console import Console

    from datablame.plan import plan_of
    from datablame.plan.show import show

    planned = plan_of(study, like=like)
    if as_json:
        typer.echo(json.dumps(planned.as_json()))
    else:
        show(planned, Console())


def _advance(
    root: Path, study: Any, workers: int | None, as_json: bool, max_cost: float | None, **which: str | None
) -> None:
    from datablame.execute import default_execution
    from datablame.study import run_study

    execution = default_execution()
    if workers is not None:
        execution = execution._replace(workers=workers)
    with _console() as progress:
        skipped = run_study(study, root, execution=execution, progress=progress, max_cost_usd=max_cost, **which)
    _print_outcome(root, skipped, as_json)


def _print_outcome(root: Path, skipped: dict[str, bool], as_json: bool) -> None:
    from datablame.console import outcome

    results_path = root / "final_results.json"
    results = json.loads(results_path.read_text(encoding="utf-8")) if "report" in skipped else None
    if as_json:
        found = {"verdict": None, "findings": [], "patching": [], **(results or {})}
        headline = [row for row in found["patching"] if row["headline"]]
        told = {"verdict": found["verdict"], "findings": found["findings"], "headline": headline}
        typer.echo(json.dumps({"run": str(root), "skipped": skipped, **told}))
        return
    outcome(root, skipped, results)


@contextlib.contextmanager
def _console() -> "Iterator[Progress]":
    from datablame.console import ConsoleProgress

    try:
        with ConsoleProgress() as progress:
            yield progress
    except KeyboardInterrupt:
        raise Interrupted("interrupted; run again with --resume to continue") from None


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    printable = "".join(c if c.isprintable() else " " for c in message)
    sys.stderr.write(f"datablame: {printable}\n")
    sys.exit(code)
