"""The command that hands a run to other tools."""

import json
from pathlib import Path
from typing import Annotated

import typer

from datablame.cli import look


def export(
    folder: look.RunArgument,
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="inspect, parquet, csv, datasets or hub.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where to write it; must be new or empty.")
    ] = None,
    repo: Annotated[
        str | None, typer.Option("--repo", metavar="OWNER/NAME", help="For hub: the private dataset, new or empty.")
    ] = None,
    redact: Annotated[
        bool, typer.Option("--redact/--no-redact", help="Hide harmful outputs and the documents behind them.")
    ] = True,
    as_json: look.JsonOption = False,
    debug: look.DebugOption = False,
) -> None:
    """Write a run for other tools: logs of Inspect, Parquet, CSV, a folder or a private dataset for load_dataset.

    It takes what finished phases left and names those that it leaves out; the surface phase must be done. Tables come
    with a README that explains each column. hub uploads, and needs a token that may write (HF_TOKEN).
    """
    from datablame.export import export as exported

    done = exported(folder, to, out=out, repo=repo, redact=redact)
    if as_json:
        typer.echo(json.dumps(done._asdict()))
        return
    texts = f"{done.hidden} texts hidden, --no-redact shows them" if done.redacted else "nothing hidden"
    typer.echo(f"{done.where}\n{done.files} files; {texts}")
    for phase, state in done.left_out.items():
        typer.echo(f"left out: {phase} ({state})")
