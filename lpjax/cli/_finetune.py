"""`lpjax finetune`."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lpjax._check import check_whole
from lpjax.cli._common import AsJson, Force, Glue, Model, Out, find_model, misuse, progress
from lpjax.cli._snapshots import Resume, SaveEvery, check_save_every, find_snapshot, holding


def finetune(
    model: Model,
    out: Out,
    task: Annotated[str, typer.Option(help="cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte or wnli.")],
    glue: Glue = None,
    train_split: Annotated[str, typer.Option(help="Examples to learn from.")] = "train",
    eval_split: Annotated[str, typer.Option(help="Examples that choose the evaluation to keep.")] = "validation",
    eval_rows: Annotated[int | None, typer.Option(help="Evaluate on the first so many only; default: all.")] = None,
    hold_out: Annotated[int, typer.Option(help="Training examples to leave out, for choices later on.")] = 0,
    epochs: Annotated[int, typer.Option(help="Passes over the training examples.")] = 3,
    batch_size: Annotated[int, typer.Option(help="Examples of an update.")] = 32,
    accumulate: Annotated[int, typer.Option(help="Parts that a batch is taken in, to save memory.")] = 1,
    learning_rate: Annotated[float, typer.Option("--lr", help="Peak of the learning rate.")] = 5e-5,
    warmup: Annotated[float, typer.Option(help="Share of the updates in which the learning rate rises.")] = 0.1,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW; not for biases and normalization.")] = 0.01,
    clip: Annotated[float, typer.Option(help="Largest norm of a gradient.")] = 1.0,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16, of the computation.")] = "float32",
    max_length: Annotated[int, typer.Option(help="Most tokens of a text or pair, as far as the net has them.")] = 128,
    eval_every: Annotated[int | None, typer.Option(help="Updates between evaluations; default: an epoch.")] = None,
    patience: Annotated[int | None, typer.Option(help="Stop after so many evaluations without a better score.")] = None,
    seed: Annotated[int, typer.Option(help="Of head, order and dropout.")] = 0,
    save_every: SaveEvery = 60,
    resume: Resume = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a checkpoint, dense or compressed, on a GLUE task, and save its best evaluation, in float32."""
    from lpjax._provenance import run_record
    from lpjax.checkpoint import check_target, load_checkpoint, save_checkpoint
    from lpjax.compression.history import TUNED, training_files
    from lpjax.compression.record import RECORD, record_of, record_text
    from lpjax.glue import find_task, load_examples
    from lpjax.glue.split import first_rows
    from lpjax.glue.split import hold_out as leave_out
    from lpjax.training import Settings
    from lpjax.training import finetune as run

    with misuse():
        settings = Settings(
            epochs=epochs,
            batch_size=batch_size,
            accumulate=accumulate,
            learning_rate=learning_rate,
            warmup=warmup,
            weight_decay=weight_decay,
            clip=clip,
            dtype=dtype,
            max_length=max_length,
            eval_every=eval_every,
            patience=patience,
            seed=seed,
        )
        check_whole("--hold-out", hold_out, 0)
        if eval_rows is not None:
            check_whole("--eval-rows", eval_rows, 1)
        check_save_every(save_every)
        chosen = find_task(task)
        target = check_target(out, None, force)
        snapshot = find_snapshot(target, "finetune", resume=resume, force=force)
        folder = find_model(model)
    checkpoint = load_checkpoint(folder)
    with misuse():
        check_target(out, checkpoint.source, force)
    train, dev = (load_examples(chosen, split, glue) for split in (train_split, eval_split))
    with misuse():
        train = leave_out(train, hold_out)[0] if hold_out else train
        dev = first_rows(dev, eval_rows) if eval_rows is not None else dev
    history: dict[str, str] = {}
    if checkpoint.compression is not None:  # how it became so; damaged, it is refused before the work
        history = training_files(checkpoint.source) | {RECORD: record_text(record_of(checkpoint))}
    with holding(snapshot, start_over=not resume):
        with progress() as advance:
            found = run(checkpoint, train, dev, settings, snapshot=snapshot, save_every=save_every, progress=advance)
        record: dict[str, Any] = {
            "model": model,
            "task": chosen.name,
            "train": {"split": train.split, "rows": len(train.labels), "complete": train.complete},
            "dev": {"split": dev.split, "rows": len(dev.labels), "complete": dev.complete},
            "settings": dataclasses.asdict(settings),
            "best": found.best,
            "curve": list(found.curve),
            "steps": found.steps,
            "stopped_early": found.stopped_early,
            "fresh": list(found.fresh),
            "seconds": round(found.seconds, 1),
            **run_record(seed),
        }
        text = json.dumps(record, indent=2) + "\n"
        files = history | {TUNED: text}
        save_checkpoint(found.checkpoint, out, overwrite=force, extra_files=files)
    if as_json:
        print(json.dumps(record | {"out": str(out)}))
        return
    metrics = chosen.metrics
    table = Table(title=f"{chosen.title}, {escape(dev.split)}, {len(dev.labels)} rows", title_justify="left")
    for heading in ("update", "epoch", "training loss", *metrics):
        table.add_column(heading, justify="right")
    for entry in found.curve:
        style = "bold" if entry == found.best else None
        numbers = [f"{entry[name]:.4f}" for name in ("loss", *metrics)]
        table.add_row(str(entry["step"]), f"{entry['epoch']:.1f}", *numbers, style=style)
    console = Console()
    console.print(table)
    note = "" if dev.complete else f"; {escape(dev.split)} is a subset: no GLUE score"
    console.print(
        f"saved in {escape(str(out))} as of update {found.best['step']}{note}", highlight=False, soft_wrap=True
    )
