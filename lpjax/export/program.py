"""The program to export: a checkpoint's forward pass as one function of its weights and of a batch of any size."""

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
from lpjax.pipeline import Pooling, Stage, read_pipeline, sentence_vectors
from lpjax.pipeline.outputs import Embedding, outputs_of
from lpjax.weights.exporting import exporting
from lpjax.weights.parts import part_name, parts_of

IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"


class Program(NamedTuple):
    """A forward pass.

    Attributes:
        function: (weights, {name: integers (batch, length)}) -> an array for each name in `outputs`; to be traced
            inside `exporting`.
        weights: arrays that it reads, by name: "bert/pooler/dense/kernel", or for factors "….left" and "….right".
        inputs: names of inputs, as in transformers and optimum.
        outputs: names of outputs: "last_hidden_state", or for a head "logits", or "start_logits" and "end_logits"; and
            "sentence_embedding" if it is requested.
        max_length: largest length of the inputs; None without a limit.
    """

    function: Callable[[Mapping[str, Array], Mapping[str, Array]], tuple[Array, ...]]
    weights: dict[str, np.ndarray]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    max_length: int | None = None

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The inputs as int32 arrays of any batch size, and of any length up to `max_length`."""
        limits = [] if self.max_length is None else [f"length <= {self.max_length}"]
        shape = symbolic_shape("batch, length", constraints=limits)
        return {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name in self.inputs}

    def traced(self) -> ClosedJaxpr:
        """The traced program; its variables are the weights and then the inputs, each sorted by name."""
        with exporting():
            return jax.make_jaxpr(self.function)(self.weights, self.shapes())


def program_of(checkpoint: Checkpoint, *, pooled: bool = False) -> Program:
    """The forward pass of a checkpoint, in float32.

    Args:
        checkpoint: the checkpoint, dense or compressed.
        pooled: whether the vector of each text, from the folder's sentence-transformers stages, is an output, too.

    Raises:
        ValueError: `pooled` for a model with a head, or for a folder whose pooling leaves out prompts; an XLNet that
            reads half of each batch backwards.
        CheckpointError: as `read_pipeline`, if `pooled`.
    """
    config = checkpoint.config
    if config.batch_multiple > 1:
        raise ValueError("the model reads half of each batch backwards (`bi_data`), which an export cannot")
    kind = outputs_of(checkpoint)
    head = None if isinstance(kind, Embedding) else config.head
    if pooled and head is not None:
        raise ValueError(f"`pooled` is for encoders of sentences, but this model has a head ({head}); leave it out")
    stages = _stages(checkpoint) if pooled else ()
    inputs = (IDS, MASK, *((TYPES,) if config.wants_token_types or (config.num_token_types or 1) > 1 else ()))
    prefix = name_table(config).prefix
    weights = _named(checkpoint.params)
    named = {name: array for arrays in weights for name, array in arrays.items()}
    structure = jax.tree.structure(checkpoint.params)

    def function(weights: Mapping[str, Array], inputs: Mapping[str, Array]) -> tuple[Array, ...]:
        # Weights that the function does not read are absent, and never touched.
        params = jax.tree.unflatten(structure, [weights.get(name) for name in named])
        with jax.default_matmul_precision("highest"):
            hidden = hidden_states(params.get(prefix, params), config, inputs, tokens_of(config, head))
            if head is None:
                mask = inputs[MASK].astype(bool)
                return (hidden, sentence_vectors(stages, hidden, mask)) if pooled else (hidden,)
            logits = logits_of(params, config, hidden, inputs[MASK], NO_DROPOUT, head)
        return (logits[..., 0], logits[..., 1]) if head == "spans" else (logits,)

    if head is None:
        outputs = ("last_hidden_state", "sentence_embedding") if pooled else ("last_hidden_state",)
    else:
        outputs = ("start_logits", "end_logits") if head == "spans" else ("logits",)
    whole = Program(function, named, inputs, outputs, config.max_length)
    traced = whole.traced().jaxpr
    read = {variable for eqn in traced.eqns for variable in eqn.invars if not isinstance(variable, Literal)}
    names_read = {name for name, variable in zip(sorted(named), traced.invars, strict=False) if variable in read}
    # Keep all arrays of a weight or none, although some, such as codes of 0 bits, are never read.
    used = {name: array for arrays in weights if names_read & arrays.keys() for name, array in arrays.items()}
    return whole._replace(weights=used)


def _stages(checkpoint: Checkpoint) -> tuple[Stage, ...]:
    """The stages from hidden states to vectors.

    Raises:
        ValueError: pooling leaves out the tokens of prompts, whose number a program cannot know.
    """
    pipeline = read_pipeline(checkpoint)
    prompts = any(text for _, text in pipeline.text.prompts)
    if prompts and any(isinstance(stage, Pooling) and not stage.include_prompt for stage in pipeline.stages):
        raise ValueError("the folder's pooling leaves out the tokens of prompts, which `pooled` cannot; omit `pooled`")
    return pipeline.stages


def _named(params: Any) -> list[dict[str, np.ndarray]]:
    """The arrays of each weight by name, in the order in which JAX flattens the tree."""
    weights = []
    for path, leaf in leaves_with_paths(params):
        # By number, since two parts of a weight may be the same array.
        numbers = jax.tree.unflatten(jax.tree.structure(leaf), range(len(jax.tree.leaves(leaf))))
        names = {number: part_name(path, part) for part, number in parts_of(numbers).items()}
        weights.append({names[number]: np.asarray(array) for number, array in enumerate(jax.tree.leaves(leaf))})
    return weights
