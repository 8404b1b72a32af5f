"""`lpjax calibrate`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lpjax._check import check_seed, check_whole
from lpjax.cli._common import AsJson, Glue, Model, check_new_file, find_model, load_selected, misuse, progress
from lpjax.cli._texts import Split, TaskName, Text, check_source, load_texts, spaced

if TYPE_CHECKING:
    from lpjax.checkpoint import Checkpoint
    from lpjax.glue.data import Examples
    from lpjax.weighting.statistics import Calibration

MOST_TEXTS = 4000


def calibrate(
    model: Model,
    out: Annotated[Path, typer.Argument(help="File to be written, for `lpjax compress --calibrate`.")],
    text: Text = None,
    task: TaskName = None,
    split: Split = None,
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
    from lpjax.glue.labels import is_assumed
    from lpjax.weighting import save_calibration

    with misuse():
        chosen = check_source(text, task, split, glue)
        if out.suffix != ".safetensors":
            raise ValueError(f"OUT is {out}; expected a name that ends in .safetensors, which compress knows it by")
        check_seed("--seed", seed)
        if labels and (task is None or forward_only):
            raise ValueError("--labels are those of a --task, for its gradients; give --task, and not --forward-only")
        for name, value, least in (
            ("--texts", texts, 1),
            ("--batch-size", batch_size, 1),
            ("--max-length", max_length, 3),
        ):
            check_whole(name, value, least)
        check_new_file("OUT", out, force, "calibration")
        folder = find_model(model)
    checkpoint, patterns = load_selected(folder, layers)
    source, first, second, examples = load_texts(text, chosen, split, glue)
    values = _values(checkpoint, examples) if labels and examples is not None else None
    with progress() as advance:
        found = calibrate_on(
            checkpoint, source, first, second, values, texts, advance, model=model, select=patterns,
            gradients=not forward_only, batch_size=batch_size, max_length=max_length, seed=seed,
        )  # fmt: skip
    size = save_calibration(found, out, overwrite=force)
    told = {key: getattr(found, key) for key in ("target", "texts", "tokens", "seed")}
    told |= {"out": str(out), "bytes": size, "layers": len(found.statistics), **found.provenance}
    del told["weights"]
    assumed = values is not None and examples is not None and is_assumed(examples.task, checkpoint.config_json)
    if values is not None:
        told["labels_assumed"] = assumed
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
    if assumed and examples is not None:
        names = ", ".join(examples.task.labels)
        console.print(
            f"config.json names no labels; the outputs are assumed to be {names}, in this order", soft_wrap=True
        )


def _values(checkpoint: Checkpoint, examples: Examples) -> Any:
    """What the net's outputs should be of the examples."""
    from lpjax.glue.labels import output_labels
    from lpjax.pipeline.outputs import Classes, Regression, outputs_of

    with misuse():
        kind = outputs_of(checkpoint)
        if not isinstance(kind, Classes | Regression):
            raise ValueError(
                "--labels want a net with a head for classes or a regression; leave them out, or fine-tune it: "
                "lpjax finetune"
            )
        return output_labels(examples.task, examples.labels, checkpoint.config_json, kind.count)


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
    from lpjax._provenance import run_record

    places = spaced(len(first), most)
    first = [first[i] for i in places]
    second, values = (None if one is None else [one[i] for i in places] for one in (second, values))
    digest = hashlib.sha256("\n".join([*first, *(second or ())]).encode("utf-8", "replace")).hexdigest()
    found = lpjax.calibrate(
        checkpoint, first, second, labels=values, seed=seed,
        progress=lambda done, total: advance(done, total, f"calibrating on {source}"), **options,
    )  # fmt: skip
    provenance = {"model": model, "source": source, "sha256": digest, **run_record(seed)}
    provenance["weights"] = _checksums(checkpoint.params, found.statistics)
    return dataclasses.replace(found, provenance=provenance)


def check_weights(calibration: Calibration, checkpoint: Checkpoint, name: Path) -> None:
    """Refuse the file of another net, or of this one before it was trained further.

    Raises:
        ValueError: naming the first matrix that is another one.
    """
    known = calibration.provenance.get("weights")
    if not isinstance(known, dict):
        return  # not of the command line
    for path, found in _checksums(checkpoint.params, known).items():
        if found != known[path]:
            made = calibration.provenance.get("model", "another net")
            raise ValueError(
                f"{name} was made of {made}, whose {path} is not that of this net; calibrate the net that is to be "
                "compressed, in the same dtype: lpjax calibrate"
            )


def _checksums(params: Any, paths: Collection[str]) -> dict[str, int]:
    """CRC-32 of the matrices at these paths, as far as they are there, and no pairs."""
    from lpjax._tree import walk
    from lpjax.weights.low_rank import is_lowrank

    dense = {path: leaf for path, leaf in walk(params) if path in paths and not is_lowrank(leaf)}
    return {path: zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8).data) for path, leaf in dense.items()}
