"""What needs an optional package says which extra installs it; all else works without."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lpjax._extras import EXTRAS

PYPROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
BLOCKED = "import sys\nfor name in {names!r}: sys.modules[name] = None  # as if it were not installed\n"


def run_without(code: str, *extras: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh process that has none of the packages of `extras`, by default of all."""
    names = [module for extra in extras or EXTRAS for module in EXTRAS[extra]]
    program = BLOCKED.format(names=names) + code
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_extras_are_those_of_the_project():
    project = PYPROJECT["project"]
    listed = {
        extra: [requirement.split(">=")[0] for requirement in requirements]
        for extra, requirements in project["optional-dependencies"].items()
    }
    everything = listed.pop("all")
    assert everything == [f"lpjax[{','.join(extra for extra in listed if extra != 'keras')}]"]
    assert {extra: [name for name in packages.values() if name != "pyarrow"] for extra, packages in EXTRAS.items()} == (
        listed
    )
    core = {requirement.split(">=")[0] for requirement in project["dependencies"]}
    assert not core & {package for packages in EXTRAS.values() for package in packages.values()}
    assert "lpjax[all]" in PYPROJECT["dependency-groups"]["dev"]


@pytest.mark.parametrize(
    ("extra", "code", "message"),
    [
        ("glue", "lpjax.glue.score('rte', [1], [1])", "`lpjax.glue.score` needs scikit-learn: pip install"),
        ("glue", "lpjax.glue.glue_metric('rte')", "`lpjax.glue.glue_metric` needs datasets and pyarrow and evaluate"),
        ("glue", "lpjax.glue.load_examples('rte')", "RTE from the hub needs datasets: pip install"),
        ("report", "lpjax.report.write_report('page.html', ['run'])", "needs matplotlib and jinja2: pip install"),
        ("report", "lpjax.report.plot_results('a.png', [], score='', dense=1)", "needs matplotlib: pip install"),
        ("flax", "lpjax.flax.apply", "`lpjax.flax` needs flax: pip install"),
        ("keras", "lpjax.keras.from_keras", "`lpjax.keras` needs keras: pip install"),
    ],
)
def test_what_needs_a_package_names_its_extra(extra, code, message, monkeypatch):
    monkeypatch.delenv("LPJAX_GLUE_DIR", raising=False)
    done = run_without(f"import lpjax\n{code}", extra)
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert message in error
    assert f"pip install 'lpjax[{extra}]'" in error


def test_the_rest_works_without_any(folder, tmp_path):
    """Every name but those of Flax and Keras, and the commands: a compressed checkpoint is made and inspected."""
    out = tmp_path / "small"
    code = f"""
import lpjax
for name in lpjax.__all__:
    if name not in ("flax", "keras"):
        getattr(lpjax, name)
from lpjax.cli import main
def run(*arguments):
    sys.argv = ["lpjax", *arguments]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, (arguments, stop.code)
run("compress", {str(folder)!r}, {str(out)!r}, "--keep", "0.6", "--json")
run("inspect", {str(out)!r}, "--json")
run("evaluate", {str(out)!r}, "--baseline", {str(folder)!r})
"""
    done = run_without(code)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[0])
    assert (out / "config.json").exists()


@pytest.mark.parametrize(
    "arguments", [("report", "run"), ("inspect", "net", "--plot", "a.png"), ("compress", "net", "out", "--report")]
)
def test_a_command_that_needs_a_package_ends_with_a_line(arguments, folder, tmp_path):
    """Before any work: nothing is written."""
    arguments = [str(folder) if argument in ("run", "net") else argument for argument in arguments]
    code = f"""
import os
from lpjax.cli import main
os.chdir({str(tmp_path)!r})
sys.argv = {["lpjax", *arguments]!r}
main()
"""
    done = run_without(code, "report")
    assert (done.returncode, done.stdout) == (1, "")
    assert "pip install 'lpjax[report]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]
