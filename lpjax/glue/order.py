"""Whether another order of a head's outputs fits the labels of a task far better than the one that is assumed."""

from __future__ import annotations

import itertools

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

_BEYOND_CHANCE = 4.0  # standard deviations; met by chance once in 30,000 times
_LEVEL = 1e-3


def likelier_order(predictions: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], classes: int) -> list[int] | None:
    """The order of the labels under which predictions are right far more often; None if there is none.

    All orders are tried. One fits far better than the present one if both hold:

    - Predictions under it agree with the labels by at least 4 standard deviations more than predictions that have
      nothing to do with them would, of the same frequencies (the permutation distribution). So a net that tells
      nothing, or always says the same, has no better order.
    - Of the examples that only one of the two orders gets right, so many are the other's that chance explains it less
      often than once in a thousand times (the sign test, times the number of orders tried).

    Args:
        predictions: numbers of labels under the present order.
        labels: the true ones.
        classes: how many labels there are.

    Returns:
        order, a permutation: what is now taken for label i is label order[i].
    """
    if classes < 2 or not len(labels):
        return None
    counts = np.zeros((classes, classes))
    np.add.at(counts, (predictions, labels), 1)
    present = tuple(range(classes))
    others = [order for order in itertools.permutations(present) if order != present]
    best = max(others, key=lambda order: _right(counts, order))
    ours, theirs = (sum(counts[i, order[i]] for i in present if present[i] != best[i]) for order in (present, best))
    if theirs <= ours:
        return None
    chance = float(stats.binom.sf(theirs - 1, ours + theirs, 0.5)) * len(others)
    return list(best) if chance < _LEVEL and _beyond_chance(counts, best) >= _BEYOND_CHANCE else None


def _right(counts: Float[np.ndarray, "k k"], order: tuple[int, ...]) -> float:
    """Predictions that are right under an order."""
    return float(sum(counts[i, j] for i, j in enumerate(order)))


def _beyond_chance(counts: Float[np.ndarray, "k k"], order: tuple[int, ...]) -> float:
    """By how many standard deviations more are right than if labels were dealt out to the predictions at random.

    Mean and variance are Hoeffding's (1951), of Σ a(i, σ(i)) over random permutations σ, with a = 1 if prediction and
    label match.
    """
    predicted, gold, n = counts.sum(axis=1), counts.sum(axis=0), counts.sum()
    match = np.zeros_like(counts)
    match[np.arange(len(order)), order] = 1
    by_predicted, by_gold = match @ gold / n, predicted @ match / n
    mean = predicted @ by_predicted / n
    deviation = match - by_predicted[:, None] - by_gold[None] + mean
    variance = predicted @ deviation**2 @ gold / max(n - 1, 1)
    return float((_right(counts, order) - n * mean) / np.sqrt(variance)) if variance > 0 else 0.0
