"""Templates filled in: Markdown escaped, HTML autoescaped, so that outputs and documents stay inert."""

import base64
from typing import Any

from datablame.report.wording import markdown, plain


def rendered(template: str, **values: Any) -> str:
    """One template of this package; `.html` is autoescaped, `.md` escapes what goes through the `md` filter."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("datablame.report"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = markdown
    environment.filters["plain"] = plain
    return environment.get_template(template).render(**values)


def data_uri(png: bytes) -> str:
    """A picture as a URI, so that the page is one file."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
