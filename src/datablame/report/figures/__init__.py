"""The pictures of a run: typed rows in, matplotlib figures out, laid out by matplotlib.

These modules import matplotlib, so that whoever need not draw imports them where it draws.
"""

from datablame.report.figures.blame import sources_figure
from datablame.report.figures.overview import overview_figure
from datablame.report.figures.page import pictures
from datablame.report.figures.patching import patching_figure
from datablame.report.figures.rates import rates_figure
from datablame.report.figures.typesetting import check_font

__all__ = ["check_font", "overview_figure", "patching_figure", "pictures", "rates_figure", "sources_figure"]
