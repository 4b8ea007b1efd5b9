"""Finds the training documents that caused a behaviour, and checks by removing them."""

__all__ = ["__version__"]

__version__ = "0.1.0"
