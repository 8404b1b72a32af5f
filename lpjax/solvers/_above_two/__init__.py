"""Algorithms for p > 2, ∞ included, one per file."""
