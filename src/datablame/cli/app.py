"""The command line: parse, call, print."""

import errno
import json
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from datablame.cli import export, leaderboard, look, view
from datablame.errors import DatablameError, RequestError, one_line

app = typer.Typer(
    name="datablame",
    help="git blame for the behaviour of a language model: surface a rare behaviour by Logit Diff Amplification, "
    "attribute it to training documents, remove them, and measure whether it goes away.",
    epilog="Start with: datablame run organism. It needs no GPU, key or download.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # To draw frames around help takes as long as the rest of it.
)
organism_app = typer.Typer(
    help="Model organisms: tiny models with planted causes.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(organism_app, name="organism")


def main() -> None:
    """Run the command line.

    Exit 0 done, 1 a phase failed or the verdict is INVALID, 2 a bad request, 3 no money left, 130 interrupted.
    """
    try:
        app()
    except (DatablameError, OSError) as error:
        if isinstance(error, DatablameError):
            message, code = str(error), error.exit_code
        else:
            from datablame.engine.files import packaged_yaml

            remedies = packaged_yaml("datablame.cli", "texts/os_errors.yaml")
            if (remedy := remedies.get(errno.errorcode.get(error.errno or 0))) is None:
                raise
            message, code = f"{error.filename or 'a file'}: {remedy}. What was finished stays usable.", 1
        if "--debug" in sys.argv:
            traceback.print_exc()
        sys.stderr.write(f"datablame: {one_line(message)}\n")
        sys.exit(code)


@app.command()
def run(
    study: look.StudyArgument = "organism",
    out: look.OutOption = None,
    resume: look.ResumeOption = False,
    until: Annotated[
        str | None, typer.Option(metavar="PHASE", help="Stop after scan, surface, attribute or patch.")
    ] = None,
    overrides: look.SetOption = None,
    workers: look.WorkersOption = None,
    devices: look.DevicesOption = None,
    executor: look.ExecutorOption = None,
    address: look.AddressOption = None,
    max_cost: look.MaxCostOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and do nothing else.")] = False,
    as_json: look.JsonOption = False,
    debug: look.DebugOption = False,
) -> None:
    """Run a whole study: scan, surface, attribute, patch, report.

    Everything lands in one run folder, with index.html as the page to open. A run that was stopped at any instant goes
    on with --resume and ends with the same files. The exit code is 1 where the verdict is INVALID, with everything
    written; FAILURE and INCONCLUSIVE are results too.
    """
    from datablame.engine.phase import left_by
    from datablame.patch.phase import PATCH
    from datablame.pipeline.checks import load
    from datablame.pipeline.phases import NAMES, open_run

    if until is not None and until not in NAMES:
        raise RequestError(f"--until {until} is not a phase; choose one of {', '.join(NAMES)}")
    loaded = load(study, overrides or [])
    if dry_run:
        look.show_plan(loaded, None, as_json)
        return
    root = out or Path("runs") / loaded.name
    opened = open_run(root, loaded, resume=resume)
    if until not in NAMES[: NAMES.index(PATCH.name)] and not left_by(PATCH, root):
        look.warn(opened)
    _advance(root, opened, look.execution(opened, workers, devices, executor, address), as_json, max_cost, until=until)


app.command()(look.plan)
app.command()(look.doctor)
app.command()(look.power)


def _phase_command(name: str, summary: str) -> None:
    @app.command(name, help=f"{summary}\n\nWorks on an existing run folder.")
    def command(
        folder: look.RunArgument,
        workers: look.WorkersOption = None,
        devices: look.DevicesOption = None,
        executor: look.ExecutorOption = None,
        address: look.AddressOption = None,
        max_cost: look.MaxCostOption = None,
        as_json: look.JsonOption = False,
        debug: look.DebugOption = False,
    ) -> None:
        from datablame.pipeline.phases import open_run

        opened = open_run(folder, None, resume=True)
        _advance(
            folder, opened, look.execution(opened, workers, devices, executor, address), as_json, max_cost, only=name
        )


_phase_command("scan", "Phase 1: a few prompts at every alpha; which ones to sample.")
_phase_command("surface", "Phase 2: sample with LDA, label; harmful rate against alpha.")
_phase_command("attribute", "Phase 3: rank the training documents by every method.")
_phase_command("patch", "Phase 4: remove what was flagged, train and measure again.")


@app.command()
def report(
    folder: look.RunArgument,
    redact: Annotated[
        bool | None,
        typer.Option(
            "--redact/--no-redact", help="Hide harmful outputs and blamed documents everywhere; as before if left out."
        ),
    ] = None,
    pdf: Annotated[
        bool, typer.Option("--pdf", help="Print the write-up and the slides too; needs Chromium or Chrome.")
    ] = False,
    workers: look.WorkersOption = None,
    devices: look.DevicesOption = None,
    executor: look.ExecutorOption = None,
    address: look.AddressOption = None,
    max_cost: look.MaxCostOption = None,
    as_json: look.JsonOption = False,
    debug: look.DebugOption = False,
) -> None:
    """Phase 5: figures, tables, write-up, slides, one HTML page.

    Works on an existing run folder. --redact stays with the run until --no-redact; the tables under artifacts/ keep
    every text.
    """
    from datablame.pipeline.phases import open_run
    from datablame.report.pdf import browser

    opened = open_run(folder, None, resume=True)
    if redact is not None:
        opened = opened.model_copy(update={"report": opened.report.model_copy(update={"redact": redact})})
    printer = browser() if pdf else None
    execution = look.execution(opened, workers, devices, executor, address)
    _advance(folder, opened, execution, as_json, max_cost, printer, only="report")


app.command()(look.status)
app.command()(view.view)
app.command()(view.label)
app.command()(look.presets)
app.command()(look.methods)
app.command()(export.export)
app.command()(leaderboard.leaderboard)
organism_app.command("make")(look.organism_make)


def _advance(
    root: Path,
    study: Any,
    execution: Any,
    as_json: bool,
    max_cost: float | None,
    printer: str | None = None,
    **which: str | None,
) -> None:
    from datablame.cli.console import reporting
    from datablame.pipeline.run import run_study

    with reporting() as progress:
        skipped = run_study(study, root, execution=execution, progress=progress, max_cost_usd=max_cost, **which)
        if printer is not None:
            from datablame.report.pdf import print_writeup

            progress.note("printing writeup/report.pdf and writeup/slides.pdf")
            print_writeup(printer, root)
    _print_outcome(root, skipped, as_json)


def _print_outcome(root: Path, skipped: dict[str, bool], as_json: bool) -> None:
    from datablame.cli.console import outcome
    from datablame.engine.files import read_json

    results = read_json(root / "final_results.json") if "report" in skipped else None
    if as_json:
        held = results or {"verdict": None, "findings": [], "patching": []}
        headline = [row for row in held["patching"] if row["headline"]]
        decided = {"verdict": held["verdict"], "findings": held["findings"], "headline": headline}
        typer.echo(json.dumps({"run": str(root), "skipped": skipped, **decided}))
    else:
        outcome(root, skipped, results)
    if results is not None and results["verdict"]["label"] == "INVALID":
        raise typer.Exit(1)
