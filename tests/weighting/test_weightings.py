"""Each named method against its paper's formula in NumPy, on activations and gradients that are known one by one."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import lpjax
from lpjax._tree import leaves_with_paths
from lpjax.weighting.statistics import Calibration, Statistics
from lpjax.weighting.weightings import WEIGHTINGS, Weighting, metrics_of
from tests.helpers import on_devices, write_first

N, D, K, TOKENS = 17, 11, 4, 60


class Layer:
    """A kernel (in, out), the inputs of its tokens and the gradients by its outputs; a token is a text."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.kernel = rng.normal(size=(N, D))
        self.x = rng.normal(size=(TOKENS, N)) * np.geomspace(3, 0.1, N) + rng.normal(size=N)
        self.g = rng.normal(size=(TOKENS, D)) @ rng.normal(size=(D, D)) * np.geomspace(2, 0.2, D)

    @property
    def statistics(self) -> Statistics:
        squares = [np.square(np.outer(x, g)).sum(axis=1) for x, g in zip(self.x, self.g, strict=True)]
        return Statistics(
            TOKENS,
            inputs=self.x.T @ self.x / TOKENS,
            mean=self.x.mean(axis=0),
            magnitude=np.abs(self.x).mean(axis=0),
            outputs=self.g.T @ self.g / TOKENS,
            fisher=np.mean(squares, axis=0),
        )


def truncated(matrix: np.ndarray) -> np.ndarray:
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :K] * s[:K]) @ vt[:K]


def compressed(leaf, statistics, weighting, name="kernel", **options):
    calibration = Calibration({f"layer/{name}": statistics}, "labels", 1, 1, 0)
    params, records = lpjax.compress(
        {"layer": {name: leaf}}, select=name, rank=K, statistics=calibration, weighting=weighting, **options
    )
    assert records[0].rank == K
    return np.asarray(lpjax.densify(params["layer"][name]))


def exact(name: str) -> Weighting:
    return dataclasses.replace(WEIGHTINGS[name], shrinkage=0)


def drone(layer: Layer) -> np.ndarray:
    """The rank-k map nearest to W on the activations themselves: outputs XW projected on their leading directions."""
    outputs = layer.x @ layer.kernel
    directions = np.linalg.svd(outputs, full_matrices=False)[2][:K]
    return layer.kernel @ directions.T @ directions


def svd_llm(layer: Layer) -> np.ndarray:
    """Whitening by the Cholesky factor of XᵀX."""
    factor = np.linalg.cholesky(layer.x.T @ layer.x)
    return np.linalg.solve(factor.T, truncated(factor.T @ layer.kernel))


def asvd(layer: Layer) -> np.ndarray:
    """Inputs scaled by (mean |x|)^α, α = 0.5."""
    scale = np.abs(layer.x).mean(axis=0) ** 0.5
    return truncated(scale[:, None] * layer.kernel) / scale[:, None]


def fwsvd(layer: Layer) -> np.ndarray:
    """Rows of W weighted by the root of their Fisher information, the sum over a row of mean squared gradients."""
    gradients = np.einsum("tn,td->tnd", layer.x, layer.g)
    scale = np.sqrt(np.mean(gradients**2, axis=0).sum(axis=1))
    return truncated(scale[:, None] * layer.kernel) / scale[:, None]


def gauss_newton(layer: Layer) -> np.ndarray:
    """Both sides whitened by Cholesky factors."""
    left, right = np.linalg.cholesky(layer.x.T @ layer.x), np.linalg.cholesky(layer.g.T @ layer.g)
    return np.linalg.solve(left.T, truncated(left.T @ layer.kernel @ right)) @ np.linalg.inv(right)


FORMULAS = [
    ("none", lambda layer: truncated(layer.kernel)),
    ("counts", lambda layer: truncated(layer.kernel)),  # which kernels have none of
    ("drone", drone),
    ("drone", svd_llm),
    ("asvd", asvd),
    ("fwsvd", fwsvd),
    ("gauss_newton", gauss_newton),
]


@pytest.mark.covering(1)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("name", "formula"), FORMULAS, ids=[f.__name__ for _, f in FORMULAS])
@pytest.mark.parametrize("rows", ["last", "first"])
def test_named_methods_are_their_papers_formulas(name, formula, rows):
    layer = Layer()
    expected = formula(layer)
    approximation = compressed(layer.kernel, layer.statistics, exact(name), rows=rows)
    assert np.abs(approximation - expected).max() < 1e-6 * np.abs(expected).max()


