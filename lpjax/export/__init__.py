"""Checkpoints as programs of other runtimes: traced by JAX, and written as ONNX or StableHLO."""

from lpjax.export.program import Program as Program
from lpjax.export.program import program_of as program_of
from lpjax.export.table import DENSE as DENSE
from lpjax.export.table import RUNTIMES as RUNTIMES
from lpjax.export.table import TARGETS as TARGETS
from lpjax.export.table import export_program as export_program
