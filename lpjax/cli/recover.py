"""`lpjax recover`."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Annotated

import typer

from lpjax.cli import _options as opt
from lpjax.cli._errors import misuse
from lpjax.cli._nets import load_compressed
from lpjax.cli._output import progress, show

EXAMPLE = "lpjax recover smaller recovered --text sentences.txt"


def recover(
    context: typer.Context,
    smaller: opt.Smaller,
    out: opt.Out,
    baseline: Annotated[str | None, opt.option("MODEL", "Dense model; default: SMALLER's origin.")] = None,
    text: opt.Text = None,
    task: opt.TaskName = None,
    split: opt.Split = None,
    glue: opt.Glue = None,
    texts: Annotated[int | None, opt.at_least(2, "Largest number of texts; default: all.")] = None,
    epochs: opt.Epochs = 1,
    batch_size: opt.BatchSize = 32,
    learning_rate: opt.LearningRate = 1e-4,
    hidden: Annotated[float, opt.option("X", "Weight of hidden states in the loss.")] = 1.0,
    max_length: opt.MaxLength = 128,
    seed: opt.Seed = 0,
    save_every: opt.SaveEvery = 60,
    resume: opt.Resume = False,
    force: opt.Force = False,
    as_json: opt.AsJson = False,
) -> None:
    """Train a compressed model on texts to match the dense one."""
    import lpjax
    from lpjax._files.json import json_text
    from lpjax.checkpoint import check_target, save_checkpoint
    from lpjax.compression.history import RECOVERED, earlier_recovery, history_files
    from lpjax.evaluation.errors import load_dense
    from lpjax.glue.texts import TextSource
    from lpjax.report.tables import RECOVERY, curve_table
    from lpjax.training import record

    with misuse():
        settings = opt.settings_from(context, lpjax.Recovery)
        texts_of = TextSource(text, task, split, glue)
        snapshot = record.find_snapshot(check_target(out, None, force), "recover", resume=resume, force=force)
    net, steps = load_compressed(smaller, out, force)
    with misuse():
        named, dense = load_dense(baseline, steps, smaller)
        check_target(out, dense.source, force)
    files = history_files(net.source, steps)
    earlier = earlier_recovery(files)
    with misuse() if task is None else nullcontext():
        source, first, second, _ = texts_of.load(texts)
    with record.holding(snapshot, start_over=not resume):
        with progress() as advance:
            recovered = lpjax.recover(
                net, dense, first, second, settings, snapshot=snapshot, save_every=save_every, progress=advance
            )
        document = record.recovery_record(recovered, settings, str(smaller), named, source, earlier)
        files[RECOVERED] = json_text(document)
        save_checkpoint(recovered.checkpoint, out, overwrite=force, extra_files=files)
    table = curve_table(recovered.curve, recovered.best, RECOVERY)
    title = f"{source}: {recovered.texts} texts, {recovered.held_out} held out"
    show(as_json, document | {"out": str(out)}, title, table, f"saved in {out} as of update {recovered.best['step']:g}")
