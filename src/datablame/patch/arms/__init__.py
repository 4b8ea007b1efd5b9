"""Arms that are no method's flagged set."""
