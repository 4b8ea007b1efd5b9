"""index.html as text: one template, its style, its scripts, and a policy that lets nothing else run."""

import base64
import functools
import hashlib
from collections.abc import Mapping
from importlib import resources
from typing import Any

from datablame.report.page.data import Explorer, encoded
from datablame.report.results import Results
from datablame.report.wording import environment

_SCRIPTS = ("base.js", "samples.js", "documents.js", "start.js")


def index_html(results: Results, found: Explorer, values: Mapping[str, Any]) -> str:
    """The page; `values` are what all pages take."""
    from markupsafe import Markup

    from datablame.report.page.charts import charts

    style, script, bundle = _text("page.css"), "\n".join(map(_text, _SCRIPTS)), _vega()
    allowed = " ".join(_hashed(text) for text in (bundle, script))
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {allowed}",
            f"style-src {_hashed(style)}",
            *("img-src data:", "base-uri 'none'", "form-action 'none'"),
        )
    )
    page = {
        "style": Markup(style),
        "script": Markup(script),
        "bundle": Markup(bundle),
        "policy": policy,
        "charts": charts(results),
        "data": encoded(found.content),
        "left_out": found.left_out,
    }
    return environment().get_template("index.html.j2").render({**values, **page})


def _text(name: str) -> str:
    return (resources.files("datablame.report.page") / name).read_text(encoding="utf-8")


@functools.cache
def _vega() -> str:
    """Vega, Vega-Lite and vega-embed as one script without imports."""
    import vl_convert

    # A tag that ends a script may stand in none.
    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")).replace("</script", "<\\/script")


def _hashed(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
