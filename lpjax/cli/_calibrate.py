"""`lpjax calibrate`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lpjax.cli._common import AsJson, Glue, Model, check_new_file, find_model, load_selected, misuse, progress

if TYPE_CHECKING:
    from lpjax.calibration import Calibration
    from lpjax.checkpoint import Checkpoint

MOST_TEXTS = 4000


def calibrate(
    model: Model,
    out: Annotated[Path, typer.Argument(help="File to be written, for `lpjax compress --calibrate`.")],
    text: Annotated[
        Path | None, typer.Option(help="UTF-8 text, one a line; default: the prose of Python's own reference.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="GLUE task whose texts to take, instead of --text.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the task; default: train.")] = None,
    glue: Glue = None,
    labels: Annotated[
        bool, typer.Option("--labels", help="Gradients of the loss by the task's labels, not by the net's predictions.")
    ] = False,
    forward_only: Annotated[
        bool, typer.Option("--forward-only", help="No gradients: activations and counts of tokens alone.")
    ] = False,
    texts: Annotated[int, typer.Option(help="Take so many texts at most, evenly spaced.")] = MOST_TEXTS,
    layers: Annotated[
        str,
        typer.Option(help="embeddings, attention, feed_forward, encoder, or a regular expression; several by commas."),
    ] = "encoder,embeddings",
    batch_size: Annotated[int, typer.Option(help="Texts of a batch.")] = 32,
    max_length: Annotated[int, typer.Option(help="Most tokens of a text or pair, as far as the net has them.")] = 128,
    seed: Annotated[int, typer.Option(help="Of the directions that gradients are taken in.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it is a file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run text through a net and note which rows and directions of its matrices matter."""
    from lpjax.glue import find_task
    from lpjax.report import save_calibration

    with misuse():
        if task is not None and text is not None:
            raise ValueError("--text and --task both name texts; expected one of them")
        if task is None and (split is not None or glue is not None):
            raise ValueError("--split and --glue are those of a --task; give that, or leave them out")
        if out.suffix != ".safetensors":
            raise ValueError(f"OUT is {out}; expected a name that ends in .safetensors, which compress knows it by")
        if seed < 0:
            raise ValueError(f"--seed is {seed}; expected 0 or more")
        if labels and (task is None or forward_only):
            raise ValueError("--labels are those of a --task, for its gradients; give --task, and not --forward-only")
        for name, value, least in (
            ("--texts", texts, 1),
            ("--batch-size", batch_size, 1),
            ("--max-length", max_length, 3),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}; expected {least} or more")
        chosen = None if task is None else find_task(task)
        check_new_file("OUT", out, force)
        folder = find_model(model)
    checkpoint, patterns = load_selected(folder, layers)
    source, first, second, values = _texts(checkpoint, text, chosen, split or "train", glue, labels)
    with progress() as advance:
        found = calibrate_on(
            checkpoint, source, first, second, values, texts, advance, model=model, select=patterns,
            gradients=not forward_only, batch_size=batch_size, max_length=max_length, seed=seed,
        )  # fmt: skip
    size = save_calibration(found, out, overwrite=force)
    told = {key: getattr(found, key) for key in ("target", "texts", "tokens", "seed")}
    told |= {"out": str(out), "bytes": size, "layers": len(found.statistics), **found.provenance}
    if as_json:
        print(json.dumps(told))
        return
    table = Table(title=f"{escape(source)}: {found.texts} texts, {found.tokens} tokens", title_justify="left")
    table.add_column("matrix", overflow="fold")
    table.add_column("what is known of it")
    for path, statistics in found.statistics.items():
        known = [field.name for field in dataclasses.fields(statistics) if getattr(statistics, field.name) is not None]
        table.add_row(escape(path), ", ".join(name for name in known if name != "tokens"))
    console = Console()
    console.print(table)
    console.print(f"{size / 1e6:.1f} MB in {escape(str(out))}", highlight=False, soft_wrap=True)


def _texts(
    checkpoint: Checkpoint, text: Path | None, task: Any, split: str, glue: Path | None, labels: bool
) -> tuple[str, list[str], list[str] | None, Any]:
    """Where texts are from, the texts, their second parts, and what the net's outputs should be of them."""
    if task is None:
        return *read_texts(text), None, None
    from lpjax.glue.data import load_examples
    from lpjax.glue.labels import label_order
    from lpjax.models.head import num_outputs

    examples = load_examples(task, split, glue)
    values = None
    if labels:
        with misuse():
            outputs = num_outputs(checkpoint.params, checkpoint.config)
            if outputs is None:
                raise ValueError("--labels want a net with a head; leave them out, or fine-tune it: lpjax finetune")
            order = label_order(task, checkpoint.config_json, outputs)
        values = examples.labels if task.is_regression else [list(order).index(label) for label in examples.labels]
    return f"{task.title} {examples.split}", examples.first, examples.second, values


def read_texts(text: Path | None) -> tuple[str, list[str]]:
    """What a text file is called, and its lines; without one, the prose of Python's own reference."""
    from lpjax.glue.data import load_sentences

    with misuse():
        lines = load_sentences(text)
    return "Python's own reference" if text is None else str(text), lines


def spaced(count: int, most: int) -> list[int]:
    """So many evenly spaced numbers at most, of 0 to count − 1."""
    chosen = min(most, count)
    return [i * count // chosen for i in range(chosen)]


def calibrate_on(
    checkpoint: Checkpoint,
    source: str,
    first: list[str],
    second: list[str] | None,
    values: Any,
    most: int,
    advance: Any,
    *,
    model: str,
    seed: int = 0,
    **options: Any,
) -> Calibration:
    """A calibration on at most so many of the texts, evenly spaced, with where it came from."""
    import lpjax
    from lpjax.report import run_record

    places = spaced(len(first), most)
    first = [first[i] for i in places]
    second, values = (None if one is None else [one[i] for i in places] for one in (second, values))
    digest = hashlib.sha256("\n".join([*first, *(second or ())]).encode("utf-8", "replace")).hexdigest()
    found = lpjax.calibrate(
        checkpoint, first, second, labels=values, seed=seed,
        progress=lambda done, total: advance(done, total, f"calibrating on {source}"), **options,
    )  # fmt: skip
    provenance = {"model": model, "source": source, "sha256": digest, **run_record(seed)}
    return dataclasses.replace(found, provenance=provenance)
