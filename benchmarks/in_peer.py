"""One peer on one matrix, in the peer's own environment: `python benchmarks/in_peer.py PEER MATRIX.npy RANK OUT.npz`.

Imports NumPy and the peer alone. Writes the pair (left, right), the seconds of the solve, the least of three unless one
takes long, and what the versions were. A peer that gives a subspace has the rows projected on it; one that gives a
low-rank part has it cut to the rank by its SVD, which is not in the seconds.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Pair = tuple[np.ndarray, np.ndarray]


def cut(low_rank: np.ndarray, rank: int) -> Pair:
    """The pair of a low-rank matrix, by its SVD."""
    left, values, right = np.linalg.svd(low_rank, full_matrices=False)
    return left[:, :rank] * values[:rank], right[:rank]


def onto(matrix: np.ndarray, right: np.ndarray) -> Pair:
    """The rows projected on a subspace with the orthonormal basis `right`."""
    return matrix @ right.T, right


def randomized_svd(matrix: np.ndarray, rank: int) -> Pair:
    """scikit-learn's, with its defaults."""
    left, values, right = importlib.import_module("sklearn.utils.extmath").randomized_svd(matrix, rank, random_state=0)
    return left * values, right


def covariance_pca(matrix: np.ndarray, rank: int) -> Pair:
    """scikit-learn's PCA by the covariance, its fastest; it centres, so its subspace is taken."""
    decomposition = importlib.import_module("sklearn.decomposition")
    return onto(matrix, decomposition.PCA(rank, svd_solver="covariance_eigh").fit(matrix).components_)


def torch_lowrank(matrix: np.ndarray, rank: int) -> Pair:
    """PyTorch's randomized SVD, with its defaults."""
    torch = importlib.import_module("torch")
    torch.manual_seed(0)
    left, values, right = (tensor.numpy() for tensor in torch.svd_lowrank(torch.from_numpy(matrix), rank))
    return left * values, right.T


def fbpca(matrix: np.ndarray, rank: int) -> Pair:
    """fbpca's PCA without centring."""
    left, values, right = importlib.import_module("fbpca").pca(matrix, rank, raw=True)
    return left * values, right


def pymanopt(matrix: np.ndarray, rank: int) -> Pair:
    """Σ ‖a_i − a_i VVᵀ‖ over the Grassmannian by conjugate gradients with the analytic gradient, from the SVD."""
    pymanopt = importlib.import_module("pymanopt")
    manifold = importlib.import_module("pymanopt.manifolds").Grassmann(matrix.shape[1], rank)
    rows = matrix.astype(np.float64)

    def distances(basis: np.ndarray) -> np.ndarray:
        return np.linalg.norm(rows - (rows @ basis) @ basis.T, axis=1)

    @pymanopt.function.numpy(manifold)
    def cost(basis: np.ndarray) -> float:
        return float(distances(basis).sum())

    @pymanopt.function.numpy(manifold)
    def gradient(basis: np.ndarray) -> np.ndarray:
        return -rows.T @ (rows @ basis / np.maximum(distances(basis), 1e-12)[:, None])

    problem = pymanopt.Problem(manifold, cost, euclidean_gradient=gradient)
    optimizer = importlib.import_module("pymanopt.optimizers").ConjugateGradient(max_iterations=50, verbosity=0)
    start = np.linalg.eigh(rows.T @ rows)[1][:, ::-1][:, :rank]
    return onto(matrix, optimizer.run(problem, initial_point=start).point.T)


def of_robpy(matrix: np.ndarray, pca: Any, rank: int) -> Pair:
    """The rows projected on the subspace that an estimator of robpy finds; its components are columns."""
    components = np.asarray(pca.fit(matrix).components_).reshape(matrix.shape[1], -1)
    return onto(matrix, np.linalg.qr(components[:, :rank])[0].T)


def robpy_spherical(matrix: np.ndarray, rank: int) -> Pair:
    """robpy's spherical PCA; its subspace."""
    return of_robpy(matrix, importlib.import_module("robpy.pca").PCALocantore(n_components=rank), rank)