@pytest.mark.covering(0)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("solver", ["svd", "irls_rows"])
def test_tables_weighted_by_tokens(solver):
    rng = np.random.default_rng(1)
    table, counts = rng.normal(size=(40, D)), rng.integers(0, 50, size=40).astype(float)
    g = rng.normal(size=(TOKENS, D)) * np.geomspace(1, 0.1, D)
    statistics = Statistics(int(counts.sum()), counts=counts, outputs=g.T @ g / TOKENS, gradients=counts * 2.0)
    scale = np.sqrt(counts + 1)[:, None]
    plain = compressed(table, statistics, exact("counts"), "embedding", solver=solver, p=2.0)
    assert np.allclose(plain, truncated(scale * table) / scale, atol=1e-8)
    factor = np.linalg.cholesky(g.T @ g)
    both = compressed(table, statistics, exact("gauss_newton"), "embedding", solver=solver, p=2.0)
    assert np.allclose(both, truncated(scale * table @ factor) / scale @ np.linalg.inv(factor), atol=1e-8)
    fisher = compressed(table, statistics, exact("fwsvd"), "embedding", solver=solver, p=2.0)
    scale = np.sqrt(counts * 2 + 2)[:, None]
    assert np.allclose(fisher, truncated(scale * table) / scale, atol=1e-8)


def error(layer: Layer, approximation: np.ndarray) -> float:
    """What a change of the kernel does to the output, to first order, were x and g of different tokens."""
    return float(np.linalg.norm(layer.x @ (layer.kernel - approximation) @ layer.g.T))


@pytest.mark.slow
def test_each_part_lowers_what_it_is_for():
    layer = Layer(3)
    kernel = layer.kernel.astype(np.float32)
    approximations = {name: compressed(kernel, layer.statistics, name) for name in ("none", "drone", "gauss_newton")}
    errors = {name: error(layer, approximation) for name, approximation in approximations.items()}
    assert errors["gauss_newton"] < errors["drone"] < errors["none"]


@pytest.mark.parametrize("p", [1.0, 1.5])
def test_below_two_the_weighted_rows_are_what_is_solved_for(p):
    layer = Layer(5)
    half = np.linalg.cholesky(layer.x.T @ layer.x / TOKENS)
    weighted = (half.T @ layer.kernel).T.astype(np.float32)  # rows are outputs
    expected = lpjax.irls_rows(weighted, K, p=p).objective
    approximation = compressed(
        layer.kernel.astype(np.float32), layer.statistics, exact("drone"), solver="irls_rows", p=p
    )
    rows = np.linalg.norm((layer.kernel - approximation).T @ half, axis=1)
    assert np.isclose(np.sum(rows**p) ** (1 / p), expected, rtol=1e-3)


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("damage", ["few samples", "a dead input", "nothing seen"])
def test_singular_statistics_are_no_failure(name, damage):
    layer = Layer(7)
    if damage == "few samples":
        layer.x, layer.g = layer.x[:3], layer.g[:3]
    elif damage == "a dead input":
        layer.x[:, 2] = 0
        layer.g[:, 1] = 0
    else:
        layer.x, layer.g = 0 * layer.x, 0 * layer.g
    approximation = compressed(layer.kernel.astype(np.float32), layer.statistics, name)
    assert np.all(np.isfinite(approximation))
    assert np.linalg.norm(layer.kernel - approximation) < 20 * np.linalg.norm(layer.kernel)


@pytest.mark.parametrize("wide", [True, False])
def test_a_dominant_direction_does_not_hide_the_others(wide):
    """One eigenvalue is most of the trace, as in trained models; in float32 the others must still count."""
    rng = np.random.default_rng(0)
    n, d = (300, 40) if wide else (40, 300)
    x, g = rng.normal(size=(2000, n)), rng.normal(size=(2000, d))
    x[:, 0] *= 3 * np.sqrt(n) * 10
    g[:, 0] *= 3 * np.sqrt(d) * 10
    statistics = Statistics(2000, inputs=x.T @ x / 2000, outputs=g.T @ g / 2000)
    kernel = rng.normal(size=(n, d)).astype(np.float32)
    calibration = Calibration({"layer/kernel": statistics}, "labels", 1, 1, 0)

    def loss(rank):
        params, _ = lpjax.compress({"layer": {"kernel": kernel}}, select="kernel", rank=rank, statistics=calibration)
        return kernel - np.asarray(lpjax.densify(params["layer"]["kernel"]))

    shares = np.linalg.norm(loss(34), axis=1 if wide else 0) / np.linalg.norm(kernel, axis=1 if wide else 0)
    assert shares.max() < 0.99  # nothing is dropped whole
    assert np.mean(shares) < 0.5


