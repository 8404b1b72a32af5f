"""The classifier at the start of fine-tuning: its head, config.json, and record of compression."""

from __future__ import annotations

import dataclasses
from typing import Any

from lpjax.checkpoint import Checkpoint
from lpjax.glue.labels import label_config, label_order
from lpjax.glue.tasks import Task
from lpjax.models import name_table
from lpjax.models.heads import output_path, with_head


def for_texts(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint, configured as a classifier of texts; a head for tokens, which has the same names, is dropped."""
    config, params = checkpoint.config, checkpoint.params
    if config.head == "sequence":
        return checkpoint
    prefix = name_table(config).prefix
    params = {prefix: params[prefix]} if config.head == "tokens" and prefix in params else params
    return dataclasses.replace(checkpoint, config=dataclasses.replace(config, head="sequence"), params=params)


def starting_weights(checkpoint: Checkpoint, task: Task, seed: int) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """The initial weights, the config.json of the resulting model, and the paths that are newly initialized."""
    params, config = checkpoint.params, checkpoint.config
    data = dict(checkpoint.config_json or config.to_json())
    started, new_paths = with_head(params, config, task.num_outputs, seed=seed)
    kept = output_path(config) not in new_paths
    if kept:
        try:
            label_order(task, data, task.num_outputs)
        except ValueError:
            # The same number of labels, but those of another task.
            kept, prefix = False, name_table(config).prefix
            started, new_paths = with_head({prefix: params[prefix]}, config, task.num_outputs, seed=seed)
    labels = label_config(task)
    if kept and not task.is_regression:
        names = data.get("id2label") or {str(i): name for name, i in (data.get("label2id") or {}).items()}
        if names:
            labels |= {"id2label": dict(names), "label2id": {str(name): int(i) for i, name in names.items()}}
    data["architectures"] = [config.class_for("sequence")]
    data |= {key: "float32" for key in ("dtype", "torch_dtype") if key in data}
    data.pop("num_labels", None)  # the names imply it
    return started, data | labels, new_paths


def moved_compression(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The record of compression, with a base model's paths changed to those in a model with a head."""
    compression, prefix = checkpoint.compression, name_table(checkpoint.config).prefix
    if compression is None or prefix in checkpoint.params:
        return compression
    moved, steps = dict(compression), compression.get("steps")
    if "ranks" in compression:
        moved["ranks"] = {f"{prefix}/{path}": rank for path, rank in compression["ranks"].items()}
    if isinstance(steps, list):
        moved["steps"] = [
            step | {"paths": [f"{prefix}/{path}" for path in step["paths"]]}
            if isinstance(step, dict) and isinstance(step.get("paths"), list)
            else step
            for step in steps
        ]
    return moved
