"""Choosing leaves by path, and ranks by size."""

from __future__ import annotations

import functools
import re
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpjax import LowRank, rank_for, select_paths
from tests.helpers.goldens import load_golden

KERNEL = np.zeros((4, 4), np.float32)
VECTOR = np.zeros(4, np.float32)


def dense() -> dict[str, Any]:
    return {"kernel": KERNEL, "bias": VECTOR}


def norm() -> dict[str, Any]:
    return {"scale": VECTOR, "bias": VECTOR}


def bert() -> dict[str, Any]:
    """The names of `FlaxBertForSequenceClassification` (and, under "roberta", of RoBERTa)."""
    layer = {
        "attention": {
            "self": {"query": dense(), "key": dense(), "value": dense()},
            "output": {"dense": dense(), "LayerNorm": norm()},
        },
        "intermediate": {"dense": dense()},
        "output": {"dense": dense(), "LayerNorm": norm()},
    }
    embeddings = {
        "word_embeddings": {"embedding": KERNEL},
        "position_embeddings": {"embedding": KERNEL},
        "token_type_embeddings": {"embedding": KERNEL},
        "LayerNorm": norm(),
    }
    body = {"embeddings": embeddings, "encoder": {"layer": {"0": layer}}, "pooler": {"dense": dense()}}
    return {"bert": body, "classifier": dense()}


def distilbert() -> dict[str, Any]:
    """The names of `FlaxDistilBertForSequenceClassification`."""
    layer = {
        "attention": {"q_lin": dense(), "k_lin": dense(), "v_lin": dense(), "out_lin": dense()},
        "sa_layer_norm": norm(),
        "ffn": {"lin1": dense(), "lin2": dense()},
        "output_layer_norm": norm(),
    }
    embeddings = {
        "word_embeddings": {"embedding": KERNEL},
        "position_embeddings": {"embedding": KERNEL},
        "LayerNorm": norm(),
    }
    body = {"embeddings": embeddings, "transformer": {"layer": {"0": layer}}}
    return {"distilbert": body, "pre_classifier": dense(), "classifier": dense()}


def xlnet() -> dict[str, Any]:
    """XLNet's names for its parts, as flax would nest them; 3-D attention kernels are not matrices."""
    heads = np.zeros((4, 2, 2), np.float32)
    attention = {name: {"kernel": heads} for name in "qkvo"} | {"r": dense(), "seg_embed": heads}
    layer = {"rel_attn": attention | {"layer_norm": norm()}, "ff": {"layer_1": dense(), "layer_2": dense()}}
    return {
        "word_embedding": {"embedding": KERNEL},
        "mask_emb": np.zeros((1, 1, 4), np.float32),
        "layer": [layer],
    }


def others() -> dict[str, Any]:
    """T5, GPT-2 and linen's own names, and names that only look like feed-forward layers."""
    return {
        "shared": {"embedding": KERNEL},
        "wpe": {"embedding": KERNEL},
        "block": [{"SelfAttention": {"q": dense(), "relative_attention_bias": {"embedding": KERNEL}}}],
        "MlpBlock_0": {"Dense_0": dense()},
        "offset": dense(),
        "diffusion": dense(),
    }


def keras() -> dict[str, Any]:
    """The names of a keras-hub DistilBERT."""
    tables = {"token_embedding": {"embedding": KERNEL}, "position_embedding": {"embedding": KERNEL}}
    layer = {"self_attention_layer": {"query": dense()}, "feedforward_output_dense": dense()}
    return {"token_and_position_embedding": tables, "transformer_layer_0": layer}


BERT_LAYER = "bert/encoder/layer/0/"
DISTIL_LAYER = "distilbert/transformer/layer/0/"
GROUPS = {
    "bert": {
        "embeddings": ["bert/embeddings/word_embeddings/embedding"],
        "attention": [BERT_LAYER + f"attention/self/{x}/kernel" for x in ("query", "key", "value")]
        + [BERT_LAYER + "attention/output/dense/kernel"],
        "feed_forward": [BERT_LAYER + "intermediate/dense/kernel", BERT_LAYER + "output/dense/kernel"],
    },
    "distilbert": {
        "embeddings": ["distilbert/embeddings/word_embeddings/embedding"],
        "attention": [DISTIL_LAYER + f"attention/{x}_lin/kernel" for x in ("q", "k", "v", "out")],
        "feed_forward": [DISTIL_LAYER + f"ffn/lin{i}/kernel" for i in (1, 2)],
    },
    "xlnet": {
        "embeddings": ["word_embedding/embedding"],
        "attention": ["layer/0/rel_attn/r/kernel"],
        "feed_forward": ["layer/0/ff/layer_1/kernel", "layer/0/ff/layer_2/kernel"],
    },
    "others": {
        "embeddings": ["shared/embedding"],
        "attention": ["block/0/SelfAttention/q/kernel"],
        "feed_forward": ["MlpBlock_0/Dense_0/kernel"],
    },
    "keras": {
        "embeddings": ["token_and_position_embedding/token_embedding/embedding"],
        "attention": ["transformer_layer_0/self_attention_layer/query/kernel"],
        "feed_forward": ["transformer_layer_0/feedforward_output_dense/kernel"],
    },
}
TREES = {"bert": bert, "distilbert": distilbert, "xlnet": xlnet, "others": others, "keras": keras}


