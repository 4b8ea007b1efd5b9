"""The pages over runs: all of a folder, one, two side by side, and the files that a run has made."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from datablame.errors import DatablameError
from datablame.pipeline.phases import status
from datablame.report import wording
from datablame.view.runs import (
    REPORT,
    RunView,
    chart_of,
    differences,
    file_of,
    files_of,
    folders_of,
    is_shown,
    most_of,
    run_view,
    study_of,
)
from datablame.view.server import no_icon, script, style

METHODS = frozenset({"GET", "HEAD"})
_FOREIGN = (
    "default-src data: blob: 'unsafe-inline' 'unsafe-eval'; img-src 'self' data: blob:; connect-src 'none'; "
    "frame-src 'none'; object-src 'none'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'; "
    "sandbox allow-scripts allow-same-origin allow-downloads"
)
"""A page that a run has made keeps to its own policy; beside that it reaches no other page, whoever wrote it."""


@functools.cache
def environment() -> jinja2.Environment:
    """The templates, with the report's words as filters; everything is escaped."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("datablame.view"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= wording.environment().filters | {"json": lambda it: json.dumps(it, ensure_ascii=False)}
    made.globals |= {"interval": wording.interval}
    return made


def page(template: str, **values: Any) -> HTMLResponse:
    """A template filled in."""
    return HTMLResponse(environment().get_template(template).render(values))


def app_of(folder: Path) -> Starlette:
    """The pages over a run folder or a folder of them; each request reads what is there.

    Raises RequestError where it holds no run.
    """
    alone = len(folders_of(folder)[0]) == 1 and (folder / "study.yaml").is_file()

    def root_of(name: str) -> Path:
        root = folders_of(folder)[0].get(name)
        if root is None:
            raise HTTPException(404)
        return root

    def everything(request: Request) -> Response:
        roots, outside = folders_of(folder)
        if alone:
            return RedirectResponse(f"/run/{quote(next(iter(roots)), safe='')}/", 303)
        runs = [run_view(root, name) for name, root in roots.items()]
        return page("runs.html.j2", runs=runs, outside=outside, folder=str(folder), most=most_of(runs))

    def one(request: Request) -> Response:
        name = request.path_params["name"]
        root = root_of(name)
        run = run_view(root, name)
        files, others = files_of(root), [each for each in folders_of(folder)[0] if each != name]
        values = {"report": REPORT in files, "files": files, "others": others, "chart": chart_of([run])}
        return page("run.html.j2", run=run, runs=[run], alone=alone, **values, most=most_of([run]))

    def state(request: Request) -> Response:
        name = request.path_params["name"]
        root = root_of(name)
        return page("status.html.j2", name=name, status=status(study_of(root), root))

    def compare(request: Request) -> Response:
        names = [request.query_params.get(side, "") for side in "ab"]
        roots = [root_of(name) for name in names]
        runs = [run_view(root, name) for root, name in zip(roots, names, strict=True)]
        apart = None if any(run.problem for run in runs) else differences(*roots)
        labels = dict.fromkeys(arm.label for run in runs for arm in run.arms)
        rows = [(label, [_arm(run, label) for run in runs]) for label in labels]
        values = {"names": names, "apart": apart, "arms": rows, "chart": chart_of(runs), "most": most_of(runs)}
        return page("compare.html.j2", runs=runs, **values)

    def file(request: Request) -> Response:
        path = file_of(root_of(request.path_params["name"]), request.path_params["path"])
        if path is None:
            raise HTTPException(404)
        headers = {"Content-Security-Policy": _FOREIGN}
        return FileResponse(path, filename=None if is_shown(path) else path.name, headers=headers)

    routes: dict[str, Callable[[Request], Response]] = {
        "/": everything,
        "/compare": compare,
        "/run/{name}/": one,
        "/run/{name}/status": state,
        "/run/{name}/files/{path:path}": file,
        "/style.css": lambda _: style(),
        "/view.js": lambda _: script("view.js"),
        "/favicon.ico": lambda _: no_icon(),
    }
    failures: dict[Any, Any] = {HTTPException: _absent, DatablameError: _failed}
    return Starlette(routes=[Route(path, made) for path, made in routes.items()], exception_handlers=failures)


def _arm(run: RunView, label: str) -> Any:
    return next((arm.test for arm in run.arms if arm.label == label), None)


def _absent(request: Request, error: HTTPException) -> Response:
    return PlainTextResponse("There is no such page.", error.status_code)


def _failed(request: Request, error: DatablameError) -> Response:
    return PlainTextResponse(f"{error}\n", 500)
