"""Who says whether an output is harmful."""

from datablame.judge.classifier import Classifier, Output, build

__all__ = ["Classifier", "Output", "build"]
