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

from lpjax.allocation import allocate as allocate
from lpjax.checkpoint import Checkpoint as Checkpoint
from lpjax.checkpoint import CheckpointError as CheckpointError
from lpjax.checkpoint import export_checkpoint as export_checkpoint
from lpjax.checkpoint import from_tree as from_tree
from lpjax.checkpoint import load_checkpoint as load_checkpoint
from lpjax.checkpoint import save_checkpoint as save_checkpoint
from lpjax.compression import Compressed as Compressed
from lpjax.compression import LayerRecord as LayerRecord
from lpjax.compression import compress as compress
from lpjax.compression.latency import BreakEven as BreakEven
from lpjax.compression.latency import measure_break_even as measure_break_even
from lpjax.compression.plan import Choice as Choice
from lpjax.compression.plan import Plan as Plan
from lpjax.evaluation.divergence import Divergence as Divergence
from lpjax.inspection import Inspection as Inspection
from lpjax.inspection import KeepRecord as KeepRecord
from lpjax.inspection import LeafRecord as LeafRecord
from lpjax.inspection import inspect_params as inspect_params
from lpjax.models import classify as classify
from lpjax.models import config_from_json as config_from_json
from lpjax.models import encode as encode
from lpjax.models import fill_mask as fill_mask
from lpjax.objectives import entries_bound as entries_bound
from lpjax.objectives import lower_bound as lower_bound
from lpjax.objectives import lp_norm as lp_norm
from lpjax.objectives import operator_bound as operator_bound
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
from lpjax.training import Recovered as Recovered
from lpjax.training import Recovery as Recovery
from lpjax.training import recover as recover
from lpjax.weighting import calibrate as calibrate
from lpjax.weighting.statistics import Calibration as Calibration
from lpjax.weighting.statistics import Statistics as Statistics
from lpjax.weighting.weightings import WEIGHTINGS as WEIGHTINGS
from lpjax.weighting.weightings import Weighting as Weighting
from lpjax.weights.low_rank import LowRank as LowRank
from lpjax.weights.low_rank import densify as densify
from lpjax.weights.low_rank import matmul as matmul
from lpjax.weights.low_rank import take_rows as take_rows


def __getattr__(name: str) -> _Any:
    # On first use: flax is an optional dependency, and both are slow to import.
    if name in ("flax", "report"):
        return _import_module(f"lpjax.{name}")
    raise AttributeError(f"module 'lpjax' has no attribute {name!r}")


__version__ = _version("lpjax")
