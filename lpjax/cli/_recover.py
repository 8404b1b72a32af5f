"""`lpjax recover`."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lpjax._check import check_whole
from lpjax.cli._common import AsJson, Force, Glue, Out, find_model, misuse, progress
from lpjax.cli._snapshots import Resume, SaveEvery, check_save_every, find_snapshot, holding
from lpjax.cli._texts import Split, TaskName, Text, check_source, load_texts, spaced


def recover(
    smaller: Annotated[Path, typer.Argument(help="Folder of a net that `lpjax compress` made.")],
    out: Out,
    baseline: Annotated[
        str | None,
        typer.Option(help="The dense net; default: what the record of SMALLER names."),
    ] = None,
    text: Text = None,
    task: TaskName = None,
    split: Split = None,
    glue: Glue = None,
    texts: Annotated[int | None, typer.Option(help="Take so many texts at most, evenly spaced; default: all.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the texts.")] = 1,
    batch_size: Annotated[int, typer.Option(help="Texts of an update.")] = 32,
    learning_rate: Annotated[float, typer.Option("--lr", help="Peak of the learning rate.")] = 1e-4,
    hidden: Annotated[float, typer.Option(help="Share of hidden states in the loss; 0: outputs alone.")] = 1.0,
    max_length: Annotated[int, typer.Option(help="Most tokens of a text or pair, as far as the net has them.")] = 128,
    seed: Annotated[int, typer.Option(help="Of the order, and of what is held out.")] = 0,
    save_every: SaveEvery = 60,
    resume: Resume = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Train a compressed net to say what the dense one says of texts, without labels, and save the best that it was."""
    import lpjax
    from lpjax._provenance import run_record
    from lpjax.checkpoint import check_target, load_checkpoint, save_checkpoint
    from lpjax.compression.history import RECOVERED, earlier_recovery, history_files
    from lpjax.compression.record import record_of
    from lpjax.evaluation.errors import check_dense

    with misuse():
        settings = lpjax.Recovery(
            epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, hidden=hidden, max_length=max_length,
            seed=seed,
        )  # fmt: skip
        chosen = check_source(text, task, split, glue)
        if texts is not None:
            check_whole("--texts", texts, 2)
        check_save_every(save_every)
        target = check_target(out, None, force)
        snapshot = find_snapshot(target, "recover", resume=resume, force=force)
        folder = find_model(str(smaller))
    net = load_checkpoint(folder)
    record = record_of(net)
    with misuse():
        check_target(out, net.source, force)
        if not record.steps:
            raise ValueError(f"{smaller} is a dense net; expected one that `lpjax compress` made")
        named = baseline or record.source
        if named is None:
            raise ValueError(f"{smaller} does not tell which dense net it was made of; name that by --baseline")
        try:
            dense = load_checkpoint(find_model(named))
        except (OSError, ValueError) as error:
            if baseline is not None:
                raise
            where = f"{smaller} names that as its dense net; say where it is by --baseline"
            raise ValueError(f"{error}; {where}") from error
        check_dense(dense, named)
        check_target(out, dense.source, force)
    files = history_files(net.source, record)
    earlier = earlier_recovery(files)
    source, first, second, _ = load_texts(text, chosen, split, glue)
    places = spaced(len(first), len(first) if texts is None else texts)
    first, second = [first[i] for i in places], None if second is None else [second[i] for i in places]
    with holding(snapshot, start_over=not resume):
        with progress() as advance:
            found = lpjax.recover(
                net, dense, first, second, settings, snapshot=snapshot, save_every=save_every, progress=advance
            )
        told: dict[str, Any] = {
            "model": str(smaller),
            "baseline": named,
            "source": source,
            "texts": found.texts,
            "held_out": found.held_out,
            "settings": dataclasses.asdict(settings),
            "best": found.best,
            "curve": [_plain(entry) for entry in found.curve],
            "seconds": round(found.seconds, 1),
            **run_record(seed),
        }
        if earlier is not None:
            told["earlier"] = earlier
        files[RECOVERED] = json.dumps(told, indent=2) + "\n"
        save_checkpoint(found.checkpoint, out, overwrite=force, extra_files=files)
    if as_json:
        print(json.dumps(told | {"out": str(out)}))
        return
    table = Table(title=f"{escape(source)}: {found.texts} texts, {found.held_out} held out", title_justify="left")
    for heading in ("update", "epoch", "learning rate", "training loss", "divergence, held out"):
        table.add_column(heading, justify="right")
    for entry in found.curve:
        style = "bold" if entry == found.best else None
        trained = (f"{entry['learning_rate']:.1e}", f"{entry['loss']:.5f}") if "loss" in entry else ("", "")
        table.add_row(
            f"{entry['step']:g}", f"{entry['epoch']:.2f}", *trained, f"{entry['divergence']:.5f}", style=style
        )
    console = Console()
    console.print(table)
    console.print(f"saved in {escape(str(out))} as of update {found.best['step']:g}", highlight=False, soft_wrap=True)


def _plain(entry: dict[str, float]) -> dict[str, float | None]:
    """Without infinities, which JSON does not have."""
    return {name: value if math.isfinite(value) else None for name, value in entry.items()}
