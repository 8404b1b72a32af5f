"""Compression of transformer checkpoints in JAX: robust (ℓp) and weighted low-rank factors, and rounding.

checkpoint ──load──▶ params ──select──▶ matrices ──solve──▶ LowRank leaves ──▶ evaluate, save
"""

import ast as _ast
import os as _os
from importlib import import_module as _import_module
from pathlib import Path as _Path
from typing import Any as _Any

# JAX's LAPACK is SciPy's OpenBLAS, whose idle threads spin for 2²⁶ cycles by default and take the cores from XLA's
# after every small factorization. 2¹⁸ cycles are enough. SciPy reads this when it loads, so it is set before JAX is
# imported.
_os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "18")

_MODULES: dict[str, str] = {
    alias.name: str(node.module)
    for node in _ast.parse(_Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    if isinstance(node, _ast.ImportFrom)
    for alias in node.names
}
__all__ = ["__version__", *_MODULES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> _Any:
    # Imported on first use: JAX takes a second to import, and --help does not need it.
    if name == "__version__":
        from importlib.metadata import version

        value: _Any = version("lpjax")
    elif name not in _MODULES:
        raise AttributeError(f"module 'lpjax' has no attribute {name!r}")
    elif (module := _MODULES[name]) == "lpjax":
        return _import_module(f"lpjax.{name}")
    else:
        value = getattr(_import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
