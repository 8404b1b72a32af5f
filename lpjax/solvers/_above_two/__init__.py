"""The algorithms for p above 2, ∞ included, one a file as those for p up to 2."""
