"""The command that judges all methods on organisms with planted truth."""

import json
from pathlib import Path
from typing import Annotated

import typer

from datablame.cli import look
from datablame.errors import Interrupted


def leaderboard(
    study: Annotated[
        str, typer.Argument(metavar="STUDY", help="The study that every organism gets: a preset or a YAML file.")
    ] = "leaderboard",
    out: Annotated[Path, typer.Option("--out", help="Where the studies run, each in KIND-SEED.")] = Path(
        "runs/leaderboard"
    ),
    write: Annotated[
        Path | None,
        typer.Option("--write", metavar="DIR", help="Where records, tables, figures and page go; --out if left out."),
    ] = None,
    kinds: Annotated[str | None, typer.Option(metavar="A,B", help="Kinds of planting; all if left out.")] = None,
    seeds: Annotated[str, typer.Option(metavar="1,2", help="Seeds of the organisms.")] = "1,2,3,4,5",
    methods: Annotated[str | None, typer.Option(metavar="A,B", help="Methods; those of STUDY if left out.")] = None,
    scores: Annotated[
        list[str] | None,
        typer.Option(
            "--scores",
            metavar="NAME=PATTERN",
            help="Scores made elsewhere, as in --scores mine=scores/{kind}-{seed}.jsonl.",
        ),
    ] = None,
    subsets: Annotated[int, typer.Option(min=0, max=999, help="Random subsets of the LDS; 0 leaves it out.")] = 50,
    only_report: Annotated[bool, typer.Option("--only-report", help="Run nothing; gather what is there.")] = False,
    overrides: look.SetOption = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Studies at once; one a core if left out.")
    ] = None,
    as_json: look.JsonOption = False,
    debug: look.DebugOption = False,
) -> None:
    """Judge every method on organisms with planted truth: detection, effect of removal, cost.

    Each organism, a kind of planting with a seed, is an ordinary study in a run folder of its own. The same command
    goes on where it stopped; an organism whose record lies in DIR is not run again, wherever the record was made. A
    study that fails is named, the others go on, and the exit code is 1.
    """
    from datablame import leaderboard as boards
    from datablame.cli.console import reporting
    from datablame.engine.execute import default_execution
    from datablame.leaderboard.page import write as write_page
    from datablame.leaderboard.standings import as_json as content_of
    from datablame.leaderboard.studies import family, patterns, studies_of
    from datablame.leaderboard.studies import kinds as known

    organisms = family(_list(kinds) if kinds is not None else list(known()), _list(seeds))
    brought = patterns(scores or [])
    named = None if methods is None else _list(methods)
    studies, execution = studies_of(study, organisms, named, brought, overrides or []), default_execution(workers)
    folder = write or out
    if only_report:
        board = boards.gather(studies, out, folder, {}, subsets=subsets)
    else:
        try:
            with reporting() as progress:
                board = boards.run(studies, out, folder, subsets=subsets, execution=execution, progress=progress)
        except Interrupted:
            raise Interrupted("interrupted; the same command goes on where it stopped") from None
    write_page(board, folder)
    if as_json:
        typer.echo(json.dumps(content_of(board)))
    else:
        typer.echo(f"{folder / 'README.md'}")
    if board.failures:
        raise typer.Exit(1)


def _list(text: str) -> list[str]:
    """Names between commas."""
    return [name.strip() for name in text.split(",") if name.strip()]
