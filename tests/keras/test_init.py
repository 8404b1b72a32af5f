"""What `import lpjax` and `import lpjax.keras` need and bring."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("keras")


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | environment
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=variables)


def test_keras_is_imported_only_when_asked_for():
    code = "import sys, lpjax\nlpjax.compress\nassert 'keras' not in sys.modules\nlpjax.keras.from_keras\n"
    done = run(f"{code}assert 'keras' in sys.modules and 'keras_hub' not in sys.modules")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("numpy", "`lpjax.keras` needs Keras on JAX, but it runs on numpy"),
        ("tensorflow", "tensorflow"),  # installed or not
    ],
)
def test_another_backend_is_refused(backend, message):
    done = run("import lpjax.keras", KERAS_BACKEND=backend)
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert error.startswith("ImportError: ")
    assert message in error
    assert 'KERAS_BACKEND to "jax" before Keras is imported' in error