@pytest.mark.parametrize("name", GROUPS)
def test_groups(name):
    params = TREES[name]()
    for group, expected in GROUPS[name].items():
        paths = select_paths(params, group)
        assert sorted(paths) == sorted(expected)
    both = GROUPS[name]["attention"] + GROUPS[name]["feed_forward"]
    assert sorted(select_paths(params, "encoder")) == sorted(both)


def test_groups_of_mpnet_and_electra():
    mpnet, electra = (load_golden(f"{net}_base").checkpoint.params for net in ("mpnet", "electra"))
    assert [len(select_paths(mpnet, group)) for group in ("embeddings", "attention", "feed_forward")] == [1, 8, 4]
    assert [len(select_paths(electra, group)) for group in ("embeddings", "attention", "feed_forward")] == [1, 8, 5]
    assert "embeddings_project/kernel" in select_paths(electra, "feed_forward")
    assert not [path for path in select_paths(mpnet, "encoder") if "relative_attention_bias" in path]


def test_groups_of_roberta_and_without_a_head():
    params = bert()
    roberta = {"roberta": params["bert"], "classifier": {"dense": dense(), "out_proj": dense()}}
    for group, expected in GROUPS["bert"].items():
        assert sorted(select_paths(roberta, group)) == sorted(x.replace("bert/", "roberta/", 1) for x in expected)
        assert sorted(select_paths(params["bert"], group)) == sorted(x.removeprefix("bert/") for x in expected)


def test_expressions_functions_and_sequences():
    params = bert()
    assert select_paths(params, "classifier/kernel") == ["classifier/kernel"]
    assert len(select_paths(params, r"(query|key)/kernel$")) == 2
    assert select_paths(params, re.compile(r"^POOLER|^bert/pooler.*kernel$", re.IGNORECASE)) == [
        "bert/pooler/dense/kernel"
    ]
    seen = []

    def choose(path: str, leaf: Any) -> bool:
        seen.append((path, leaf))
        return path.endswith("query/kernel")

    assert select_paths(params, choose) == [BERT_LAYER + "attention/self/query/kernel"]
    assert len(seen) == len(jax.tree.leaves(params))
    assert any(path == "classifier/kernel" and leaf is params["classifier"]["kernel"] for path, leaf in seen)
    # Several, in tree order and each once.
    several = ["classifier/kernel", "embeddings", re.compile("word.*embedding$"), choose]
    expected = [
        *GROUPS["bert"]["embeddings"],
        BERT_LAYER + "attention/self/query/kernel",
        "classifier/kernel",
    ]
    assert select_paths(params, several) == expected
    assert select_paths(params, tuple(several)) == expected


def test_kinds_of_leaves():
    pair = LowRank(jnp.zeros((4, 2)), jnp.zeros((2, 4)))
    half = [np.zeros((2, 2), dtype) for dtype in (np.float16, ml_dtypes.bfloat16)]
    params = {"a": {"kernel": pair}, "b": half, "c": None, "d": (jnp.zeros((3, 3)),), "e": "name", "f": 3.0}
    assert select_paths(params, lambda _, leaf: getattr(leaf, "ndim", 0) == 2) == [
        "a/kernel",
        "b/0",
        "b/1",
        "d/0",
    ]


@pytest.mark.parametrize(
    ("select", "words"),
    [
        ("quary/kernel", ["matches no leaf", "query/kernel", "embeddings, attention, feed_forward, encoder"]),
        ("^$", ["'^$' matches no leaf"]),
        (["embeddings", "nothing_such"], ["'nothing_such' matches no leaf"]),
        (re.compile("nothing_such"), ["'nothing_such' matches no leaf"]),
        (lambda _path, _leaf: False, ["'<lambda>' matches no leaf"]),
        (functools.partial(lambda _a, _path, _leaf: False, 1), ["matches no leaf"]),
        ("(query", ["'(query' is not a valid regular expression", "unterminated"]),
        ([], ["`select` is empty"]),
        (3, ["`select` holds a int"]),
        ([["embeddings"]], ["`select` holds a list"]),
        ({"embeddings"}, ["`select` holds a set"]),
        (
            "query",
            ["not floating matrices", "attention/self/query/bias (float32[4])", "nearest matrices", "kernel"],
        ),
        ("bias", ["not floating matrices", ", …"]),
    ],
)
def test_misuse(select, words):
    with pytest.raises(ValueError, match="`select`") as caught:
        select_paths(bert(), select)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("leaf", "words"),
    [
        (np.zeros((2, 3, 4), np.float32), "x (float32[2, 3, 4])"),
        (np.zeros((2, 3), np.int32), "x (int32[2, 3])"),
        (np.zeros((2, 3), np.complex64), "x (complex64[2, 3])"),
        ("name", "x (str[])"),
        (LowRank(jnp.zeros((5, 4, 2)), jnp.zeros((5, 2, 3))), "x (float32[5, 4, 3])"),
    ],
)
def test_leaves_that_are_no_floating_matrix(leaf, words):
    with pytest.raises(ValueError, match="not floating matrices") as caught:
        select_paths({"x": leaf, "y": KERNEL}, "^x$")
    assert words in str(caught.value)
    assert "nearest matrices: y" in str(caught.value)


