"""Figures, tables, write-up and page, from the artifacts alone."""
