"""What is exported: the forward pass of a checkpoint as one function of its weights and of a batch of any size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import symbolic_shape
from jax.extend.core import ClosedJaxpr, Literal
from jaxtyping import Array

from lpjax._tree import leaves_with_paths
from lpjax.checkpoint import Checkpoint
from lpjax.models import logits_of, name_table, tokens_of
from lpjax.models.encoder import hidden_states
from lpjax.models.layers import NO_DROPOUT
from lpjax.pipeline import read_pipeline, sentence_vectors
from lpjax.pipeline.outputs import Embedding, outputs_of
from lpjax.weights.exporting import exporting
from lpjax.weights.parts import part_name, parts_of

IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"


class Program(NamedTuple):
    """A forward pass.

    Attributes:
        function: (weights, {name: whole numbers (batch, length)}) -> an array for each name of `outputs`; to be traced
            inside `exporting`.
        weights: the arrays that it reads, by name: "bert/pooler/dense/kernel", or of factors "….left" and "….right".
        inputs: names of inputs, as transformers and optimum have them.
        outputs: names of outputs: "last_hidden_state"; of a head "logits", or "start_logits" and "end_logits"; and
            "sentence_embedding" if it is asked for.
    """

    function: Callable[[Mapping[str, Array], Mapping[str, Array]], tuple[Array, ...]]
    weights: dict[str, np.ndarray]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The inputs as arrays of int32, of any batch size and length."""
        shape = symbolic_shape("batch, length")
        return {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name in self.inputs}

    def traced(self) -> ClosedJaxpr:
        """The program as JAX traces it; weights and then inputs, each sorted by name, are its variables."""
        with exporting():
            return jax.make_jaxpr(self.function)(self.weights, self.shapes())


def program_of(checkpoint: Checkpoint, *, pooled: bool = False) -> Program:
    """The forward pass of a checkpoint, in float32.

    Args:
        checkpoint: dense or compressed.
        pooled: whether the vector of each text is an output, too, as the folder's stages of sentence-transformers make
            it of the hidden states.

    Raises:
        ValueError: `pooled` of a model with a head; an XLNet that reads half of each batch backwards.
        CheckpointError: of what `read_pipeline` refuses, if `pooled`.
    """
    config = checkpoint.config
    if config.batch_multiple > 1:
        raise ValueError("the net reads half of each batch backwards (`bi_data`), which no export does")
    kind = outputs_of(checkpoint)
    head = None if isinstance(kind, Embedding) else config.head
    if pooled and head is not None:
        raise ValueError(f"`pooled` is for encoders of sentences, but this net has a head ({head}); leave it out")
    stages = read_pipeline(checkpoint).stages if pooled else ()
    inputs = (IDS, MASK, *((TYPES,) if config.wants_token_types or (config.num_token_types or 1) > 1 else ()))
    prefix = name_table(config).prefix
    named = _named(checkpoint.params)
    structure = jax.tree.structure(checkpoint.params)

    def function(weights: Mapping[str, Array], inputs: Mapping[str, Array]) -> tuple[Array, ...]:
        # Names that it does not read are absent, and their leaves never touched.
        params = jax.tree.unflatten(structure, [weights.get(name) for name in named])
        hidden = hidden_states(params.get(prefix, params), config, inputs, tokens_of(config, head))
        if head is None:
            mask = inputs[MASK].astype(bool)
            return (hidden, sentence_vectors(stages, hidden, mask)) if pooled else (hidden,)
        logits = logits_of(params, config, hidden, NO_DROPOUT, head)
        return (logits[..., 0], logits[..., 1]) if head == "spans" else (logits,)

    if head is None:
        outputs = ("last_hidden_state", "sentence_embedding") if pooled else ("last_hidden_state",)
    else:
        outputs = ("start_logits", "end_logits") if head == "spans" else ("logits",)
    whole = Program(function, named, inputs, outputs)
    traced = whole.traced().jaxpr
    read = {variable for eqn in traced.eqns for variable in eqn.invars if not isinstance(variable, Literal)}
    used = {name: named[name] for name, variable in zip(sorted(named), traced.invars, strict=False) if variable in read}
    return whole._replace(weights=used)


def _named(params: Any) -> dict[str, np.ndarray]:
    """The arrays of all weights by name, in the order in which JAX flattens the tree."""
    named = {}
    for path, leaf in leaves_with_paths(params):
        names = {id(array): part_name(path, part) for part, array in parts_of(leaf).items()}
        named |= {names[id(array)]: np.asarray(array) for array in jax.tree.leaves(leaf)}
    return named
