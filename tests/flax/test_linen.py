"""Linen modules on factored params: the numbers of the dense ones, by programs that never form a dense weight."""

from __future__ import annotations

import functools
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze

import lpjax
import lpjax.flax
from lpjax import LowRank
from lpjax._tree import leaves_with_paths
from tests.flax import helpers
from tests.flax.helpers import (
    BATCH,
    HEAD,
    HEADS,
    HIDDEN,
    LENGTH,
    VOCAB,
    WIDE,
    Block,
    Transformer,
    densified,
    near,
    normal,
)

QUERY, OUT = (HIDDEN, HEADS, HEAD), (HEADS, HEAD, HIDDEN)
WEIGHTS = {"query": QUERY, "key": QUERY, "value": QUERY, "out": OUT}
DENSE = [(HIDDEN, HEADS * HEAD), (HEADS * HEAD, HIDDEN), QUERY, OUT, (HIDDEN, WIDE), (WIDE, HIDDEN), (VOCAB, HIDDEN)]


def weights_of(params: Any) -> dict[str, Any]:
    return {path: leaf for path, leaf in leaves_with_paths(params) if path.split("/")[-1] in ("kernel", "embedding")}


def compressed(module: nn.Module, params: Any, *args: Any, **options: Any) -> Any:
    """Every weight factored, at the rank that keeps 0.7 of it, by a solver that needs no time."""
    axes = lpjax.flax.input_axes(module, {"params": params}, *args)
    settings: dict[str, Any] = {
        "select": r"(kernel|embedding)$",
        "keep": 0.7,
        "solver": helpers.first_columns,
    } | options
    return lpjax.compress(params, input_axes=axes, **settings).params


def pair(n: int, d: int, rank: int = 3, batch: tuple[int, ...] = (), dtype: Any = np.float32) -> LowRank:
    return LowRank(jnp.asarray(normal((*batch, n, rank), 1, dtype)), jnp.asarray(normal((*batch, rank, d), 2, dtype)))


@pytest.fixture(scope="module")
def params() -> Any:
    return helpers.drawn(Transformer(), helpers.ids())


def test_a_transformer_runs_on_factored_params(params):
    module, ids = Transformer(), helpers.ids()
    small = compressed(module, params, ids)
    factored = weights_of(small)
    assert len(factored) == 7
    assert all(isinstance(leaf, LowRank) for leaf in factored.values())
    assert sum(leaf.size for leaf in factored.values()) < 0.7 * sum(x.size for x in weights_of(params).values())
    dense = densified(small, params)

    def loss(run: Any, params: Any) -> Any:
        return jnp.sum(jnp.sin(run({"params": params}, ids)))

    run = functools.partial(lpjax.flax.apply, module)
    exact = jax.jit(module.apply)
    logits = jax.jit(run)({"params": small}, ids)
    assert near(logits, exact({"params": dense}, ids))
    assert not near(logits, exact({"params": params}, ids), 1e-2)
    factored_gradients = jax.jit(jax.grad(functools.partial(loss, run)))(small)
    gradients = jax.jit(jax.grad(functools.partial(loss, module.apply)))(dense)
    assert jax.tree.structure(factored_gradients) == jax.tree.structure(small)
    for path, leaf in leaves_with_paths(factored_gradients):
        whole, weight = (dict(leaves_with_paths(tree))[path] for tree in (gradients, small))
        if isinstance(leaf, LowRank):
            chained = helpers.by_the_chain_rule(weight, whole)
            assert near(leaf.left, chained.left), path
            assert near(leaf.right, chained.right), path
        else:
            # A bias of keys shifts all scores alike: its gradient is rounding.
            assert near(leaf, whole) or (path.endswith("key/bias") and np.abs(leaf).max() < 1e-5), path
    # Neither the program nor its gradient's forms what the factors stand for.
    grad = jax.grad(functools.partial(loss, run))
    shapes = {*helpers.shapes_in(jax.make_jaxpr(run)({"params": small}, ids))}
    shapes |= {*helpers.shapes_in(jax.make_jaxpr(grad)(small))}
    assert (BATCH, LENGTH, VOCAB) in shapes
    assert not shapes & {*DENSE, *(shape[::-1] for shape in DENSE)}
    dense_shapes = {*helpers.shapes_in(jax.make_jaxpr(jax.grad(functools.partial(loss, module.apply)))(dense))}
    assert len(dense_shapes & {*DENSE, *(shape[::-1] for shape in DENSE)}) > 4  # the test would see them


