"""index.html: the study on one page that asks for nothing else, with charts and all that can be looked through."""

from datablame.report.page.data import Explorer, explorer
from datablame.report.page.html import index_html

__all__ = ["Explorer", "explorer", "index_html"]
