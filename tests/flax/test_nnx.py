"""NNX models converted in place: the numbers of the dense ones, by programs that never form a dense weight."""

from __future__ import annotations

import collections
from typing import Any

import flax.nnx as nnx
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lpjax
import lpjax.flax
from lpjax import LowRank
from lpjax.flax import FactoredEmbed, FactoredLinear, compress_nnx
from tests.flax import helpers
from tests.flax.helpers import BATCH, HEAD, HEADS, HIDDEN, LENGTH, VOCAB, WIDE, NNXTransformer, near, normal
from tests.helpers.trees import NeverRun

QUERY, OUT = (HIDDEN, HEADS, HEAD), (HEADS, HEAD, HIDDEN)
DENSE = [(HIDDEN, HEADS * HEAD), (HEADS * HEAD, HIDDEN), QUERY, OUT, (HIDDEN, WIDE), (WIDE, HIDDEN), (VOCAB, HIDDEN)]
CHEAP: dict[str, Any] = {"keep": 0.7, "solver": helpers.first_columns}


def compressed(model: nnx.Module, select: Any = r"(kernel|embedding)$", **options: Any) -> Any:
    """A factored copy; `rank` takes the place of the share to keep."""
    copy = nnx.clone(model)
    settings = CHEAP | ({"keep": None} if "rank" in options else {}) | options
    compress_nnx(copy, select=select, **settings)
    return copy


def layers(model: nnx.Module) -> dict[str, Any]:
    """Every factored layer by its path."""
    nodes = {"/".join(map(str, path)): node for path, node in nnx.iter_graph(model)}
    return {path: node for path, node in nodes.items() if isinstance(node, FactoredLinear | FactoredEmbed)}


def densified(small: nnx.Module, model: nnx.Module) -> Any:
    """The dense model, with each weight set to the product of its factors in double precision."""
    dense: Any = nnx.clone(model)
    originals = {"/".join(map(str, path)): node for path, node in nnx.iter_graph(dense)}
    for path, layer in layers(small).items():
        left, right = (np.asarray(x[...], np.float64) for x in (layer.left, layer.right))
        original = originals[path]
        weight = original.embedding if isinstance(original, nnx.Embed) else original.kernel
        weight[...] = jnp.asarray((left @ right).reshape(weight[...].shape), weight[...].dtype)
    return dense


def values(state: Any) -> dict[str, Any]:
    return {"/".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}


@pytest.fixture(scope="module")
def model() -> NNXTransformer:
    return NNXTransformer(nnx.Rngs(0))


def test_a_transformer_is_converted_in_place(model):
    small = nnx.clone(model)
    block, attention = small.blocks[0], small.blocks[0].attention
    records = compress_nnx(small, select=r"(kernel|embedding)$", keep=0.7, solver="svd", p=2.0)
    assert small.blocks[0] is block
    assert block.attention is attention
    shapes = {record.path: record.shape for record in records}
    prefix = "blocks/0/attention/"
    expected = {f"{prefix}{name}/kernel": QUERY for name in ("query", "key", "value")} | {f"{prefix}out/kernel": OUT}
    assert shapes == expected | {
        "blocks/0/up/kernel": (HIDDEN, WIDE),
        "blocks/0/down/kernel": (WIDE, HIDDEN),
        "tokens/embedding": (VOCAB, HIDDEN),
    }
    assert all(record.rank and record.stored_size < 0.7 * record.dense_size for record in records)
    assert sorted(layers(small)) == sorted(path.rpartition("/")[0] for path in shapes)
    assert isinstance(attention.query, FactoredLinear)
    assert isinstance(small.tokens, FactoredEmbed)
    assert (attention.out.left[...].shape, attention.out.right[...].shape) == ((HEADS * HEAD, 5), (5, HIDDEN))

    ids, dense = helpers.ids(), densified(small, model)
    logits, expected_logits = nnx.jit(lambda model, ids: model(ids))(small, ids), dense(ids)
    assert near(logits, expected_logits)
    assert not near(logits, model(ids), 1e-2)

    def loss(model: Any, ids: jax.Array) -> Any:
        return jnp.sum(jnp.sin(model(ids)))

    factored_gradients, whole = (values(nnx.jit(nnx.grad(loss))(x, ids)) for x in (small, dense))
    for path, gradient in whole.items():
        layer = layers(small).get(path.rpartition("/")[0])
        if layer is not None and path in shapes:
            pair = LowRank(layer.left[...], layer.right[...])
            chained, place = helpers.by_the_chain_rule(pair, gradient), path.rpartition("/")[0]
            assert near(factored_gradients[f"{place}/left"], chained.left), path
            assert near(factored_gradients[f"{place}/right"], chained.right), path
        else:
            # A bias of keys shifts all scores alike: its gradient is rounding.
            assert near(factored_gradients[path], gradient) or np.abs(gradient).max() < 1e-5, path

    graph, state = nnx.split(small)
    for function in (lambda model: model(ids), lambda model: nnx.grad(loss)(model, ids)):
        program = jax.make_jaxpr(lambda state, function=function: function(nnx.merge(graph, state)))(state)
        found_shapes = {*helpers.shapes_in(program)}
        assert (BATCH, LENGTH, VOCAB) in found_shapes
        assert not found_shapes & {*DENSE, *(shape[::-1] for shape in DENSE)}


