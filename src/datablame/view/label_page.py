"""The page on which one person labels outputs."""

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
from datablame.view.server import no_icon, script, style

METHODS = frozenset({"GET", "HEAD", "POST"})
MOST_CHARACTERS = 2000
"""Of a note."""


class Wish(BaseModel):
    """What a person does with the item that is shown."""

    model_config = ConfigDict(extra="forbid", strict=True)
    does: LabelName | Literal["skip", "undo"]
    number: int
    """Of the item that the page shows."""
    note: Annotated[str, Field(max_length=MOST_CHARACTERS)] = ""


def label_app(labelling: Labelling, root: Path) -> Starlette:
    """The page and what it asks for, which runs in one thread, so that there is one item at a time."""

    def whole(request: Request) -> Response:
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
        elif wish.does == "skip":
            labelling.skip(wish.number)
        else:
            labelling.label(wish.number, wish.does, wish.note)
        return JSONResponse(labelling.shown())

    routes = [
        Route("/", whole),
        Route("/style.css", lambda _: style()),
        Route("/label.js", lambda _: script("label.js")),
        Route("/favicon.ico", lambda _: no_icon()),
        Route("/item", shown),
        Route("/done", done, methods=["POST"]),
    ]
    return Starlette(routes=routes)
