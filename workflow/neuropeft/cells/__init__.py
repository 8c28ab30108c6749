"""Cells of the grid: what has become of them, what they cost, and which results do not count any more."""