@pytest.mark.parametrize("tied", ["product", "variables"])
def test_other_ways_to_use_the_table_twice(params, tied):
    module, ids = Transformer(tied), helpers.ids()
    small = compressed(module, params, ids)
    run = functools.partial(lpjax.flax.apply, module)
    logits = jax.jit(run)({"params": small}, ids)
    assert near(logits, lpjax.flax.apply(Transformer(), {"params": small}, ids))
    assert not helpers.forms(run, (VOCAB, HIDDEN), {"params": small}, ids)


def test_dense_params_run_as_ever(params):
    module, variables, ids = Transformer(), {"params": params}, helpers.ids()
    runs = jax.jit(functools.partial(lpjax.flax.apply, module)), jax.jit(module.apply)
    assert np.array_equal(*(run(variables, ids) for run in runs))
    programs = [
        str(jax.make_jaxpr(run)(variables, ids)) for run in (functools.partial(lpjax.flax.apply, module), module.apply)
    ]
    assert programs[0] == programs[1]
    with lpjax.flax.factored():
        initial = jax.eval_shape(module.init, jax.random.key(0), ids)["params"]
    assert jax.tree.structure(initial) == jax.tree.structure(params)


def test_the_context_serves_code_that_applies_modules_itself(params):
    module, ids = Transformer(), helpers.ids()
    small = compressed(module, params, ids)
    expected = lpjax.flax.apply(module, {"params": small}, ids)
    with lpjax.flax.factored(), lpjax.flax.factored():
        assert np.array_equal(module.apply({"params": small}, ids), expected)
        assert np.array_equal(module.bind({"params": small})(ids), expected)
        assert np.array_equal(module.apply({"params": freeze(small)}, ids), expected)
    # And is over after it, even where something failed.
    with pytest.raises(KeyError), lpjax.flax.factored():
        raise KeyError
    with pytest.raises(flax.errors.ScopeParamShapeError):
        module.apply({"params": small}, ids)


def test_input_axes_of_a_transformer(params):
    module, ids = Transformer(), helpers.ids()
    expected = {path: 2 if "out" in path else 1 for path in weights_of(params)}
    assert lpjax.flax.input_axes(module, {"params": params}, ids) == expected
    # Without any arrays; from frozen params; if some are factored already.
    shapes = jax.eval_shape(module.init, jax.random.key(0), ids)
    assert lpjax.flax.input_axes(module, shapes, jax.ShapeDtypeStruct(ids.shape, ids.dtype)) == expected
    assert lpjax.flax.input_axes(module, {"params": freeze(params)}, ids) == expected
    # A pair is a matrix already: its one input axis stands for both.
    small = compressed(module, params, ids, select=r"(value|out)/kernel$")
    again = lpjax.flax.input_axes(module, {"params": small}, ids)
    assert again == dict.fromkeys(expected, 1)
    both = lpjax.compress(small, select=".*kernel$", keep=0.7, solver=helpers.first_columns, input_axes=again)
    assert sum("is no smaller than the present one" in record.note for record in both.records) == 2
    # A weight counts only if its own layer reads it: the head's own apply has a kernel, too.
    tied = Transformer("variables")
    assert lpjax.flax.input_axes(tied, {"params": params}, ids) == expected


def test_frozen_params_are_compressed_like_others(params):
    small = compressed(Transformer(), freeze(params), helpers.ids())
    assert isinstance(small["blocks_0"]["attention"]["out"]["kernel"], LowRank)
    assert type(small) is type(freeze({}))


