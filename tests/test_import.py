"""`import lpjax` loads next to nothing, and every public name is there all the same."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import lpjax

SLOW = (
    "jax",
    "numpy",
    "scipy",
    "optax",
    "datasets",
    "transformers",
    "matplotlib",
    "sklearn",
    "huggingface_hub",
    "keras",
)


def loaded_after(code: str) -> set[str]:
    """The modules that a fresh process has loaded once it ran `code`."""
    ask = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout.splitlines()[-1]))


def test_importing_loads_nothing_slow():
    assert not loaded_after("import lpjax").intersection(SLOW)


def test_using_every_name_loads_neither_datasets_nor_transformers_nor_matplotlib():
    """But those of Keras, which an environment may lack."""
    loaded = loaded_after("import lpjax\nfor name in lpjax.__all__: name == 'keras' or getattr(lpjax, name)")
    assert "jax" in loaded
    assert not loaded.intersection(("datasets", "transformers", "matplotlib", "sklearn", "keras"))


def test_a_public_name_is_the_one_of_its_module():
    from lpjax.compression import compress
    from lpjax.glue.metrics import score

    assert lpjax.compress is compress
    assert lpjax.glue.score is score
    assert lpjax.report.write_report
    assert set(dir(lpjax)) == set(lpjax.__all__)
    assert {"compress", "load_checkpoint", "glue", "flax", "report", "training"} <= set(dir(lpjax))
    assert not [name for name in dir(lpjax) if name.startswith("_") and name != "__version__"]
    with pytest.raises(AttributeError, match="has no attribute 'compres'"):
        _ = lpjax.compres  # pyright: ignore[reportAttributeAccessIssue]


def test_the_stub_imports_each_name_once_and_under_its_own_name():
    tree = ast.parse(Path(f"{lpjax.__file__}i").read_text(encoding="utf-8"))
    names = [alias for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert all(alias.name == alias.asname for alias in names)
    assert len({alias.name for alias in names}) == len(names)
