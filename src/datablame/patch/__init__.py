"""Remove what was flagged, train again, measure again."""
