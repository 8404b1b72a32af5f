"""Tests of lpjax.rounding."""
