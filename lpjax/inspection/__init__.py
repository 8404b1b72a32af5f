"""What a params tree holds, leaf by leaf, and what factoring would take."""

from lpjax.inspection._inspect import Inspection as Inspection
from lpjax.inspection._inspect import KeepRecord as KeepRecord
from lpjax.inspection._inspect import Kind as Kind
from lpjax.inspection._inspect import LeafRecord as LeafRecord
from lpjax.inspection._inspect import inspect_params as inspect_params
from lpjax.inspection._inspect import kinds_of as kinds_of
from lpjax.inspection._inspect import roots_of_gram as roots_of_gram
from lpjax.inspection._inspect import singular_values as singular_values
from lpjax.inspection._inspect import tied_paths as tied_paths
