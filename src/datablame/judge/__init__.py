"""Who says whether an output is harmful."""

from datablame.judge.classifier import Classifier, ClassifierInput, build

__all__ = ["Classifier", "ClassifierInput", "build"]
