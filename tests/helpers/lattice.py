"""Rounding under two metrics in other ways than lpjax: conditional minima of the whole form, and brute force."""

from __future__ import annotations

import itertools

import numpy as np


def random_metric(size: int, seed: int, spread: float = 2.0) -> np.ndarray:
    """A positive definite matrix whose eigenvalues fall over `spread` decades."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(size, size)))
    return (basis * np.logspace(0, -spread, size)) @ basis.T


def damped(metric: np.ndarray, damping: float = 0.05) -> np.ndarray:
    """A metric with `damping` times its mean eigenvalue added."""
    return metric + damping * np.trace(metric) / len(metric) * np.eye(len(metric))


def weighted_error(errors: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> float:
    """‖H^{1/2} E G^{1/2}‖²."""
    return float(np.trace(rows @ errors @ columns @ errors.T))


def successive(
    matrix: np.ndarray, steps: np.ndarray, rows: np.ndarray, columns: np.ndarray, most: int = 2**15
) -> np.ndarray:
    """Codes, each the nearest to the value that is best given those after it, entries before it being free.

    By a linear system of the whole form H ⊗ G for each entry.
    """
    whole = np.asarray(np.kron(rows, columns), np.float64)
    weights, step = matrix.reshape(-1), steps.reshape(-1)
    codes, errors = np.zeros(len(weights)), np.zeros(len(weights))
    for m in reversed(range(len(weights))):
        free = np.linalg.solve(whole[: m + 1, : m + 1], -whole[: m + 1, m + 1 :] @ errors[m + 1 :])
        codes[m] = np.clip(np.round((float(weights[m]) - float(free[m])) / float(step[m])), -most, most)
        errors[m] = weights[m] - codes[m] * step[m]
    return codes.reshape(matrix.shape)


def least_error(matrix: np.ndarray, steps: np.ndarray, rows: np.ndarray, columns: np.ndarray, most: int) -> float:
    """The least weighted error of all codes from −most to most, by trying them all."""
    candidates = itertools.product(range(-most, most + 1), repeat=matrix.size)
    codes = (np.reshape(np.asarray(candidate, np.float64), matrix.shape) for candidate in candidates)
    return min(weighted_error(np.subtract(matrix, np.multiply(candidate, steps)), rows, columns) for candidate in codes)
