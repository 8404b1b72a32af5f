# The public names in the order of the data flow. `__init__.py` reads them here and imports each on first use.
# ruff: noqa: I001

# A checkpoint and its model
from lpjax.checkpoint import load_checkpoint as load_checkpoint
from lpjax.checkpoint import from_tree as from_tree
from lpjax.checkpoint import Checkpoint as Checkpoint
from lpjax.checkpoint import CheckpointError as CheckpointError
from lpjax.models import config_from_json as config_from_json
from lpjax.models import encode as encode
from lpjax.models import classify as classify
from lpjax.models import fill_mask as fill_mask

# What it holds
from lpjax.inspection import inspect_params as inspect_params
from lpjax.inspection import Inspection as Inspection
from lpjax.inspection import LeafRecord as LeafRecord
from lpjax.inspection import KeepRecord as KeepRecord
from lpjax.select import select_paths as select_paths
from lpjax.select import rank_for as rank_for

# What matters, by text
from lpjax.weighting import calibrate as calibrate
from lpjax.weighting import save_calibration as save_calibration
from lpjax.weighting import load_calibration as load_calibration
from lpjax.weighting import Calibration as Calibration
from lpjax.weighting import Statistics as Statistics
from lpjax.weighting import WEIGHTINGS as WEIGHTINGS
from lpjax.weighting import Weighting as Weighting

# What each layer gets
from lpjax.compression import Plan as Plan
from lpjax.compression import Choice as Choice
from lpjax.compression import uniform_plan as uniform_plan
from lpjax.compression import save_plan as save_plan
from lpjax.compression import load_plan as load_plan
from lpjax.allocation import allocate as allocate
from lpjax.allocation import plan_for_size as plan_for_size
from lpjax.allocation import predict_sizes as predict_sizes
from lpjax.allocation import PredictedSize as PredictedSize
from lpjax.compression import measure_break_even as measure_break_even
from lpjax.compression import BreakEven as BreakEven
from lpjax.evaluation import Divergence as Divergence

# A smaller model
from lpjax.compression import compress as compress
from lpjax.compression import Compressed as Compressed
from lpjax.compression import LayerRecord as LayerRecord
from lpjax.compression import compress_weights as compress_weights
from lpjax.compression import CompressedWeights as CompressedWeights
from lpjax.compression import WeightRecord as WeightRecord
from lpjax.compression import WeightKind as WeightKind
from lpjax.weights import LowRank as LowRank
from lpjax.weights import Quantized as Quantized
from lpjax.weights import densify as densify
from lpjax.weights import matmul as matmul
from lpjax.weights import take_rows as take_rows

# One matrix
from lpjax.solvers import SOLVERS as SOLVERS
from lpjax.solvers import svd as svd
from lpjax.solvers import lewis as lewis
from lpjax.solvers import lowner as lowner
from lpjax.solvers import irls_rows as irls_rows
from lpjax.solvers import irls_entries as irls_entries
from lpjax.solvers import admm_entries as admm_entries
from lpjax.solvers import certify as certify
from lpjax.solvers import partial_gaps as partial_gaps
from lpjax.solvers import Solution as Solution
from lpjax.solvers import PartialGaps as PartialGaps
from lpjax.solvers import Ellipsoid as Ellipsoid
from lpjax.objectives import lp_norm as lp_norm
from lpjax.objectives import lower_bound as lower_bound
from lpjax.objectives import operator_bound as operator_bound
from lpjax.objectives import entries_bound as entries_bound

# What it becomes
from lpjax.training import recover as recover
from lpjax.training import Recovery as Recovery
from lpjax.training import Recovered as Recovered
from lpjax.training import finetune as finetune
from lpjax.compression import record_files as record_files
from lpjax.checkpoint import save_checkpoint as save_checkpoint
from lpjax.checkpoint import export_checkpoint as export_checkpoint
from lpjax.export import export_program as export_program

# Packages with further names
from lpjax import checkpoint as checkpoint
from lpjax import export as export
from lpjax import models as models
from lpjax import data as data
from lpjax import pipeline as pipeline
from lpjax import inspection as inspection
from lpjax import select as select
from lpjax import weighting as weighting
from lpjax import compression as compression
from lpjax import allocation as allocation
from lpjax import weights as weights
from lpjax import solvers as solvers
from lpjax import objectives as objectives
from lpjax import evaluation as evaluation
from lpjax import training as training
from lpjax import glue as glue
from lpjax import report as report
from lpjax import flax as flax
from lpjax import keras as keras

__all__: list[str]
__version__: str