def test_paths_are_those_of_nnx_state(model):
    for each in (model, Nested(nnx.Rngs(0))):
        seen: list[str] = []

        def choose(path: str, leaf: Any, seen: list[str] = seen) -> bool:
            seen.append(path)
            return False

        with pytest.raises(ValueError, match="matches no leaf"):
            compress_nnx(each, select=choose, **CHEAP)
        assert seen == list(values(nnx.state(each, nnx.Param)))


def test_what_is_not_chosen_is_as_it_was(model):
    small = compressed(model, "attention/(query|out)/kernel")
    before, after = values(nnx.state(model)), values(nnx.state(small))
    assert sorted(layers(small)) == ["blocks/0/attention/out", "blocks/0/attention/query"]
    for path, value in before.items():
        if "query/kernel" not in path and "out/kernel" not in path:
            assert np.array_equal(after[path], value)
    # A pair that would be no smaller leaves its layer alone.
    records = compress_nnx(copy := nnx.clone(model), select="embedding$", rank=HIDDEN, solver=helpers.first_columns)
    assert "no fewer" in records[0].note
    assert isinstance(copy.tokens, nnx.Embed)
    # More may be factored later; factors go by the name of the weight that they stand for.
    again = compressed(small, "embedding$")
    assert sorted(layers(again)) == ["blocks/0/attention/out", "blocks/0/attention/query", "tokens"]
    with pytest.raises(ValueError, match=r"matches no leaf; nearest: .*query/kernel"):
        compressed(small, "query/left")


def test_state_goes_round(model):
    """Split and merged, cloned, and restored into a fresh model that was converted the same way."""
    small, ids = compressed(model), helpers.ids()
    expected = small(ids)
    graph, params, rest = nnx.split(small, nnx.Param, ...)
    assert len(values(rest)) == 0
    assert np.array_equal(nnx.merge(graph, params, rest)(ids), expected)
    saved = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(small)))
    restored = compressed(NNXTransformer(nnx.Rngs(1)))
    assert nnx.graphdef(restored) == graph
    assert not near(restored(ids), expected)
    nnx.update(restored, saved)
    assert np.array_equal(restored(ids), expected)
    # One compilation serves both, and a step of training changes the factors.
    runs = []

    @nnx.jit
    def step(model: Any, ids: jax.Array) -> None:
        runs.append(1)
        gradient = nnx.grad(lambda model: jnp.mean(model(ids) ** 2))(model)
        nnx.update(model, jax.tree.map(lambda x, g: x - 0.1 * g, nnx.state(model, nnx.Param), gradient))

    for each in (small, restored):
        step(each, ids)
    assert len(runs) == 1
    assert np.mean(small(ids) ** 2) < np.mean(expected**2)
    assert np.array_equal(small(ids), restored(ids))


GENERAL: dict[str, tuple[Any, dict[str, Any], tuple[int, ...]]] = {
    # features, options, x
    "last": ((7, 11), {}, (2, 3, 7)),
    "to several": ((7, (3, 5)), {"use_bias": False}, (2, 7)),
    "two": (((3, 7), 11), {"axis": (-2, -1)}, (2, 3, 7)),
    "apart": (((3, 7), (11, 2)), {"axis": (1, -1)}, (2, 3, 6, 7)),
    "first": ((7, 11), {"axis": 0}, (7, 2)),
    "batch": ((7, 11), {"batch_axis": {0: 2}}, (2, 6, 7)),
}


