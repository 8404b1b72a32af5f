"""Statistics of a params tree, leaf by leaf, and the rank that each `keep` gives."""

from lpjax.inspection.kinds import Kind as Kind
from lpjax.inspection.kinds import kinds_of as kinds_of
from lpjax.inspection.leaves import inspect_params as inspect_params
from lpjax.inspection.leaves import tied_paths as tied_paths
from lpjax.inspection.numerics import roots_of_gram as roots_of_gram
from lpjax.inspection.numerics import singular_values as singular_values
from lpjax.inspection.records import Inspection as Inspection
from lpjax.inspection.records import KeepRecord as KeepRecord
from lpjax.inspection.records import LeafRecord as LeafRecord
from lpjax.inspection.tables import inspection_document as inspection_document
from lpjax.inspection.tables import inspection_tables as inspection_tables
