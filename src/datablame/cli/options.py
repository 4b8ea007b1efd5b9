"""Arguments and options that several commands share: one meaning and one help text each."""

from pathlib import Path
from typing import Annotated

import typer

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
PreregisterOption = Annotated[
    bool,
    typer.Option(
        "--preregister", help="Freeze the study into preregistration.json in its run folder, before it is patched."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text for people.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
