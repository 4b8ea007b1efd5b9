"""Who says whether an output is harmful."""

from datablame.judge.classifier import Classifier, build

__all__ = ["Classifier", "build"]