def test_kernels_of_more_axes_are_matrices_where_their_input_axes_are_known():
    params = xlnet()
    heads = [f"layer/0/rel_attn/{name}/kernel" for name in "kqv"]
    axes = dict.fromkeys(heads, 1) | {"layer/0/rel_attn/r/kernel": 1}
    assert sorted(select_paths(params, "attention", axes)) == sorted([*heads, "layer/0/rel_attn/r/kernel"])
    assert select_paths(params, r"/q/kernel$", axes) == ["layer/0/rel_attn/q/kernel"]
    # A stack of pairs is let through like the stack of kernels that it came from.
    stack = {"x": LowRank(jnp.zeros((5, 4, 2)), jnp.zeros((5, 2, 3)))}
    assert select_paths(stack, "x", {"x": (1, 1)}) == ["x"]
    # An entry makes no matrix of what has no numbers for one.
    for leaf in (np.zeros((2, 3, 4), np.int32), VECTOR):
        with pytest.raises(ValueError, match="not floating matrices"):
            select_paths({"x": leaf}, "x", {"x": 1})
    with pytest.raises(ValueError, match=r"not floating matrices: layer/0/rel_attn/o/kernel.*`lpjax.flax.input_axes`"):
        select_paths(params, "rel_attn/./kernel", axes)
    with pytest.raises(ValueError, match="not floating matrices") as caught:
        select_paths(params, "layer_norm/bias", axes)
    assert "input_axes" not in str(caught.value)


def test_group_that_nothing_is_in():
    with pytest.raises(ValueError, match="'attention' matches no leaf; nearest: classifier"):
        select_paths({"classifier": dense()}, "attention")
    with pytest.raises(ValueError, match="the tree has no such leaf"):
        select_paths({}, "attention")


def test_two_leaves_of_one_path():
    params = {"a/b": KERNEL, "a": {"b": KERNEL + 1}}
    with pytest.raises(ValueError, match="different leaves of one path: a/b"):
        select_paths(params, "a/b")
    assert select_paths(params | {"c": KERNEL}, "c") == ["c"]


@given(n=st.integers(1, 5000), d=st.integers(1, 5000), keep=st.floats(1e-6, 1))
def test_rank_is_the_largest_that_fits(n, d, keep):
    rank = rank_for((n, d), keep)
    exact, rounding = Fraction(keep) * n * d, Fraction(1, 10**14)
    assert rank * (n + d) <= exact * (1 + rounding)
    assert (rank + 1) * (n + d) > exact
    assert rank == rank_for((d, n), keep)
    assert rank == rank_for((n, d), np.float64(keep))


@given(n=st.integers(1, 5000), d=st.integers(1, 5000), data=st.data())
def test_rank_survives_its_own_share(n, d, data):
    """`keep` made from a rank gives the rank again, whichever way its floating arithmetic went."""
    limit = n * d // (n + d)
    if limit:
        rank = data.draw(st.integers(1, limit))
        for keep in (rank * (n + d) / (n * d), rank / n + rank / d, rank * (1 / n + 1 / d)):
            assert rank_for((n, d), min(keep, 1.0)) == rank


def test_rank_of_known_shapes():
    assert rank_for((30522, 384), 0.72) == 273
    assert rank_for((60, 60), 0.1) == 3
    assert rank_for((20, 20), 0.1 * 3) == 3
    assert rank_for((20, 20), 0.3) == 3
    assert rank_for((20, 20), 0.1 + 0.2) == 3
    assert rank_for((17, 7), 1) == 4
    assert rank_for((1, 1000), 1) == 0


@pytest.mark.parametrize(
    ("shape", "keep", "words"),
    [
        ((5, 5), 0, "`keep` is 0"),
        ((5, 5), 1.5, "`keep` is 1.5"),
        ((5, 5), float("nan"), "`keep` is nan"),
        ((0, 5), 0.5, r"`shape` is \(0, 5\)"),
    ],
)
def test_rank_misuse(shape, keep, words):
    with pytest.raises(ValueError, match=words):
        rank_for(shape, keep)
