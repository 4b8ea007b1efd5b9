"""The command line."""

from datablame.cli.app import app, main

__all__ = ["app", "main"]
