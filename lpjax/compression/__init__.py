"""Compress a tree of params as a plan says, and record the outcome for each leaf."""

from lpjax.compression._compress import Compressed as Compressed
from lpjax.compression._compress import compress as compress
from lpjax.compression.latency import BreakEven as BreakEven
from lpjax.compression.latency import break_even_document as break_even_document
from lpjax.compression.latency import measure_break_even as measure_break_even
from lpjax.compression.latency import read_break_even as read_break_even
from lpjax.compression.outcome import Outcome as Outcome
from lpjax.compression.outcome import outcome_of as outcome_of
from lpjax.compression.plan import Choice as Choice
from lpjax.compression.plan import Plan as Plan
from lpjax.compression.plan import check_method as check_method
from lpjax.compression.plan import check_only_plan as check_only_plan
from lpjax.compression.plan import check_sparse_share as check_sparse_share
from lpjax.compression.plan import check_uniform as check_uniform
from lpjax.compression.plan import load_plan as load_plan
from lpjax.compression.plan import save_plan as save_plan
from lpjax.compression.plan import uniform_plan as uniform_plan
from lpjax.compression.record import RECORD as RECORD
from lpjax.compression.record import LayerRecord as LayerRecord
from lpjax.compression.record import Record as Record
from lpjax.compression.record import Step as Step
from lpjax.compression.record import read_record as read_record
from lpjax.compression.record import record_files as record_files
from lpjax.compression.record import record_of as record_of
from lpjax.compression.record import record_text as record_text
from lpjax.compression.tasks import require_finite as require_finite
