"""Optional packages: the error for a missing one names the extra that installs it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

EXTRAS: dict[str, dict[str, str]] = {
    "glue": {"datasets": "datasets", "pyarrow": "pyarrow", "evaluate": "evaluate", "sklearn": "scikit-learn"},
    "report": {"matplotlib": "matplotlib", "jinja2": "jinja2"},
    "flax": {"flax": "flax"},
    "onnx": {"onnx": "onnx"},
    "keras": {"keras": "keras"},
    "sentencepiece": {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"},
}
"""extra -> module -> package that provides it; pyarrow comes with datasets."""

_ADVICE = "TRANSFORMERS_NO_ADVISORY_WARNINGS"


class MissingExtra(ModuleNotFoundError):
    """An optional package is not installed."""


def require(extra: str, needed_by: str, *modules: str) -> None:
    """Require optional packages. Nothing is imported, so it can be called before any work.

    Args:
        extra: key of `EXTRAS`.
        needed_by: name of the feature that needs them, for the message.
        modules: modules of the extra; by default all of them.

    Raises:
        MissingExtra: packages are missing; names them and the extra.
    """
    packages = EXTRAS[extra]
    missing = [module for module in modules or packages if not _is_installed(module)]
    if missing:
        names = " and ".join(packages[module] for module in missing)
        raise MissingExtra(f"{needed_by} needs {names}: pip install 'lpjax[{extra}]'", name=missing[0]) from None


@contextmanager
def without_advice() -> Iterator[None]:
    """Suppress the warning of transformers at its import that PyTorch is not installed."""
    before = _ADVICE in os.environ
    os.environ.setdefault(_ADVICE, "1")
    try:
        yield
    finally:
        if not before:
            del os.environ[_ADVICE]


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is not installed
        return False
