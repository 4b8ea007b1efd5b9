"""Which documents each method holds responsible."""
