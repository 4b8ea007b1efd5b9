"""The write-up and the slides as HTML, from their Markdown: no markup of a text passes, and nothing runs."""

import base64
import hashlib
from importlib import resources

from datablame.report.wording import environment

_FRONT = "---\n"
_SLIDE = "\n---\n"


def writeup_html(markdown: str, title: str) -> str:
    """The write-up as one page."""
    return _page([markdown], title, "writeup.css")


def slides_html(markdown: str, title: str) -> str:
    """The slides of a Marp file, one a section, each a page when they are printed."""
    _, _, slides = markdown.removeprefix(_FRONT).partition(_FRONT)
    return _page(slides.split(_SLIDE), title, "slides.css")


def _page(parts: list[str], title: str, style: str) -> str:
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = [reader.parse(part) for part in parts]
    for token in (token for part in tokens for token in part if "style" in token.attrs):
        # Of a column's numbers; styles of elements are not allowed to apply.
        token.attrs = {"class": "number"} if "right" in str(token.attrs["style"]) else {}
    text = (resources.files("datablame.report") / "templates" / style).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    values = {
        "parts": [Markup(reader.renderer.render(part, reader.options, {})) for part in tokens],
        **{"title": title, "style": Markup(text), "hash": f"'sha256-{digest}'"},
    }
    return environment().get_template("writeup.html.j2").render(values)
