"""What `import lpjax` and `import lpjax.flax` need and bring."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
import lpjax
assert "flax" not in sys.modules
sys.modules["flax"] = None  # as if it were not installed
try:
    import lpjax.flax
except ModuleNotFoundError as error:
    assert str(error) == "`lpjax.flax` needs flax: pip install 'lpjax[flax]'"
    assert error.__cause__ is None and error.__suppress_context__
else:
    raise AssertionError
del sys.modules["flax"]
import lpjax.flax
assert lpjax.flax.apply and lpjax.flax.factored and lpjax.flax.input_axes and lpjax.flax.compress_nnx
"""


def test_flax_is_imported_only_when_asked_for():
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)
