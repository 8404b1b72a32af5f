"""`lpjax compress --weights-only`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from lpjax._files.json import exponent_text
from lpjax.cli._errors import Misuse, misuse
from lpjax.cli._nets import split_patterns
from lpjax.cli._output import progress, show, sizes

_OPTIONS = ("layers", "keep", "rank", "method", "p", "num_iters", "tol")
_TAKEN = {"model", "out", "weights_only", *_OPTIONS, "force", "as_json"}


def compress_weights_only(context: typer.Context, options: dict[str, Any]) -> None:
    """Factor the matrices of any safetensors checkpoint; `options` are the solver's."""
    from lpjax.checkpoint import check_target, read_shards
    from lpjax.checkpoint.source import find_model
    from lpjax.compression import choose_weights, write_weights
    from lpjax.compression.plan import check_uniform
    from lpjax.report.tables import kinds_table

    params = context.params
    for name in params:
        source = context.get_parameter_source(name)
        if name not in _TAKEN and source is not None and source.name != "DEFAULT":
            only = ", ".join(f"`{option}`" for option in _OPTIONS)
            raise Misuse(f"`{name}` does not go with `weights_only`, which runs no model; expected only {only}")
    model, out, force = str(params["model"]), Path(params["out"]), bool(params["force"])
    goal = {"keep": params["keep"], "rank": params["rank"], "solver": params["method"], "p": params["p"]}
    with misuse():
        check_uniform(**goal, **options)
        check_target(out, None, force)
        folder = find_model(model, any_net=True)
    shards = read_shards(folder)
    with misuse():
        check_target(out, shards.source, force)
        patterns = None if params["layers"] is None else split_patterns(params["layers"])
        layers = choose_weights(shards, patterns, **goal)
    with progress() as advance:
        made = write_weights(shards, layers, out, model=model, overwrite=force, progress=advance, options=options)
    kinds = [vars(kind) for kind in made.kinds]
    result = {"model": model, "out": str(out), "method": made.method, "p": exponent_text(made.p), "kinds": kinds}
    saved = f"{sizes(made.bytes_before, made.bytes_after)} as factors, in {out / 'factors'}; multiplied out in {out}"
    result |= {"bytes_before": made.bytes_before, "bytes_after": made.bytes_after}
    show(params["as_json"], result, kinds_table(made), saved)
