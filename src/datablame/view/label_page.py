"""The page on which one person labels outputs."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from datablame.tables import LabelName
from datablame.view.labelling import KEYS, Labelling
from datablame.view.pages import page
from datablame.view.server import script, style

METHODS = frozenset({"GET", "HEAD", "POST"})
MOST_CHARACTERS = 2000
"""Of a note."""


class Wish(BaseModel):
    """What a person does with the item that is shown."""

    model_config = ConfigDict(extra="forbid", strict=True)
    does: Literal["label", "skip", "undo"]
    number: int | None = None
    label: LabelName = "unscored"
    note: Annotated[str, Field(max_length=MOST_CHARACTERS)] = ""


def label_app(labelling: Labelling, root: Path) -> Starlette:
    """The page and what it asks for. All runs in one thread, so that there is one item at a time."""

    async def whole(request: Request) -> Response:
        values = {"name": labelling.world.study.name, "annotator": labelling.annotator}
        return page("label.html.j2", **values, root=str(root), keys=KEYS, most=MOST_CHARACTERS)

    async def shown(request: Request) -> Response:
        return JSONResponse(labelling.shown())

    async def done(request: Request) -> Response:
        try:
            wish = Wish.model_validate_json(await request.body())
        except ValidationError:
            return PlainTextResponse("This page does not send that.", 400)
        if wish.does == "undo":
            labelling.undo()
        elif wish.number is not None and wish.does == "skip":
            labelling.skip(wish.number)
        elif wish.number is not None:
            labelling.label(wish.number, wish.label, wish.note)
        return JSONResponse(labelling.shown())

    async def look(request: Request) -> Response:
        return style()

    async def run(request: Request) -> Response:
        return script("label.js")

    pages: dict[str, Callable[[Request], Awaitable[Response]]] = {"/": whole, "/item": shown}
    files: dict[str, Callable[[Request], Awaitable[Response]]] = {"/style.css": look, "/label.js": run}
    routes = [Route(path, made) for path, made in (pages | files).items()]
    return Starlette(routes=[*routes, Route("/done", done, methods=["POST"])])