@pytest.mark.covering(0)
@pytest.mark.parametrize("p", [1.0, 1.5])
def test_tables_below_two_have_their_tokens_as_row_weights(p):
    rng = np.random.default_rng(2)
    table, counts = rng.normal(size=(40, D)).astype(np.float32), rng.integers(0, 50, size=40).astype(np.float32)
    approximation = compressed(table, Statistics(9, counts=counts), "counts", "embedding", solver="irls_rows", p=p)
    best = lpjax.irls_rows(table, K, p=p, row_weights=counts + 1, tol=0.0, num_iters=300)
    plain = lpjax.irls_rows(table, K, p=p)
    objective, unweighted = (
        np.sum((counts + 1) * np.linalg.norm(table - product, axis=1) ** p) ** (1 / p)
        for product in (approximation, plain.left @ plain.right)
    )
    assert objective < (1 + 1e-3) * best.objective < unweighted


def test_the_weighted_error_is_on_record():
    layer = Layer(9)
    kernel, calibration = layer.kernel.astype(np.float32), Calibration({"a/kernel": layer.statistics}, "", 1, 1, 0)
    options = {"select": "kernel", "rank": K, "statistics": calibration}
    shares = {}
    for name in ("none", "gauss_newton"):
        weighting = dataclasses.replace(WEIGHTINGS[name], shrinkage=0)
        params, (record,) = lpjax.compress({"a": {"kernel": kernel}}, weighting=weighting, **options)
        half, other = (np.linalg.cholesky(samples.T @ samples) for samples in (layer.x, layer.g))
        left = kernel - np.asarray(lpjax.densify(params["a"]["kernel"]))
        shares[name] = [np.linalg.norm(half.T @ matrix @ other) for matrix in (left, kernel)]
        if name == "none":
            assert record.error_weighted is None
        else:
            assert record.error_weighted is not None
            assert np.isclose(record.error_weighted, shares[name][0] / shares[name][1], rtol=1e-3)
    assert shares["gauss_newton"][0] < shares["none"][0]


def test_vmapped_stacks_are_the_same_as_one_at_a_time():
    layers = [Layer(seed) for seed in range(3)]
    params = {str(i): {"kernel": layer.kernel.astype(np.float32)} for i, layer in enumerate(layers)}
    calibration = Calibration({f"{i}/kernel": layer.statistics for i, layer in enumerate(layers)}, "labels", 1, 1, 0)
    one, three = (
        lpjax.compress(params, select="kernel", rank=K, statistics=calibration, batch_size=size).params
        for size in (1, 3)
    )
    for name in params:
        pairs = one[name]["kernel"], three[name]["kernel"]
        assert np.allclose(*map(lpjax.densify, pairs), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": "moments"}, "`inputs` is 'moments'; expected one of none, moment, magnitude, fisher"),
        ({"outputs": "fisher"}, "`outputs` is 'fisher'"),
        ({"tokens": "count"}, "`tokens` is 'count'"),
        ({"inputs_power": 3}, "`inputs_power` is 3; expected a number from 0 to 2"),
        ({"shrinkage": -1}, "`shrinkage` is -1"),
        ({"smoothing": float("nan")}, "`smoothing` is nan"),
    ],
)
def test_a_weighting_that_means_nothing_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Weighting(**options)


def test_misuse_is_refused_before_any_work():
    layer = Layer()
    kernel, statistics = layer.kernel.astype(np.float32), layer.statistics
    forward = dataclasses.replace(statistics, outputs=None, fisher=None)
    with pytest.raises(ValueError, match=r"no `outputs`.*gradients=True"):
        compressed(kernel, forward, "gauss_newton")
    assert metrics_of(forward, WEIGHTINGS["drone"], table=False).columns is None
    with pytest.raises(ValueError, match=r"no `counts`, which the weighting needs$"):
        compressed(kernel, statistics, "counts", "embedding")
    with pytest.raises(ValueError, match=r"`weighting` is .drone., which needs `statistics`"):
        lpjax.compress({"layer": {"kernel": kernel}}, select="kernel", rank=K, weighting="drone")
    with pytest.raises(ValueError, match="`weighting` is 'kfac'"):
        compressed(kernel, statistics, "kfac")
    with pytest.raises(ValueError, match=r"another model: `inputs` of layer/kernel has shape \(17, 17\)"):
        compressed(kernel[:-1], statistics, "drone")
    broken = dataclasses.replace(statistics, inputs=np.full((len(kernel),) * 2, np.nan))
    with pytest.raises(ValueError, match="`inputs` of layer/kernel in `statistics` is not finite"):
        compressed(kernel, broken, "drone")
    calibration = Calibration({}, "", 1, 1, 0)
    with pytest.raises(ValueError, match="no statistics of layer/kernel"):
        lpjax.compress({"layer": {"kernel": kernel}}, select="kernel", rank=K, statistics=calibration)
    calibration = Calibration({"layer/kernel": statistics}, "labels", 1, 1, 0)
    weights = {"layer/kernel": np.ones(D)}
    with pytest.raises(ValueError, match="both weight layer/kernel"):
        lpjax.compress(
            {"layer": {"kernel": kernel}}, select="kernel", rank=K, statistics=calibration, row_weights=weights
        )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("rows", ["last", "first"])
