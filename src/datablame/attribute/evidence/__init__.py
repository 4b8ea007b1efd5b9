"""Providers of evidence, a file each: what methods judge by."""
