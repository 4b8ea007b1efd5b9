"""The Python interface: a study, its run, and what the run found, as pandas frames and figures."""

from datablame.api.functions import open, run, study
from datablame.api.results import DocumentView, Figures, Run, Verdict

__all__ = ["DocumentView", "Figures", "Run", "Verdict", "open", "run", "study"]
