"""Who says whether an output is harmful, and which documents taught it."""