@pytest.mark.parametrize("shape", [(N, D), (D, N)])
def test_with_shrinkage_the_formula_is_that_of_the_shrunk_metrics(rows, shape):
    layer, shrinkage = Layer(), 0.05
    kernel = layer.kernel if shape == (N, D) else layer.kernel.T
    moments = [layer.x.T @ layer.x, layer.g.T @ layer.g]
    h, g = moments if shape == (N, D) else moments[::-1]
    statistics = Statistics(TOKENS, inputs=h, outputs=g)
    roots = []
    for metric in (h, g):
        values, vectors = np.linalg.eigh(metric / np.diagonal(metric).mean() + shrinkage * np.eye(len(metric)))
        roots.append((vectors * np.sqrt(values)) @ vectors.T)
    expected = np.linalg.solve(roots[0], truncated(roots[0] @ kernel @ roots[1])) @ np.linalg.inv(roots[1])
    approximation = compressed(kernel, statistics, Weighting(shrinkage=shrinkage), "kernel", solver="svd", rows=rows)
    assert np.allclose(approximation, expected, rtol=1e-9, atol=1e-9)


def test_one_metric_without_a_triangle_does_not_harm_its_batch():
    """Solved one by one and two at a time, pairs come out the same."""
    rng = np.random.default_rng(0)
    tree = {str(i): {"kernel": rng.normal(size=(N, D)).astype(np.float32)} for i in range(4)}
    moment = rng.normal(size=(3 * N, N)) * np.geomspace(1, 0.1, N)
    sound = (moment.T @ moment).astype(np.float32)
    unsound = sound - 0.01 * np.trace(sound) * np.outer(np.eye(N)[0], np.eye(N)[0]).astype(np.float32)
    known = {
        f"{i}/kernel": Statistics(TOKENS, inputs=unsound if i == 2 else sound, outputs=np.eye(D, dtype=np.float32))
        for i in range(4)
    }
    calibration = Calibration(known, "embedding", 1, 1, 0)
    one, two = (
        lpjax.compress(tree, select="kernel", rank=K, statistics=calibration, batch_size=size).params for size in (1, 2)
    )
    for name in tree:
        batched, alone = (np.asarray(lpjax.densify(params[name]["kernel"])) for params in (two, one))
        assert np.all(np.isfinite(batched))
        assert np.allclose(batched, alone, atol=1e-3 * np.abs(alone).max()), name


def write_weighted(target):
    """Products and errors of five kernels and a table under weights, of all devices of all processes."""
    rng = np.random.default_rng(0)
    tree = {str(i): {"kernel": rng.standard_t(3, size=(N, D)).astype(np.float32)} for i in range(5)}
    tree["words"] = {"embedding": rng.standard_t(3, size=(90, D)).astype(np.float32)}
    moments = [np.cov(rng.normal(size=(n, 3 * n))).astype(np.float32) for n in (N, D)]
    counts = rng.geometric(0.1, size=90).astype(np.float32)
    known = {f"{i}/kernel": Statistics(TOKENS, inputs=moments[0], outputs=moments[1]) for i in range(5)}
    known["words/embedding"] = Statistics(TOKENS, counts=counts, gradients=counts, outputs=moments[1])
    calibration = Calibration(known, "embedding", 1, TOKENS, 0)
    arrays = {}
    plan = lpjax.allocate(tree, budget=0.6, select=".", statistics=calibration)
    for name, options in (("planned", {"plan": plan}), ("of one rank", {"select": ".", "rank": K})):
        params, records = lpjax.compress(tree, statistics=calibration, **options)
        for record in records:
            leaf = jax.tree.map(jnp.asarray, dict(leaves_with_paths(params))[record.path])
            arrays[f"{name}: {record.path}"] = np.asarray(lpjax.densify(leaf))
            arrays[f"{name}: error of {record.path}"] = np.array([record.error_weighted or 0.0])
    write_first(arrays, target)


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "processes"), [pytest.param(4, 1, marks=pytest.mark.slow), (4, 2)])
def test_devices_make_no_difference(devices, processes, tmp_path):
    write_weighted(tmp_path / "one.safetensors")
    one = load_file(tmp_path / "one.safetensors")
    several = on_devices(
        "tests.weighting.test_weightings.write_weighted", tmp_path / "all.safetensors", devices, processes
    )
    assert one.keys() == several.keys()
    for name, array in one.items():
        assert np.allclose(several[name], array, atol=1e-4 * max(1, np.abs(array).max())), name
