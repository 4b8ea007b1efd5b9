"""Statistics of numbers only: arrays in, numbers out."""
