"""`lpjax finetune`."""

from __future__ import annotations

from typing import Annotated

import typer

from lpjax.cli import _options as opt
from lpjax.cli._errors import misuse
from lpjax.cli._nets import load_to_save
from lpjax.cli._output import progress, show

EXAMPLE = "lpjax finetune all-MiniLM-L6-v2 tuned --task sst2"


def finetune(
    context: typer.Context,
    model: opt.Model,
    out: opt.Out,
    task: Annotated[str, opt.option("NAME", "GLUE task, such as sst2.")],
    glue: opt.Glue = None,
    train_split: Annotated[str, opt.option("NAME", "Split to train on.")] = "train",
    eval_split: Annotated[str, opt.option("NAME", "Split to choose the weights by.")] = "validation",
    eval_rows: Annotated[int | None, opt.at_least(1, "Evaluate on the first N examples only.")] = None,
    hold_out: Annotated[int, opt.at_least(0, "Leave N random examples out of training.")] = 0,
    epochs: opt.Epochs = 3,
    batch_size: opt.BatchSize = 32,
    accumulate: Annotated[int, opt.at_least(1, "Take each batch in N parts.")] = 1,
    learning_rate: opt.LearningRate = 5e-5,
    warmup: Annotated[float, opt.option("X", "Share of updates to warm up.")] = 0.1,
    weight_decay: Annotated[float, opt.option("X", "Weight decay of AdamW.")] = 0.01,
    clip: Annotated[float, opt.option("X", "Largest gradient norm.")] = 1.0,
    dtype: opt.Dtype = "float32",
    max_length: opt.MaxLength = 128,
    eval_every: Annotated[int | None, opt.at_least(1, "Updates between evaluations.")] = None,
    patience: Annotated[int | None, opt.at_least(1, "Stop after N evaluations without gain.")] = None,
    seed: opt.Seed = 0,
    save_every: opt.SaveEvery = 60,
    resume: opt.Resume = False,
    force: opt.Force = False,
    as_json: opt.AsJson = False,
) -> None:
    """Fine-tune a model on a GLUE task and save the best weights."""
    from lpjax._files.json import json_text
    from lpjax.checkpoint import check_target, save_checkpoint
    from lpjax.compression.history import TUNED, tuning_history
    from lpjax.glue import find_task, load_examples
    from lpjax.glue.split import first_rows
    from lpjax.glue.split import hold_out as leave_out
    from lpjax.report.tables import TUNING, curve_table
    from lpjax.training import Settings, record
    from lpjax.training import finetune as run

    with misuse():
        settings = opt.settings_from(context, Settings)
        chosen = find_task(task)
        snapshot = record.find_snapshot(check_target(out, None, force), "finetune", resume=resume, force=force)
    checkpoint = load_to_save(model, out, force)
    train, dev = (load_examples(chosen, split, glue) for split in (train_split, eval_split))
    with misuse():
        train = leave_out(train, hold_out)[0] if hold_out else train
        dev = first_rows(dev, eval_rows) if eval_rows is not None else dev
    history = tuning_history(checkpoint)  # refused before training if it is damaged
    with record.holding(snapshot, start_over=not resume):
        with progress() as advance:
            tuned = run(checkpoint, train, dev, settings, snapshot=snapshot, save_every=save_every, progress=advance)
        document = record.tuning_record(tuned, settings, model, train, dev)
        files = history | {TUNED: json_text(document)}
        save_checkpoint(tuned.checkpoint, out, overwrite=force, extra_files=files)
    table = curve_table(tuned.curve, tuned.best, TUNING | {name: f"{name}|.4f" for name in chosen.metrics})
    note = "" if dev.complete else f"; {dev.split} is a subset: no GLUE score"
    title = f"{chosen.title}, {dev.split}, {len(dev.labels)} rows"
    show(as_json, document | {"out": str(out)}, title, table, f"saved in {out} as of update {tuned.best['step']}{note}")
