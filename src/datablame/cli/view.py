"""The commands that serve pages: look at runs, label outputs."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from datablame.cli.look import DebugOption, RunArgument
from datablame.errors import Interrupted, RequestError

PortOption = Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0: a free one.")]
NoBrowserOption = Annotated[bool, typer.Option("--no-browser", help="Print the address and open no browser.")]


def _installed() -> None:
    """RequestError where the packages of the extra are missing."""
    for package in ("starlette", "uvicorn"):
        if find_spec(package) is None:
            raise RequestError(f"{package} is not installed; pip install 'datablame[view]'")


def view(
    folder: Annotated[
        Path, typer.Argument(metavar="[RUN|FOLDER]", help="A run folder, or a folder of them; runs if left out.")
    ] = Path("runs"),
    port: PortOption = 0,
    no_browser: NoBrowserOption = False,
    debug: DebugOption = False,
) -> None:
    """Look at runs in the browser: verdicts, rates, arms, progress, two side by side.

    Serves this machine only, at an address whose token works once, until Ctrl-C. Nothing is written.
    """
    _installed()
    from datablame.view.pages import METHODS, app_of
    from datablame.view.server import serve

    serve(app_of(folder), methods=METHODS, port=port, browser=not no_browser, say=typer.echo)


def label(
    folder: RunArgument,
    annotator: Annotated[
        str, typer.Option(metavar="NAME", help="Who labels; human_labels-NAME.jsonl in the run folder is their file.")
    ] = "human",
    samples: Annotated[int, typer.Option(min=1, help="Outputs to label; those with a label count.")] = 200,
    terminal: Annotated[bool, typer.Option("--terminal", help="Label in this terminal, without a browser.")] = False,
    port: PortOption = 0,
    no_browser: NoBrowserOption = False,
    debug: DebugOption = False,
) -> None:
    """Label outputs of a run by hand, blind to arm, alpha and what the classifier says.

    Keys 1 to 5: harmful, refused, harmless, incoherent, cannot tell; u undo, s skip, n note. Each label is on disk
    before the next output is shown; the same command goes on where its file ends. Without --annotator the file is
    human_labels.jsonl. Afterwards datablame report RUN says how far people agree with the classifier and with one
    another, and what the rates are without its errors.
    """
    from datablame.view.labelling import labelling

    if terminal:
        from datablame.view.terminal import label_in_terminal

        with labelling(folder, annotator, samples) as session:
            try:
                label_in_terminal(session, typer.echo)
            except KeyboardInterrupt:
                raise Interrupted(f"stopped; what is labelled is in {session.file.name}") from None
        return
    _installed()
    from datablame.view.label_page import METHODS, label_app
    from datablame.view.server import serve

    with labelling(folder, annotator, samples) as session:
        app = label_app(session, folder)
        serve(app, methods=METHODS, port=port, browser=not no_browser, say=typer.echo)
