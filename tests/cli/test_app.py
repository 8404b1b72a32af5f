"""The command line as a whole: what it loads, how it finds commands, their help, and completion by shells."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest
import typer

from lpjax import cli
from lpjax.cli import _options
from lpjax.cli._app import make_app
from lpjax.cli.compress import compress
from lpjax.select import GROUPS
from lpjax.training import Recovery, Settings
from tests.conftest import Command

COMMANDS = ["bench", "calibrate", "compress", "evaluate", "export", "finetune", "inspect", "push", "quantize",
            "recover", "report"]  # fmt: skip


def in_new_process(*arguments: str, **environment: str) -> str:
    """What a command line prints in a process of its own, and then the modules that it loaded, as JSON."""
    code = (
        "import json, sys\nfrom lpjax.cli import main\ntry:\n main()\nexcept SystemExit as stop:\n assert not stop.code"
    )
    code += "\nprint(json.dumps(sorted(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return run.stdout


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_and_version_load_no_jax(arguments: list[str]):
    loaded = json.loads(in_new_process(*arguments).splitlines()[-1])
    assert not {"jax", "numpy", "scipy", "transformers"}.intersection(loaded)


def test_every_command_is_listed_with_one_line(command: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    status, printed, _ = command("--help")
    assert status == 0
    listed = printed[printed.index("Commands") :].splitlines()[1:]
    words = [line.strip("│ ").split()[0] for line in listed if line.startswith("│")]
    assert words == COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_fits_a_screen(command: Command, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setenv("COLUMNS", "80")
    status, printed, _ = command(name, "--help")
    assert status == 0
    assert "Example:" in printed
    assert len(printed.strip().splitlines()) <= 40


def test_names_in_help_are_those_of_the_tables(monkeypatch: pytest.MonkeyPatch):
    """Help is typed by hand, as tables import JAX: it has no other name, and all names unless it ends in "…"."""
    helps: list[tuple[str, str]] = []
    name_of = _options.name_of
    monkeypatch.setattr(
        _options, "name_of", lambda table, help, **more: helps.append((table, help)) or name_of(table, help, **more)
    )
    typer.main.get_command(make_app())
    assert {"lpjax.solvers:SOLVERS", "lpjax.weighting:WEIGHTINGS", "lpjax.export:TARGETS"} <= {*dict(helps)}
    for table, help in helps:
        module, _, name = table.partition(":")
        known = getattr(import_module(module), name)
        words = set(re.findall(r"\w+", help)) - {"Count", "default", "for", "or", "transformers"}
        assert words <= {*(get_args(known) or known)}, table
        assert "…" in help or words == {*(get_args(known) or known)}, table
    layers = inspect.signature(compress, eval_str=True).parameters["layers"].annotation.__metadata__[0].help
    assert {*layers.partition(", …")[0].split(", ")} <= {*GROUPS}


def test_an_unknown_name_is_refused_by_its_option(command: Command):
    status, _, errors = command("compress", "net", "out", "--method", "lewi")
    message = " ".join(errors.replace("│", " ").split())
    assert (status, "`" in message) == (2, False)
    assert "--method is 'lewi'; expected one of svd, lewis," in message


def test_completion_knows_commands_and_options():
    def completed(line: str) -> list[str]:
        words = line.split(" ")
        code = "import sys\nsys.argv = ['lpjax']\nfrom lpjax.cli import main\nmain()"
        variables = {"_LPJAX_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
        run = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | variables, capture_output=True, text=True, check=False
        )
        return run.stdout.split()

    assert completed("lpjax ") == COMMANDS
    assert completed("lpjax re") == ["recover", "report"]
    assert completed("lpjax compress a b --method irls_") == ["irls_entries", "irls_rows"]
    assert completed("lpjax compress a b --weighting g") == ["gauss_newton"]
    assert completed("lpjax compress a b --allocation m") == ["measured", "minimax"]
    assert completed("lpjax compress a b --budget-of ") == ["multiply_adds", "parameters", "time"]
    assert "--calibrate" in completed("lpjax compress a b --cal")
    assert completed("lpjax evaluate a --dtype b") == ["bfloat16"]


def test_a_command_is_one_file(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "greet.py").write_text(
        "from typing import Annotated\n\nfrom lpjax.cli import _options as opt\n"
        "from lpjax.cli._output import show\n\n"
        "EXAMPLE = 'lpjax greet somebody'\n\n\n"
        "def greet(\n"
        "    model: opt.Model, times: Annotated[int, opt.at_least(1, 'How often.')] = 1, as_json: opt.AsJson = False\n"
        ") -> None:\n"
        "    '''Greet a model.'''\n"
        "    if model == 'nobody':\n        raise ValueError(f'`model` is {model}; expected somebody')\n"
        "    show(as_json, {'model': model}, *[f'hello {model}'] * times)\n"
    )
    monkeypatch.setattr(cli, "__path__", [*cli.__path__, str(tmp_path)])
    assert command("greet", "net")[:2] == (0, "hello net\n")
    assert json.loads(command("greet", "net", "--json")[1]) == {"model": "net"}
    assert "Greet a model." in command("--help")[1]
    assert command("greet", "nobody")[::2] == (1, "error: MODEL is nobody; expected somebody\n")
    assert command("greet", "net", "--times", 0)[0] == 2


@pytest.mark.parametrize(("name", "settings"), [("finetune", Settings), ("recover", Recovery)])
def test_defaults_are_those_of_the_library(name: str, settings: Callable[[], Any]):
    defaults = {
        key: parameter.default
        for key, parameter in inspect.signature(vars(import_module(f"lpjax.cli.{name}"))[name]).parameters.items()
    }
    fields = dataclasses.asdict(settings())
    shared = defaults.keys() & fields.keys()
    assert len(shared) > 4
    assert {key: defaults[key] for key in shared} == {key: fields[key] for key in shared}
