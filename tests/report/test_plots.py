"""The figure of one matrix: every line against the numbers behind it."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest

import lpjax
from lpjax.report import plot_matrix
from lpjax.weights import Sparse
from tests.helpers import heavy_tailed

MATRIX = heavy_tailed(17, 11)


def solutions() -> dict:
    steps = [lpjax.irls_rows(MATRIX, 3, num_iters=number) for number in (1, 2, 4)]
    svd = lpjax.svd(MATRIX, 3)
    return {"svd": svd, "irls_rows": steps, "factors": lpjax.LowRank(svd.left, svd.right)}


def test_a_matrix_is_plotted_with_its_factorizations(tmp_path):
    before = dict(mpl.rcParams)
    figure = plot_matrix(MATRIX, solutions(), title="heavy tails, $^")
    assert dict(mpl.rcParams) == before
    spectrum, rows, errors, objective = figure.axes
    values = np.linalg.svd(MATRIX, compute_uv=False)
    np.testing.assert_allclose(np.asarray(spectrum.lines[0].get_ydata()), values / values[0], rtol=1e-5)
    assert [np.asarray(line.get_xdata())[0] for line in spectrum.lines[1:]] == [3.5] * 3
    norms = np.linalg.norm(MATRIX, axis=1)
    np.testing.assert_allclose(np.asarray(rows.lines[0].get_xdata()), np.sort(norms) / np.median(norms), rtol=1e-5)
    assert np.asarray(rows.lines[0].get_ydata())[0] == 1
    made = solutions()
    last = made["irls_rows"][-1]
    expected = np.sort(np.linalg.norm(MATRIX - np.asarray(last.left @ last.right), axis=1)) / np.median(norms)
    np.testing.assert_allclose(np.asarray(errors.lines[1].get_xdata()), expected, rtol=1e-3)
    np.testing.assert_array_equal(np.asarray(errors.lines[0].get_xdata()), np.asarray(errors.lines[2].get_xdata()))
    assert [line.get_label() for line in errors.lines] == ["svd", "irls_rows", "factors"]
    assert [int(step.num_iters) for step in made["irls_rows"]] == list(np.asarray(objective.lines[0].get_xdata()))
    objectives = np.array([float(step.objective) for step in made["irls_rows"]])
    np.testing.assert_allclose(np.asarray(objective.lines[0].get_ydata()), objectives / objectives.min(), rtol=1e-6)
    assert len(objective.lines) == 1
    figure.savefig(tmp_path / "matrix.png")
    assert (tmp_path / "matrix.png").read_bytes().startswith(b"\x89PNG")


def test_single_entries_count_and_a_bare_matrix_will_do():
    svd = lpjax.svd(MATRIX, 3)
    residual = MATRIX - np.asarray(svd.left @ svd.right)
    i, j = np.unravel_index(np.argmax(np.abs(residual)), residual.shape)
    entry = np.zeros_like(MATRIX)
    entry[i, j] = residual[i, j]
    factors = lpjax.LowRank(np.asarray(svd.left), np.asarray(svd.right), Sparse.of(entry.astype(np.float32)))
    (line,) = plot_matrix(MATRIX, {"factors": factors}).axes[2].lines
    expected = np.linalg.norm(residual - entry, axis=1) / np.median(np.linalg.norm(MATRIX, axis=1))
    np.testing.assert_allclose(np.asarray(line.get_xdata()), np.sort(expected), rtol=1e-4)
    assert len(plot_matrix(MATRIX, {}).axes) == 4
    assert len(plot_matrix(np.eye(5)[:, :1], {}).axes) == 4  # more than half of the rows are 0


@pytest.mark.parametrize(
    ("matrix", "shape", "words"),
    [
        (np.zeros((3, 2)), (3, 2), r"`matrix` has shape \(3, 2\); expected"),
        (np.full((3, 2), np.nan), (3, 2), "finite"),
        (np.ones(3), (3, 2), r"`matrix` has shape \(3,\)"),
        (np.ones((3, 2)), (2, 3), r"`solutions` has 'a' of shapes \[\(2, 3\)\]; expected \(3, 2\)"),
    ],
)
def test_what_does_not_fit_is_refused(matrix, shape, words):
    n, d = shape
    with pytest.raises(ValueError, match=words):
        plot_matrix(matrix, {"a": lpjax.LowRank(np.ones((n, 1)), np.ones((1, d)))})
