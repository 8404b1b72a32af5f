"""`lpjax evaluate`."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lpjax._check import check_whole
from lpjax.cli._common import AsJson, Glue, Model, find_model, misuse, progress


def evaluate(
    model: Model,
    baseline: Annotated[str | None, typer.Option(help="The dense net, to compare with.")] = None,
    task: Annotated[
        str | None,
        typer.Option(help="GLUE task to score the net's head on; default: the one that it was fine-tuned on, if any."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the task.")] = "validation",
    glue: Glue = None,
    text: Annotated[
        Path | None,
        typer.Option(
            help="Text to compare embeddings and outputs of heads on, one sentence a line; default: Python's own "
            "reference."
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    batch_size: Annotated[int, typer.Option(help="Sentences in a batch.")] = 32,
    max_length: Annotated[
        int | None,
        typer.Option(help="Tokens that texts are cut off at; default: 128 for a task, else what the net says."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score a checkpoint on a GLUE task that its head was trained for, or else on STS-B by embeddings, and compare its
    embeddings and its head's outputs with the dense net's."""
    from lpjax.checkpoint import load_checkpoint
    from lpjax.checkpoint.files import read_object
    from lpjax.checkpoint.formats import CONFIG
    from lpjax.checkpoint.stages import net_folder
    from lpjax.evaluation.sentences import compare_outputs, fidelity, stsb
    from lpjax.glue.data import DataError, load_sentences, load_stsb
    from lpjax.glue.labels import own_task
    from lpjax.glue.tasks import find_task
    from lpjax.pipeline.outputs import Embedding, outputs_of

    with misuse():
        if dtype not in ("float32", "bfloat16"):
            raise ValueError(f"--dtype is {dtype!r}; expected float32 or bfloat16")
        check_whole("--batch-size", batch_size, 1)
        if max_length is not None:
            check_whole("--max-length", max_length, 3)
        folder = find_model(model)
        dense_folder = None if baseline is None else find_model(baseline)
        chosen = None if task is None else find_task(task)
        if chosen is not None and text is not None:
            raise ValueError("--text is for embeddings and --task for a head; expected only one of the two")
        sentences = load_sentences(text)
    options: dict[str, Any] = {"dtype": dtype, "batch_size": batch_size, "max_length": max_length}
    if chosen is None and text is None:
        chosen = own_task(read_object(net_folder(folder) / CONFIG))
    if chosen is not None:
        nets = {"result": folder} | ({} if dense_folder is None else {"baseline_result": dense_folder})
        result = {"model": model, "dtype": dtype} | ({} if baseline is None else {"baseline": baseline})
        result |= _score_task(chosen, split, glue, nets, options)
        if as_json:
            print(json.dumps(result))
        else:
            _print_task(result, chosen)
        return
    result: dict[str, Any] = {"model": model, "dtype": dtype}
    # The nets first: data may have to be fetched.
    checkpoint = load_checkpoint(folder)
    dense = None if dense_folder is None else load_checkpoint(dense_folder)
    try:
        if text is not None and not (glue or os.environ.get("LPJAX_GLUE_DIR")):
            raise DataError(
                "not fetched from the hub if --text is given; set LPJAX_GLUE_DIR to a GLUE folder, or pass --glue"
            )
        pairs = load_stsb(glue)
    except DataError as error:
        if glue is not None:
            raise
        if baseline is None:
            raise ValueError(
                f"nothing to score by: {error}; or name the dense net with --baseline to compare without labels"
            ) from None
        pairs = None
        result["stsb_missing"] = str(error)
    with progress() as advance:

        def report(what: str) -> Any:
            return lambda done, total: advance(done, total, what)

        if pairs is not None:
            result["stsb"] = dataclasses.asdict(stsb(checkpoint, pairs, progress=report("STS-B"), **options))
        if dense is not None:
            result["baseline"] = baseline
            result["fidelity"] = dataclasses.asdict(
                fidelity(checkpoint, dense, sentences, progress=report("fidelity"), **options)
            )
            kinds = [outputs_of(net) for net in (checkpoint, dense)]
            if kinds[0] == kinds[1] and not isinstance(kinds[0], Embedding):
                lengths = {} if max_length is None else {"max_length": max_length}
                found = compare_outputs(checkpoint, dense, sentences, batch_size=batch_size, **lengths)
                result["outputs"] = dataclasses.asdict(found)
            elif kinds[0] != kinds[1]:
                result["outputs_missing"] = f"the nets have different heads: {kinds[0].kind} and {kinds[1].kind}"
            if pairs is not None:
                result["baseline_stsb"] = dataclasses.asdict(
                    stsb(dense, pairs, progress=report("STS-B, dense"), **options)
                )
    if as_json:
        print(json.dumps(result))
        return
    _print_scores(result)


