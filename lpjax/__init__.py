"""Robust lp low-rank compression of transformer checkpoints in JAX."""