def robpca(matrix: np.ndarray, rank: int) -> Pair:
    """robpy's ROBPCA; its subspace."""
    return of_robpy(matrix, importlib.import_module("robpy.pca").ROBPCA(n_components=rank, random_seed=0), rank)


def alternating_projections(matrix: np.ndarray, rank: int) -> np.ndarray:
    """rpca's accelerated alternating projections."""
    fitted = importlib.import_module("rpca").RobustPCA(n_components=rank, verbose=False).fit(matrix)
    return np.asarray(fitted.low_rank_)


def inexact_alm(matrix: np.ndarray, rank: int) -> np.ndarray:
    """pyrpca's principal component pursuit."""
    pursue = importlib.import_module("pyrpca").rpca_pcp_ialm
    return pursue(matrix, 1 / max(matrix.shape) ** 0.5, verbose=False)[0]


def skpcp(matrix: np.ndarray, rank: int) -> np.ndarray:
    """skpcp's principal component pursuit."""
    fitted = importlib.import_module("skpcp").PCP().fit(matrix)
    return np.asarray(fitted.low_rank_)


def tensorly(matrix: np.ndarray, rank: int) -> np.ndarray:
    """tensorly's robust PCA, the sparse part weighed as in principal component pursuit: it counts a matrix's nuclear
    norm twice, once an axis."""
    decomposition = importlib.import_module("tensorly.decomposition")
    return decomposition.robust_pca(matrix, reg_E=2 / max(matrix.shape) ** 0.5, verbose=0)[0]


def numpy_irls(matrix: np.ndarray, rank: int) -> Pair:
    """Plain alternating IRLS for Σ |r_ij|: weighted least squares for L, then for R, 3 sweeps."""
    left, right = cut(matrix, rank)
    for _ in range(3):
        for side in range(2):
            weights = 1 / np.maximum(np.abs(matrix - left @ right), 1e-6 * np.abs(matrix).max())
            if side == 0:
                for i in range(len(matrix)):
                    scaled = right * weights[i]
                    left[i] = np.linalg.solve(scaled @ right.T + 1e-9 * np.eye(rank), scaled @ matrix[i])
            else:
                for j in range(matrix.shape[1]):
                    scaled = left.T * weights[:, j]
                    right[:, j] = np.linalg.solve(scaled @ left + 1e-9 * np.eye(rank), scaled @ matrix[:, j])
    return left, right


LONG = 20  # seconds

PEERS: dict[str, Callable[[np.ndarray, int], Pair | np.ndarray]] = {
    "scikit-learn randomized_svd": randomized_svd,
    "scikit-learn PCA": covariance_pca,
    "torch svd_lowrank": torch_lowrank,
    "fbpca": fbpca,
    "pymanopt": pymanopt,
    "robpy PCALocantore": robpy_spherical,
    "robpy ROBPCA": robpca,
    "rpca": alternating_projections,
    "pyrpca": inexact_alm,
    "skpcp": skpcp,
    "tensorly": tensorly,
    "NumPy IRLS": numpy_irls,
}


def main() -> None:
    """Solve and write."""
    name, source, rank, target = sys.argv[1:]
    matrix, solve = np.load(source), PEERS[name]
    solve(np.random.default_rng(0).normal(size=(60, 20)).astype(matrix.dtype), 3)  # imports and first calls
    times: list[float] = []
    answer: Pair | np.ndarray = matrix
    while len(times) < 3 and sum(times) < LONG:
        began = time.perf_counter()
        answer = solve(matrix, int(rank))
        times.append(time.perf_counter() - began)
    left, right = cut(answer, int(rank)) if isinstance(answer, np.ndarray) else answer
    solution: dict[str, Any] = {"left": left, "right": right, "seconds": min(times)}
    versions = [f"{d.metadata['Name']} {d.version}" for d in importlib.metadata.distributions()]
    with open(target + ".part", "wb") as file:  # noqa: PTH123
        np.savez(file, versions=sorted(versions), **solution)
    os.replace(target + ".part", target)  # noqa: PTH105


if __name__ == "__main__":
    main()
