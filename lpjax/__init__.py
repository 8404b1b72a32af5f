"""Robust ℓp low-rank compression of transformer checkpoints in JAX.

checkpoint ──load──▶ params ──select──▶ matrices ──solve──▶ LowRank leaves ──▶ evaluate, save
"""

import os as _os
from importlib import import_module as _import_module
from importlib.metadata import version as _version
from typing import Any as _Any

# JAX's LAPACK is SciPy's OpenBLAS, whose idle threads spin for 2²⁶ cycles by default and take the cores from XLA's
# after every small factorization. 2¹⁸ cycles do. Read when SciPy loads, hence before JAX is imported.
_os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "18")

from lpjax.allocate import allocate as allocate
from lpjax.break_even import BreakEven as BreakEven
from lpjax.break_even import measure_break_even as measure_break_even
from lpjax.calibrate import calibrate as calibrate
from lpjax.calibration import Calibration as Calibration
from lpjax.calibration import Statistics as Statistics
from lpjax.checkpoint import Checkpoint as Checkpoint
from lpjax.checkpoint import CheckpointError as CheckpointError
from lpjax.checkpoint import export_checkpoint as export_checkpoint
from lpjax.checkpoint import from_tree as from_tree
from lpjax.checkpoint import load_checkpoint as load_checkpoint
from lpjax.checkpoint import save_checkpoint as save_checkpoint
from lpjax.compress import Compressed as Compressed
from lpjax.compress import LayerRecord as LayerRecord
from lpjax.compress import compress as compress
from lpjax.divergence import Divergence as Divergence
from lpjax.inspect import Inspection as Inspection
from lpjax.inspect import KeepRecord as KeepRecord
from lpjax.inspect import LeafRecord as LeafRecord
from lpjax.inspect import inspect_params as inspect_params
from lpjax.lowrank import LowRank as LowRank
from lpjax.lowrank import densify as densify
from lpjax.lowrank import matmul as matmul
from lpjax.lowrank import take_rows as take_rows
from lpjax.models import classify as classify
from lpjax.models import config_from_json as config_from_json
from lpjax.models import encode as encode
from lpjax.models import fill_mask as fill_mask
from lpjax.objectives import entries_bound as entries_bound
from lpjax.objectives import lower_bound as lower_bound
from lpjax.objectives import lp_norm as lp_norm
from lpjax.objectives import operator_bound as operator_bound
from lpjax.plan import Choice as Choice
from lpjax.plan import Plan as Plan
from lpjax.recover import Recovered as Recovered
from lpjax.recover import Recovery as Recovery
from lpjax.recover import recover as recover
from lpjax.select import rank_for as rank_for
from lpjax.select import select_paths as select_paths
from lpjax.solvers import SOLVERS as SOLVERS
from lpjax.solvers import Ellipsoid as Ellipsoid
from lpjax.solvers import Solution as Solution
from lpjax.solvers import admm_entries as admm_entries
from lpjax.solvers import irls_entries as irls_entries
from lpjax.solvers import irls_rows as irls_rows
from lpjax.solvers import lewis as lewis
from lpjax.solvers import lowner as lowner
from lpjax.solvers import svd as svd
from lpjax.weighting import WEIGHTINGS as WEIGHTINGS
from lpjax.weighting import Weighting as Weighting


def __getattr__(name: str) -> _Any:
    # On first use: flax is an optional dependency, and both are slow to import.
    if name in ("flax", "report"):
        return _import_module(f"lpjax.{name}")
    raise AttributeError(f"module 'lpjax' has no attribute {name!r}")


__version__ = _version("lpjax")