class Trained(nn.Module):
    """Arguments that are not arrays, several collections, random numbers, and a method that does not call all."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, scale: float = 1.0) -> jax.Array:
        x = nn.Dense(5, name="used")(x)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return scale * (nn.Dense(3, name="in_training")(x) if train else x[..., :3])


def test_arguments_of_apply_are_those_of_the_module():
    module, x = Trained(), normal((4, 7))
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables: dict[str, Any] = dict(module.init(keys, x, train=True))
    dropout: dict[str, Any] = {"dropout": keys["dropout"]}
    axes = lpjax.flax.input_axes(module, variables, x, train=True, rngs=dropout, mutable=["batch_stats"])
    assert axes == {"used/kernel": 1, "in_training/kernel": 1}
    assert lpjax.flax.input_axes(module, variables, x, train=False, method="__call__") == {"used/kernel": 1}
    small = lpjax.compress(variables["params"], select="kernel", rank=1, solver=helpers.first_columns).params
    shapes = variables["params"]
    for scale in (1.0, 2.5):
        options: dict[str, Any] = {"train": True, "scale": scale, "rngs": dropout, "mutable": ["batch_stats"]}
        out, state = lpjax.flax.apply(module, variables | {"params": small}, x, **options)
        expected, after = module.apply(variables | {"params": densified(small, shapes)}, x, **options)
        assert near(out, expected)
        assert near(state["batch_stats"]["norm"]["mean"], after["batch_stats"]["norm"]["mean"])


GENERAL: dict[str, tuple[dict[str, Any], tuple[int, ...], tuple[int, ...], Any]] = {
    # options, x, kernel, entry
    "last": ({"features": 11}, (2, 3, 7), (7, 11), 1),
    "to several": ({"features": (3, 5)}, (2, 7), (7, 3, 5), 1),
    "two": ({"features": 11, "axis": (-2, -1)}, (2, 3, 7), (3, 7, 11), 2),
    "apart": ({"features": (11, 2), "axis": (1, -1)}, (2, 3, 6, 7), (3, 7, 11, 2), 2),
    "unsorted": ({"features": 11, "axis": (-1, 1)}, (2, 3, 6, 7), (3, 7, 11), 2),
    "first": ({"features": 11, "axis": 0}, (7, 2), (7, 11), 1),
    "all": ({"features": 11, "axis": (0, 1)}, (3, 7), (3, 7, 11), 2),
    "batch": ({"features": 11, "batch_dims": (0,)}, (2, 6, 7), (2, 7, 11), (1, 1)),
    "batches": (
        {"features": (5, 2), "axis": (2, 3), "batch_dims": (0, 1)},
        (2, 4, 3, 7, 6),
        (2, 4, 3, 7, 5, 2),
        (2, 2),
    ),
}


@pytest.mark.parametrize("case", GENERAL)
def test_dense_general(case):
    options, shape, kernel, entry = GENERAL[case]
    module, x = nn.DenseGeneral(**options), jnp.asarray(normal(shape))
    params = helpers.drawn(module, x)
    assert params["kernel"].shape == kernel
    assert lpjax.flax.input_axes(module, {"params": params}, x) == {"kernel": entry}
    small = compressed(module, params, x, keep=None, rank=2)
    assert isinstance(small["kernel"], LowRank)
    run = functools.partial(lpjax.flax.apply, module)
    outputs = jax.jit(run)({"params": small}, x)
    assert near(outputs, module.apply({"params": densified(small, params)}, x))
    assert not helpers.forms(run, kernel, {"params": small}, x)
    assert not helpers.forms(run, small["kernel"].shape, {"params": small}, x)


def test_batch_dims_that_are_not_in_front():
    module = nn.DenseGeneral(5, batch_dims=(1,))
    with pytest.raises(ValueError, match=r"`batch_dims` are \(1,\)"):
        lpjax.flax.apply(module, {"params": {"kernel": pair(7, 5), "bias": jnp.zeros(5)}}, normal((2, 3, 7)))


class Calls:
    """A `dot_general` that tells how it was called."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def __call__(self, x: Any, y: Any, dimensions: Any, precision: Any = None) -> Any:
        self.seen.append((x.dtype, y.dtype, y.shape, precision))
        return jax.lax.dot_general(x, y, dimensions, precision=precision)