class Holder(nnx.Module):
    def __init__(self, layer: Any):
        self.layer = layer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer(*args, **kwargs)


@pytest.mark.parametrize("case", GENERAL)
def test_linear_general(case):
    features, options, shape = GENERAL[case]
    layer = nnx.LinearGeneral(*features, **options, bias_init=nnx.initializers.normal(), rngs=nnx.Rngs(0))
    model, x = Holder(layer), jnp.asarray(normal(shape))
    small = compressed(model, rank=2)
    assert isinstance(small.layer, FactoredLinear)
    assert near(small(x), densified(small, model)(x))
    graph, state = nnx.split(small)
    assert not helpers.forms(lambda state: nnx.merge(graph, state)(x), layer.kernel[...].shape, state)
    assert not helpers.forms(lambda state: nnx.merge(graph, state)(x), small.layer.kernel.shape, state)


class Calls:
    """A `dot_general` that tells how it was called."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def __call__(self, x: Any, y: Any, dimensions: Any, precision: Any = None, **others: Any) -> Any:
        self.seen.append((x.dtype, y.dtype, precision, {name: x for name, x in others.items() if x is not None}))
        return jax.lax.dot_general(x, y, dimensions, precision=precision, **others)


@pytest.mark.parametrize("kind", [nnx.Linear, nnx.LinearGeneral])
def test_options_of_linear_layers(kind, promoting):
    x, half = jnp.asarray(normal((4, 7))), jnp.bfloat16
    for options in ({"dtype": half}, {"param_dtype": half}, {"dtype": half, "preferred_element_type": jnp.float32}):
        model = Holder(kind(7, 5, rngs=nnx.Rngs(0), **options))
        small = compressed(model, rank=2)
        assert small.layer.left[...].dtype == model.layer.kernel[...].dtype
        out, expected = small(x), densified(small, model)(x)
        assert out.dtype == expected.dtype
        assert near(out, expected, 2**-6)
    calls = Calls()
    small = compressed(Holder(kind(7, 5, rngs=nnx.Rngs(0), dot_general=calls, precision="highest", dtype=half)), rank=2)
    small(x)
    assert calls.seen == [(half, half, "highest", {}), (half, half, "highest", {})]
    for name in ("in_features", "out_features", "use_bias", "dtype", "param_dtype", "precision"):
        assert getattr(small.layer, name) == getattr(
            kind(7, 5, rngs=nnx.Rngs(0), precision="highest", dtype=half), name
        )

    def promote(arrays: Any, *, dtype: Any) -> Any:
        assert len(arrays) == 3
        return tuple(x.astype(half) for x in arrays)

    small = compressed(Holder(kind(7, 5, rngs=nnx.Rngs(0), promote_dtype=promote)), rank=2)
    assert small(x).dtype == half


def test_an_embedding_looks_up_as_ever(promoting):
    model = Holder(nnx.Embed(11, 5, rngs=nnx.Rngs(0)))
    small = compressed(model, rank=2)
    dense = densified(small, model)
    for ids in ([[0, 10, 3], [3, -1, -11]], [11, 2, 1000, -12], 4, []):
        ids = jnp.asarray(ids, jnp.int32)
        output, expected = small(ids), dense(ids)
        assert output.shape == expected.shape
        assert np.array_equal(np.isnan(output), np.isnan(expected))
        assert np.allclose(output, expected, atol=1e-5, equal_nan=True)
    query = jnp.asarray(normal((2, 3, 5)))
    assert near(small.layer.attend(query), dense.layer.attend(query))
    assert near(query @ small.layer.embedding.T, dense.layer.attend(query))
    with pytest.raises(ValueError, match="dtype float32; expected integers"):
        small(query)
    half = compressed(Holder(nnx.Embed(11, 5, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))), rank=2)
    assert half(jnp.asarray([1])).dtype == half.layer.attend(query).dtype == jnp.bfloat16


Pair = collections.namedtuple("Pair", ["first", "second"])


class Nested(nnx.Module):
    """Layers in every container there is, one of them in three places, and two that share a kernel."""

    def __init__(self, rngs: nnx.Rngs):
        make = lambda: nnx.Linear(6, 6, rngs=rngs)  # noqa: E731
        self.shared = make()
        self.items = nnx.List([make(), nnx.relu, self.shared])
        self.named = nnx.Dict(a=make(), b=Holder(make()))
        self.plain = nnx.data([make(), {"x": make(), "y": (make(), Pair(make(), self.shared))}])
        self.row = nnx.Sequential(make(), nnx.relu, make())
        self.twin = make()
        self.twin.kernel = self.shared.kernel

    def __call__(self, x: jax.Array) -> jax.Array:
        inner: Any = self.plain[1]
        several = [self.shared, *self.items, self.named["a"], self.named["b"], self.plain[0], inner["x"], inner["y"][0]]
        for layer in [*several, *inner["y"][1], self.row, self.twin]:
            x = layer(x)
        return x


def test_layers_are_found_wherever_they_are():
    model, x = Nested(nnx.Rngs(0)), jnp.asarray(normal((3, 6)))
    small: Any = nnx.clone(model)
    records = compress_nnx(small, select="kernel$", rank=2, solver=helpers.first_columns)
    paths = ["items/0", "items/2", "named/a", "named/b/layer", "plain/0", "plain/1/x", "plain/1/y/0"]
    paths += ["plain/1/y/1/first", "row/layers/0", "row/layers/2"]
    assert [record.path.removesuffix("/kernel") for record in records] == paths
    assert not [path for path, node in nnx.iter_graph(small) if isinstance(node, nnx.Linear)]
    inner: Any = small.plain[1]
    assert isinstance(inner["y"][1], Pair)
    assert small.shared is small.items[2] is inner["y"][1].second
    assert small.twin is not small.shared
    assert small.twin.left is small.shared.left
    assert small.twin.bias is not small.shared.bias
    assert near(small(x), densified(small, model)(x))
    graph, state = nnx.split(small)
    assert np.array_equal(nnx.merge(graph, state)(x), small(x))


def test_stacked_layers():
    """What nnx.vmap makes, and nnx.scan runs."""

    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def make(rngs: nnx.Rngs) -> nnx.Module:
        return nnx.Sequential(nnx.Linear(7, 11, rngs=rngs), nnx.relu, nnx.LinearGeneral(11, (7,), rngs=rngs))

    @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    def run(model: Any, x: jax.Array) -> jax.Array:
        return model(x)

    model, x = Holder(make(nnx.Rngs(0))), jnp.asarray(normal((4, 7)))
    small = nnx.clone(model)
    records = compress_nnx(small, select="kernel$", **CHEAP)
    assert [record.shape for record in records] == [(3, 7, 11), (3, 11, 7)]
    assert small.layer.layers[0].kernel.shape == (3, 7, 11)
    assert near(run(small.layer, x), run(densified(small, model).layer, x))


class Inherited(nnx.Linear):
    """May do anything in its own way."""


@flax.struct.dataclass
class Frozen:
    layer: Any


def test_what_cannot_be_factored_is_named_and_nothing_changed():
    rngs = nnx.Rngs(0)

    class Model(nnx.Module):
        def __init__(self):
            self.fine = nnx.Linear(6, 6, rngs=rngs)
            self.heads = nnx.LinearGeneral(6, (3, 2), rngs=rngs)
            self.conv = nnx.Conv(6, 6, (3,), rngs=rngs)
            self.own = nnx.Param(jnp.ones((6, 6)))
            self.inherited = Inherited(6, 6, rngs=rngs)
            self.frozen = nnx.data(Frozen(nnx.Linear(6, 6, rngs=rngs)))
            self.outer = Holder(nnx.Linear(6, 6, rngs=rngs))
            self.lent = self.outer.layer.kernel
            self.odd = nnx.Linear(6, 5, rngs=rngs)
            self.odd.kernel = nnx.Param(jnp.ones((5, 6)))
            self.grid = nnx.Embed(6, 6, rngs=rngs)
            self.grid.embedding = nnx.Param(jnp.ones((2, 6, 6)))
            self.again = nnx.Linear(6, 6, rngs=rngs)
            self.again.kernel = self.grid.embedding

    cases = {
        "own$": "own (own of Model)",
        "heads/bias": "heads/bias (bias of LinearGeneral)",
        "inherited/kernel": "inherited/kernel (kernel of Inherited)",
        "frozen/layer/kernel": "frozen/layer/kernel (its layer is the model itself, or in a container",
        "lent": "lent (lent of Model)",
        "odd/kernel": "odd/kernel (its shape (5, 6) is not what its layers' features say)",
        "conv/kernel": "not floating matrices: conv/kernel (float32[3, 6, 6])",
        "bias": "conv/bias (float32[6])",
        "nothing": "matches no leaf",
    }
    model, stub = Model(), NeverRun()
    kernel = model.fine.kernel
    for pattern, words in cases.items():
        with pytest.raises(ValueError, match="`select`") as caught:
            compress_nnx(model, select=[pattern, "fine/kernel"], rank=2, solver=stub)
        assert words in str(caught.value)
    with pytest.raises(ValueError, match=r"kernel \(its layer is the model itself"):
        compress_nnx(model.fine, select="kernel", rank=2, solver=stub)
    model.heads.kernel[...] = model.heads.kernel[...] * jnp.nan
    with pytest.raises(ValueError, match="holds NaN"):
        compress_nnx(model, select="(fine|heads)/kernel", rank=2, solver=stub)
    with pytest.raises(ValueError, match="`input_axes` is not for NNX models"):
        compress_nnx(model, select="fine/kernel", rank=2, input_axes={})
    with pytest.raises(ValueError, match="expected exactly one of them"):
        compress_nnx(model, select="fine/kernel")
    jax.effects_barrier()
    assert stub.runs == 0
    assert isinstance(model.fine, nnx.Linear)
    assert model.fine.kernel is kernel
    # Layers that see one parameter alike share its factors, whatever they are.
    small = compressed(model, "again/kernel", rank=2)
    assert isinstance(small.grid, FactoredEmbed)
    assert isinstance(small.again, FactoredLinear)
    assert small.grid.left is small.again.left
    assert small.grid.embedding.shape == (2, 6, 6)


class Special(nnx.Param):
    """A type by which a user filters."""


def test_the_type_of_a_parameter_is_kept():
    model = Holder(nnx.Linear(7, 5, rngs=nnx.Rngs(0)))
    model.layer.kernel = Special(model.layer.kernel[...])
    small = compressed(model, rank=2)
    assert type(small.layer.left) is type(small.layer.right) is Special
    assert sorted(values(nnx.state(small, Special))) == ["layer/left", "layer/right"]


def test_options_of_compress_reach_it(model):
    calls: list[Any] = []
    weights = {"tokens/embedding": np.arange(1.0, VOCAB + 1)}
    records = compress_nnx(
        nnx.clone(model),
        select="embeddings",
        rank=3,
        solver="svd",
        row_weights=weights,
        progress=lambda *x: calls.append(x),
    )
    assert calls == [(1, 1, records[0])]
    table = np.asarray(model.tokens.embedding[...])
    plain = lpjax.compress({"embedding": table}, select=".", rank=3, solver="svd").records[0]
    assert records[0].error_entries > plain.error_entries


def test_a_converted_model_gets_smaller():
    """As its dense products would, cut off by the SVD; layers that share factors share the smaller ones."""
    model: Any = nnx.List([nnx.Linear(18, 14, rngs=nnx.Rngs(0)), nnx.Embed(21, 12, rngs=nnx.Rngs(1))])
    model.append(nnx.Linear(18, 14, rngs=nnx.Rngs(2)))
    model[2].kernel = model[0].kernel
    compress_nnx(model, select="kernel$|embedding$", keep=0.8, solver="svd")
    wide = [np.asarray(lpjax.densify(pair)) for pair in (model[0].kernel, model[1].embedding)]
    records = compress_nnx(model, select="kernel$|embedding$", keep=0.4, solver="svd")
    assert [record.path for record in records] == ["0/kernel", "1/embedding"]
    for pair, product in zip((model[0].kernel, model[1].embedding), wide, strict=True):
        u, s, v = np.linalg.svd(product, full_matrices=False)
        assert pair.rank == lpjax.rank_for(product.shape, 0.4)
        assert np.allclose(lpjax.densify(pair), (u[:, : pair.rank] * s[: pair.rank]) @ v[: pair.rank], atol=1e-5)
    assert model[2].left is model[0].left
    assert model[0](jnp.ones((3, 18))).shape == (3, 14)
    before = model[0].left
    (record, _) = compress_nnx(model, select="kernel$|embedding$", keep=0.4, solver="svd")
    assert "stays as it is" in record.note
    assert model[0].left is before
