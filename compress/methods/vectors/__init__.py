"""Comparison of our losses with values that the authors' own code returned."""