@pytest.mark.parametrize("kind", [nn.Dense, nn.DenseGeneral])
def test_options_of_dense_layers(kind, promoting):
    weight, bias = pair(7, 5), jnp.asarray(normal((5,)))
    params = {"kernel": weight, "bias": bias}
    dense = {"kernel": lpjax.densify(weight), "bias": bias}
    x = jnp.asarray(normal((4, 7)))
    without = lpjax.flax.apply(kind(5, use_bias=False), {"params": {"kernel": weight}}, x)
    assert near(without, x @ dense["kernel"])
    half = jnp.bfloat16
    cases = [({"dtype": half}, x), ({"param_dtype": half}, x), ({}, x.astype(half)), ({}, np.asarray(x))]
    for options, inputs in cases:
        module: Any = kind(5, **options)
        out, expected = lpjax.flax.apply(module, {"params": params}, inputs), module.apply({"params": dense}, inputs)
        assert out.dtype == expected.dtype
        assert near(out, expected, 2**-6 if out.dtype == half else 1e-5)
    # Both products get the layer's precision, in its dtype, by its own function.
    calls = Calls()
    for options in ({"dot_general": calls}, {"dot_general_cls": lambda: calls}):
        lpjax.flax.apply(kind(5, precision="highest", dtype=half, **options), {"params": params}, x)
        assert calls.seen == [(half, half, (7, 3), "highest"), (half, half, (3, 5), "highest")]
        calls.seen.clear()

    def promote(x: Any, kernel: Any, bias: Any, *, dtype: Any) -> Any:
        assert dtype is None
        return x.astype(half), kernel.astype(half), bias.astype(half)

    assert lpjax.flax.apply(kind(5, promote_dtype=promote), {"params": params}, x).dtype == half
    # Factors that have not one dtype, and NumPy's.
    mixed = LowRank(np.asarray(weight.left), weight.right.astype(half))
    out = lpjax.flax.apply(kind(5), {"params": params | {"kernel": mixed}}, x)
    assert out.dtype == jnp.float32


def test_an_embedding_looks_up_as_ever(promoting):
    weight = pair(11, 5)
    module: Any = nn.Embed(11, 5)
    params, dense = {"embedding": weight}, {"embedding": lpjax.densify(weight)}
    for ids in ([[0, 10, 3], [3, -1, -11]], [11, 2, 1000, -12], 4, []):
        ids = jnp.asarray(ids, jnp.int32)
        output, expected = lpjax.flax.apply(module, {"params": params}, ids), module.apply({"params": dense}, ids)
        assert output.shape == expected.shape
        assert np.array_equal(np.isnan(output), np.isnan(expected))
        assert np.allclose(output, expected, atol=1e-5, equal_nan=True)
    run = functools.partial(lpjax.flax.apply, module)
    assert not helpers.forms(run, (11, 5), {"params": params}, jnp.asarray([1, 2]))
    query = jnp.asarray(normal((2, 3, 5)))
    attend = functools.partial(run, method="attend")
    assert near(attend({"params": params}, query), module.apply({"params": dense}, query, method="attend"))
    assert not helpers.forms(attend, (11, 5), {"params": params}, query)
    with pytest.raises(ValueError, match="dtype float32; expected integers"):
        run({"params": params}, query)
    half = nn.Embed(11, 5, dtype=jnp.bfloat16)
    assert lpjax.flax.apply(half, {"params": params}, jnp.asarray([1])).dtype == jnp.bfloat16
    assert lpjax.flax.apply(half, {"params": params}, query, method="attend").dtype == jnp.bfloat16
    # flax broadcasts a table of one row, whatever the ids are.
    single_row = {"embedding": pair(1, 5)}
    output = lpjax.flax.apply(nn.Embed(1, 5), {"params": single_row}, jnp.asarray([0, 7]))
    assert near(output, np.repeat(lpjax.densify(single_row["embedding"]), 2, axis=0))


