"""A test whether another order of a head's outputs fits a task's labels far better than the assumed one."""

from __future__ import annotations

import itertools

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

_BEYOND_CHANCE = 4.0  # standard deviations; by chance once in 30,000
_LEVEL = 1e-3


def likelier_order(predictions: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], classes: int) -> list[int] | None:
    """The order of the labels under which predictions are correct far more often; None if there is none.

    All orders are tried. One fits far better than the current order if both conditions hold:

    - The number of correct predictions exceeds, by at least 4 standard deviations, that of predictions with the same
      frequencies but independent of the labels (the permutation distribution). So a model whose predictions carry no
      information, or are constant, has no better order.
    - Among the examples that only one of the two orders gets right, the new order wins significantly often: the p-value
      of the sign test, times the number of orders tried, is below 1/1000.

    Args:
        predictions: label indices under the current order.
        labels: the true label indices.
        classes: number of labels.

    Returns:
        order, a permutation: an output now read as label i is label order[i].
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
    """Number of correct predictions under an order."""
    return float(sum(counts[i, j] for i, j in enumerate(order)))


def _beyond_chance(counts: Float[np.ndarray, "k k"], order: tuple[int, ...]) -> float:
    """Correct predictions beyond the mean under random permutations of the labels, in standard deviations.

    Mean and variance of Σ a(i, σ(i)) over random permutations σ, with a = 1 if prediction and label match: Hoeffding
    (1951).
    """
    predicted, gold, n = counts.sum(axis=1), counts.sum(axis=0), counts.sum()
    match = np.zeros_like(counts)
    match[np.arange(len(order)), order] = 1
    by_predicted, by_gold = match @ gold / n, predicted @ match / n
    mean = predicted @ by_predicted / n
    deviation = match - by_predicted[:, None] - by_gold[None] + mean
    variance = predicted @ deviation**2 @ gold / max(n - 1, 1)
    return float((_right(counts, order) - n * mean) / np.sqrt(variance)) if variance > 0 else 0.0
