"""`lpjax calibrate`."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from lpjax.cli import _options as opt
from lpjax.cli._errors import misuse
from lpjax.cli._nets import load_selected
from lpjax.cli._output import show
from lpjax.cli._texts import MOST_TEXTS, calibrate_on

EXAMPLE = "lpjax calibrate all-MiniLM-L6-v2 statistics.safetensors --text sentences.txt"


def calibrate(
    model: opt.Model,
    out: Annotated[Path, typer.Argument(help="File for `lpjax compress --calibrate`.")],
    text: opt.Text = None,
    task: opt.TaskName = None,
    split: opt.Split = None,
    glue: opt.Glue = None,
    labels: Annotated[bool, opt.flag("--labels", "Take gradients at the task's true labels.")] = False,
    forward_only: Annotated[bool, opt.flag("--forward-only", "Skip the backward pass.")] = False,
    texts: Annotated[int, opt.at_least(1, "Largest number of texts.")] = MOST_TEXTS,
    layers: opt.Layers = "encoder,embeddings",
    batch_size: opt.BatchSize = 32,
    max_length: opt.MaxLength = 128,
    seed: opt.Seed = 0,
    force: opt.ForceFile = False,
    as_json: opt.AsJson = False,
) -> None:
    """Run texts through a model, and save which errors matter."""
    from lpjax.checkpoint.targets import check_new_file
    from lpjax.glue.evaluate import target_values
    from lpjax.glue.labels import assumption, is_assumed
    from lpjax.glue.texts import TextSource
    from lpjax.report.tables import make_table
    from lpjax.weighting import save_calibration

    with misuse():
        source = TextSource(text, task, split, glue)
        if labels and (task is None or forward_only):
            raise ValueError("`labels` need a `task`, and gradients; pass `task`, and omit `forward_only`")
        check_new_file(out, "calibration", overwrite=force, suffixes=(".safetensors",))
    checkpoint, patterns = load_selected(model, layers)
    with misuse() if task is None else nullcontext():
        read = source.load(texts)
    with misuse():
        values = target_values(checkpoint, read.examples) if labels and read.examples is not None else None
    calibration = calibrate_on(
        checkpoint, read, model=model, labels=values, select=patterns, gradients=not forward_only,
        batch_size=batch_size, max_length=max_length, seed=seed,
    )  # fmt: skip
    size = save_calibration(calibration, out, overwrite=force)
    result = {key: getattr(calibration, key) for key in ("target", "texts", "tokens", "seed")}
    result |= {"out": str(out), "bytes": size, "layers": len(calibration.statistics), **calibration.provenance}
    del result["weights"]
    notes = []
    if values is not None and source.found_task is not None:
        result["labels_assumed"] = is_assumed(source.found_task, checkpoint.config_json)
        if result["labels_assumed"]:
            notes.append(assumption(source.found_task.labels))
    rows = []
    for path, statistics in calibration.statistics.items():
        names = [field.name for field in dataclasses.fields(statistics) if getattr(statistics, field.name) is not None]
        rows.append((path, ", ".join(name for name in names if name != "tokens")))
    title = f"{read.source}: {calibration.texts} texts, {calibration.tokens} tokens"
    show(as_json, result, title, make_table(["matrix", "known"], rows), f"{size / 1e6:.1f} MB in {out}", *notes)
