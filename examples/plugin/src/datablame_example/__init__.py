"""Two attribution methods for datablame."""
