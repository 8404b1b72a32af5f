"""Code that all solvers share."""
