"""`lpjax evaluate`."""

from __future__ import annotations

from typing import Annotated, Any

from lpjax.cli import _options as opt
from lpjax.cli._errors import misuse
from lpjax.cli._output import progress, show

EXAMPLE = "lpjax evaluate smaller --baseline all-MiniLM-L6-v2"


def evaluate(
    model: opt.Model,
    baseline: opt.Baseline = None,
    task: Annotated[str | None, opt.option("NAME", "GLUE task; default: the one that the head was tuned on.")] = None,
    split: Annotated[str, opt.option("NAME", "Split of the task.")] = "validation",
    glue: opt.Glue = None,
    text: opt.Text = None,
    dtype: opt.Dtype = "float32",
    batch_size: opt.BatchSize = 32,
    max_length: Annotated[int | None, opt.at_least(3, "Largest number of tokens; default: the model's.")] = None,
    as_json: opt.AsJson = False,
) -> None:
    """Score a model, and compare it with the dense one."""
    from lpjax.checkpoint import load_checkpoint
    from lpjax.checkpoint.files import read_object
    from lpjax.checkpoint.formats import CONFIG
    from lpjax.checkpoint.source import find_model
    from lpjax.checkpoint.stages import net_folder
    from lpjax.evaluation.comparison import score_outputs, score_task
    from lpjax.glue import find_task, load_sentences
    from lpjax.glue.labels import own_task
    from lpjax.report.tables import outputs_tables, task_tables

    with misuse():
        folder = find_model(model)
        dense_folder = None if baseline is None else find_model(baseline)
        chosen = None if task is None else find_task(task)
        if chosen is not None and text is not None:
            raise ValueError("`text` is for embeddings and `task` for a head; expected only one of the two")
        sentences = load_sentences(text)
    if chosen is None and text is None:
        chosen = own_task(read_object(net_folder(folder) / CONFIG))
    net = load_checkpoint(folder)
    dense = None if dense_folder is None else load_checkpoint(dense_folder)
    options: dict[str, Any] = {"glue": glue, "dtype": dtype, "batch_size": batch_size, "max_length": max_length}
    result = {"model": model, "dtype": dtype} | ({} if baseline is None else {"baseline": baseline})
    with progress() as advance:
        if chosen is not None:
            nets = {"result": net} | ({} if dense is None else {"baseline_result": dense})
            result |= score_task(nets, chosen, split=split, progress=advance, **options)
        else:
            result |= score_outputs(net, dense, sentences, fetch=text is None, progress=advance, **options)
    show(as_json, result, *(outputs_tables(result) if chosen is None else task_tables(result, chosen)))
