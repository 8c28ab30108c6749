"""Cells of the grid: what has become of them, and what of the results does not count any more."""
