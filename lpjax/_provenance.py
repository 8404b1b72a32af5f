"""Provenance of a run: seed, versions and machine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lpjax.solvers import SOLVERS

_PACKAGES = ("lpjax", "jax", "jaxlib", "numpy", "scipy", "transformers", "safetensors")


def run_record(seed: int | None, *packages: str) -> dict[str, Any]:
    """Seed, versions and machine of this run, for reproduction, without personal data.

    Args:
        seed: seed of the random numbers, or None if there were none.
        packages: further packages whose versions to record, if installed.
    """
    import jax

    versions = {"python": platform.python_version()}
    for package in (*_PACKAGES, *packages):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    device = jax.devices()[0]
    return {
        "seed": seed,
        "versions": versions,
        "machine": {
            "system": platform.system(),
            "architecture": platform.machine(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "device": f"{device.platform}: {device.device_kind}",
            "devices": jax.device_count(),
        },
    }


def method_label(method: str, p: float | None) -> str:
    """The method, with its exponent if the method depends on it."""
    unused = p is None or (method in SOLVERS and not SOLVERS[method].uses_p)
    return method if unused else f"{method}, p = {p:g}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