def _score_task(task: Any, split: str, glue: Path | None, nets: dict[str, Path], options: dict[str, Any]) -> Any:
    """Scores of each of `nets`, under its key."""
    from lpjax.checkpoint import load_checkpoint
    from lpjax.glue.data import load_examples
    from lpjax.glue.evaluate import check_head, evaluate_task

    loaded = {key: load_checkpoint(folder) for key, folder in nets.items()}
    for net in loaded.values():
        check_head(net, task)
    examples = load_examples(task, split, glue)
    found = {}
    with progress() as advance:

        def report(done: int, total: int) -> None:
            advance(done, total, task.title)

        for key, net in loaded.items():
            scored = evaluate_task(net, examples, progress=report, **options)
            found[key] = dataclasses.asdict(scored) | {"warnings": scored.warnings()}
    return found


def _print_task(result: dict[str, Any], task: Any) -> None:
    found, dense = result["result"], result.get("baseline_result")
    title = f"{task.title}, {escape(found['split'])}, {found['rows']} rows"
    table = Table(title=title, title_justify="left")
    for heading in ("score", result["model"], *([result["baseline"]] if dense else [])):
        table.add_column(escape(heading), justify="left" if heading == "score" else "right", overflow="fold")
    for name in task.metrics:
        table.add_row(name, *(f"{one['metrics'][name]:.4f}" for one in (found, dense) if one))
    table.add_row("tokens a second", *(f"{one['tokens_per_second']:,.0f}" for one in (found, dense) if one))
    if not found["complete"]:
        table.caption = "a subset: no GLUE score"
    console = Console()
    console.print(table)
    nets = [(result["model"], found)] + ([(result["baseline"], dense)] if dense else [])
    notes = {name: one["warnings"] for name, one in nets}
    if dense and notes[result["model"]] == notes[result["baseline"]]:
        notes = {"both nets": found["warnings"]}
    for name, lines in notes.items():
        for line in lines:
            console.print(f"{name}: {line}", highlight=False, markup=False, soft_wrap=True)


def _print_scores(result: dict[str, Any]) -> None:
    console = Console()
    if "stsb" not in result:
        console.print(f"STS-B: not found ({result['stsb_missing']})", highlight=False, markup=False, soft_wrap=True)
    table = Table()
    for heading in ("score", result["model"], *(["baseline"] if "baseline" in result else [])):
        table.add_column(heading, justify="left" if heading == "score" else "right", overflow="fold")
    for key in ("spearman", "pearson"):
        if "stsb" in result:
            dense = [f"{result['baseline_stsb'][key]:.4f}"] if "baseline_stsb" in result else []
            table.add_row(f"STS-B dev {key.capitalize()}", f"{result['stsb'][key]:.4f}", *dense)
    if "fidelity" in result:
        found = result["fidelity"]
        table.add_row("mean cosine with the baseline", f"{found['mean_cosine']:.4f}", "1")
        table.add_row("Spearman with its similarities", f"{found['spearman']:.4f}", "1")
    if "outputs" in result:
        found = result["outputs"]
        table.add_row(f"divergence of its {found['kind']}", f"{found['divergence']:.5f}", "0")
        if found["agreement"] is not None:
            table.add_row(f"agreement of its {found['kind']}", f"{found['agreement']:.4f}", "1")
    speed = result["stsb" if "stsb" in result else "fidelity"]["tokens_per_second"]
    table.add_row("tokens a second", f"{speed:,.0f}", *([""] if "baseline" in result else []))
    console.print(table)
    lines = [f"outputs: not compared, {result['outputs_missing']}"] if "outputs_missing" in result else []
    if result.get("outputs", {}).get("truncated"):
        found = result["outputs"]
        lines.append(f"outputs: {found['truncated']} of {found['texts']} texts cut off at {found['max_length']} tokens")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
