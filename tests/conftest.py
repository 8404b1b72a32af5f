"""Strict settings for every test, the x64 switch, and a tiny checkpoint on disk for tests to damage."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jaxtyping import install_import_hook
from safetensors.numpy import load_file, save_file

import tests._shapes
from tests._covering import in_part, mark_other_models_slow, mark_the_rest_slow
from tests._long import Stopwatch, mark_long

pytest_plugins = ["tests.helpers.compressed"]

# Shapes in signatures are checked at run time, under the tests only, in all modules but a few: the pytree of a problem
# also holds specs of its sharding where its annotations say arrays, the objectives refuse shapes themselves, and Keras
# reads the signatures of its layers, which the checks hide.
_PACKAGE = Path(__file__).parents[1] / "lpjax"
_MODULES = {".".join(("lpjax", *path.relative_to(_PACKAGE).with_suffix("").parts)) for path in _PACKAGE.rglob("*.py")}
_MODULES -= {"lpjax.solvers._core.problem", "lpjax.objectives", "lpjax.keras._layers", "lpjax.keras._saving"}
_CHECKED = sorted(name for name in _MODULES if not name.endswith(".__init__"))
_hook = install_import_hook(_CHECKED, f"{tests._shapes.__name__}.check_arrays")

os.environ.setdefault("KERAS_BACKEND", "jax")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Compiling is two thirds of what the tests take. XLA's older emitters do it in half of the time, and small programs
# need not be split. Only this process has these flags, not what tests start. With `--default-flags` it has none, as in
# `make test-all`. XLA ends a process whose flags it does not know, and names them.
_FLAGS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


def pytest_configure(config: pytest.Config) -> None:
    """Have XLA read its flags, which it does once."""
    if config.getoption("--write-long") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Stopwatch())
    starts_workers = config.getoption("numprocesses", None) and not hasattr(config, "workerinput")
    if starts_workers or config.getoption("--default-flags") or "XLA_FLAGS" in os.environ:
        return
    os.environ["XLA_FLAGS"] = _FLAGS
    jax.devices()
    del os.environ["XLA_FLAGS"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the Makefile's targets."""
    parser.addoption("--slow-part", metavar="K/N", help="of the slow tests, run only part K of N")
    parser.addoption("--long-part", metavar="K/N", help="of the long tests, run only part K of N")
    parser.addoption("--write-long", action="store_true", help="list the cases that take long in tests/long.txt")
    parser.addoption("--default-flags", action="store_true", help="let XLA emit code as it does for users")


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    mark_the_rest_slow(items)
    mark_other_models_slow(items)
    mark_long(items)
    for mark in ("slow", "long"):
        part = config.getoption(f"--{mark}-part")
        if part is not None:
            items[:] = [item for item in items if item.get_closest_marker(mark) is None or in_part(item.nodeid, part)]


@pytest.fixture(autouse=True, scope="module")
def free_compiled() -> Iterator[None]:
    """Every compiled function takes memory maps, of which a process may have but 65,530: forget them in time.

    Not before, for modules share programs.
    """
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > 25_000:
        _forget_compiled()


def _forget_compiled() -> None:
    from lpjax.compression import program  # not above, where the hook is not yet installed

    jax.clear_caches()
    program._compile.cache_clear()


@pytest.fixture(autouse=True)
def no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is taken to answer, and not asked: tests put what they want in the place of what fetches from it."""
    monkeypatch.setattr("lpjax._files.hub._probed", lambda: None)


@pytest.fixture(autouse=True, scope="module")
def quick_compilations(request: pytest.FixtureRequest) -> None:
    """Most programs of tests take longer to compile than to run; a module with the mark `optimized` holds what the
    programs take, or the numerics of those that users run."""
    quick = request.node.get_closest_marker("optimized") is None
    if quick != jax.config.read("jax_disable_most_optimizations"):
        _forget_compiled()
        jax.config.update("jax_disable_most_optimizations", quick)


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision for one test."""
    before = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both precisions; x64 is on for float64 only."""
    before = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", request.param == "float64")
    yield request.param
    jax.config.update("jax_enable_x64", before)


GOLDENS = Path(__file__).parent / "goldens"

Edit = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dense BERT with pooler, as transformers saved it, with the side files of a sentence encoder."""
    target = tmp_path / "dense"
    target.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(GOLDENS / "bert_base" / name, target / name)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij", *(f"##{c}" for c in "abcdefghij")]
    (target / "vocab.txt").write_text("\n".join(words))
    (target / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    stages = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modules = [{"path": path, "type": f"sentence_transformers.models.{name}"} for path, name in stages]
    (target / "modules.json").write_text(json.dumps(modules))
    (target / "1_Pooling").mkdir()
    (target / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    (target / "1_Pooling" / "pytorch_model.bin").write_bytes(b"\x80\x04")  # never read, but copied with its stage
    # What must never be copied.
    (target / "pytorch_model.bin").write_bytes(b"\x80\x04")
    (target / "onnx").mkdir()
    (target / "onnx" / "model.onnx").write_bytes(b"onnx")
    return target


@pytest.fixture
def edit_weights(folder: Path) -> Edit:
    """Change the tensors of the checkpoint in place: `edit_weights(lambda tensors: ...)`."""

    def edit(change: Callable[[dict[str, np.ndarray]], Any]) -> Path:
        path = folder / "model.safetensors"
        tensors = {name: array.copy() for name, array in load_file(path).items()}
        changed = change(tensors)
        save_file(tensors if changed is None else changed, path, metadata={"format": "pt"})
        return folder

    return edit


@pytest.fixture
def edit_config(folder: Path) -> Edit:
    """Set keys of config.json; None removes one."""

    def edit(**changes: Any) -> Path:
        path = folder / "config.json"
        data = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))
        return folder

    return edit


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command line in this process, offline: (exit status, stdout, stderr)."""
    from lpjax import cli  # late, for the import hook above

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lpjax", *map(str, arguments)])
        try:
            cli.main()
            status = 0
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
        out = capsys.readouterr()
        assert "Traceback" not in out.out + out.err
        return status, out.out, out.err

    return call