class Body(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return Block(name="block")(x), None


class Scanned(nn.Module):
    """Three blocks in a loop, as large models have them; their params along `axis`."""

    axis: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        loop = nn.scan(nn.remat(Body), {"params": self.axis}, split_rngs={"params": True}, length=HEADS)
        return loop(name="layers")(x, None)[0]


def test_scanned_and_rematerialised_layers():
    module, x = Scanned(), jnp.asarray(normal((BATCH, LENGTH, HIDDEN)))
    params = helpers.drawn(module, x)
    axes = lpjax.flax.input_axes(module, {"params": params}, x)
    names = {path.removeprefix("layers/block/"): entry for path, entry in axes.items()}
    attention = {f"attention/{name}/kernel": (1, 2 if name == "out" else 1) for name in WEIGHTS}
    assert names == attention | {"up/kernel": (1, 1), "down/kernel": (1, 1)}
    small = compressed(module, params, x)
    out = small["layers"]["block"]["attention"]["out"]["kernel"]
    assert out.shape == (HEADS, HEADS * HEAD, HIDDEN)
    assert lpjax.flax.input_axes(module, {"params": small}, x) == dict.fromkeys(axes, (1, 1))
    run = functools.partial(lpjax.flax.apply, module)

    def loss(run: Any, params: Any) -> Any:
        return jnp.sum(run({"params": params}, x) ** 2)

    dense = densified(small, params)
    value, gradient = jax.jit(jax.value_and_grad(functools.partial(loss, run)))(small)
    expected, whole = jax.jit(jax.value_and_grad(functools.partial(loss, module.apply)))(dense)
    assert near(value, expected)
    for path in axes:
        factored, weight, full = (dict(leaves_with_paths(tree))[path] for tree in (gradient, small, whole))
        chained = helpers.by_the_chain_rule(weight, full)
        assert near(factored.left, chained.left)
        assert near(factored.right, chained.right)
    shapes = {*helpers.shapes_in(jax.make_jaxpr(jax.grad(functools.partial(loss, run)))(small))}
    assert (HEADS, HIDDEN, 5) in shapes  # gradients of left factors
    every = [shape for shape in DENSE if shape[0] != VOCAB]
    assert not shapes & {*every, *((HEADS, *shape) for shape in every)}


@pytest.mark.parametrize("axis", [1, -1])
def test_stacks_along_other_axes_are_left_out(axis):
    """There are as many layers as heads: for `out`, (heads, heads, …) tells nothing, and flax's own notes all."""
    module, x = Scanned(axis), jnp.asarray(normal((BATCH, LENGTH, HIDDEN)))
    params = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    assert lpjax.flax.input_axes(module, {"params": params}, x) == {}
    with pytest.raises(ValueError, match="not floating matrices: layers/block/attention/out/kernel"):
        compressed(module, params, x, select="out/kernel")


class Experts(nn.Module):
    """Lifted layers by themselves: nn.vmap of an nn.Dense, of nn.DenseGeneral with batches, and of an nn.Embed."""

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        lift = functools.partial(nn.vmap, variable_axes={"params": 0}, split_rngs={"params": True}, axis_size=2)
        x = lift(nn.Embed, in_axes=None)(11, 7, name="tables")(ids)  # (experts, batch, length, 7)
        x = lift(nn.Dense)(5, name="dense")(x)
        x = lift(nn.DenseGeneral)((3, 2), batch_dims=(0,), name="batched")(x)
        return nn.jit(nn.Dense)(3, name="jitted")(x)


def test_lifted_layers():
    module, ids = Experts(), jnp.asarray([[1, 10, 4], [0, 3, 3]])
    params = helpers.drawn(module, ids)
    axes = lpjax.flax.input_axes(module, {"params": params}, ids)
    expected = {"tables/embedding": (1, 1), "dense/kernel": (1, 1), "batched/kernel": (2, 1), "jitted/kernel": 1}
    assert axes == expected
    small = compressed(module, params, ids, keep=None, rank=1)
    assert [leaf.shape for leaf in weights_of(small).values()] == [(2, 2, 5, 6), (2, 7, 5), (2, 3), (2, 11, 7)]
    outputs = jax.jit(functools.partial(lpjax.flax.apply, module))({"params": small}, ids)
    assert near(outputs, jax.jit(module.apply)({"params": densified(small, params)}, ids))


class Boxed(nn.Module):
    """Params in flax's boxes, as sharded models have them."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.with_partitioning(nn.initializers.lecun_normal(), ("model", None))
        return nn.Dense(5, kernel_init=init, name="dense")(x)


def test_boxed_params():
    module, x = Boxed(), jnp.asarray(normal((4, 7)))
    params = module.init(jax.random.key(0), x)["params"]
    assert isinstance(params["dense"]["kernel"], nn.Partitioned)
    assert lpjax.flax.input_axes(module, {"params": params}, x) == {"dense/kernel/value": 1}
    plain = nn.meta.unbox(params)
    boxed = compressed(module, params, x, select="kernel/value", keep=None, rank=2)
    small = compressed(module, plain, x, keep=None, rank=2)
    assert isinstance(boxed["dense"]["kernel"].value, LowRank)
    expected = module.apply({"params": densified(small, plain)}, x)
    for tree in (small, boxed):
        assert near(lpjax.flax.apply(module, {"params": tree}, x), expected)


class Adapted(nn.Module):
    """A layer whose params lie in its owner's scope."""

    base: nn.Module

    def setup(self) -> None:
        nn.share_scope(self, self.base)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.base(x) + self.param("shift", nn.initializers.ones, (5,))[None]


class Doubled(nn.Dense):
    """A layer that goes on to what it inherits."""

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return 2 * super().__call__(inputs)


@pytest.mark.parametrize("module", [Adapted(nn.Dense(5)), Doubled(5)], ids=["shared scope", "inherited"])
def test_layers_within_other_layers(module):
    x = jnp.asarray(normal((4, 7)))
    params = module.init(jax.random.key(0), x)["params"]
    assert lpjax.flax.input_axes(module, {"params": params}, x) == {"kernel": 1}
    small = compressed(module, params, x, keep=None, rank=2)
    assert near(lpjax.flax.apply(module, {"params": small}, x), module.apply({"params": densified(small, params)}, x))


class Own(nn.Module):
    """Params that are the module's own."""

    where: str

    def setup(self) -> None:
        if self.where == "setup":
            self.table = self.param("table", nn.initializers.ones, (7, 5))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.table


class Overriding(nn.Dense):
    """No nn.Dense but in name."""

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        return inputs @ self.param("kernel", nn.initializers.ones, (7, 5))


class Convolved(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Conv(5, (3,), name="inner")(nn.LayerNorm(name="norm")(x[None]))[0]


class Outer(nn.Module):
    inner: nn.Module

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.inner(x)


REFUSED: list[tuple[nn.Module, dict[str, Any], str]] = [
    (Outer(Own("setup")), {"inner": {"table": pair(7, 5)}}, "inner/table is a LowRank, but belongs to Own"),
    (Outer(Overriding(5)), {"inner": {"kernel": pair(7, 5)}}, "inner/kernel is a LowRank, but belongs to Overriding"),
    (
        Outer(nn.Einsum((7, 5), "ab,bc->ac")),
        {"inner": {"kernel": pair(7, 5)}},
        "inner/kernel is a LowRank, but belongs to Einsum",
    ),
    (
        Outer(Convolved()),
        {"inner": {"norm": {"scale": jnp.ones(7), "bias": jnp.ones(7)}, "inner": {"kernel": pair(21, 5)}}},
        "inner/inner/kernel is a LowRank, but belongs to Conv; only nn.Dense",
    ),
    (
        Outer(nn.Dense(5)),
        {"inner": {"kernel": pair(6, 5)}},
        "inner/kernel is a LowRank of shape (6, 5); expected (7, 5), inputs by outputs of this Dense",
    ),
    (Outer(nn.DenseGeneral((5, 2))), {"inner": {"kernel": pair(7, 5)}}, "shape (7, 5); expected (7, 10)"),
]


@pytest.mark.parametrize(("module", "params", "words"), REFUSED, ids=[words[:30] for *_, words in REFUSED])
def test_pairs_where_none_can_be_run_are_named(module, params, words):
    with pytest.raises(ValueError, match="LowRank") as caught:
        lpjax.flax.apply(module, {"params": params}, jnp.asarray(normal((4, 7))))
    assert words in str(caught.value)


class Decoder(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, table: jax.Array) -> jax.Array:
        return jax.lax.dot(x, table)


class HandsOn(nn.Module):
    def setup(self) -> None:
        self.table = nn.Embed(11, 7)
        self.decoder = Decoder()

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.decoder(x, table=self.table.embedding.T)


def test_a_module_that_computes_with_a_pair_by_itself_is_named():
    x, params = jnp.asarray(normal((4, 7))), {"table": {"embedding": pair(11, 7)}}
    with pytest.raises(ValueError, match="decoder, a Decoder, was handed a LowRank that it could not use"):
        lpjax.flax.apply(HandsOn(), {"params": params}, x)
    with pytest.raises((TypeError, ValueError)) as caught:  # where no pair had a part
        lpjax.flax.apply(Decoder(), {}, x, "table")
    assert "LowRank" not in str(caught.value)


def test_a_table_of_another_shape_is_named():
    with pytest.raises(ValueError, match=r"embedding is a LowRank of shape \(6, 5\); expected \(11, 5\)"):
        lpjax.flax.apply(nn.Embed(11, 5), {"params": {"embedding": pair(6, 5)}}, jnp.asarray([1]))


def test_other_errors_are_flax_s_own():
    wrong = {"params": {"kernel": jnp.zeros((6, 5)), "bias": jnp.zeros(5)}}
    with pytest.raises(flax.errors.ScopeParamShapeError):
        lpjax.flax.apply(nn.Dense(5), wrong, normal((4, 7)))
    with pytest.raises(flax.errors.CallCompactUnboundModuleError), lpjax.flax.factored():
        nn.Dense(5)(normal((4, 7)))
