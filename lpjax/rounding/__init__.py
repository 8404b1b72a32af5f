"""Rounding of matrices to integers times scales, with a small weighted error.

As everywhere in lpjax, errors of W are ‖H^{1/2} (W − Ŵ) G^{1/2}‖², with metrics H of rows and G of columns.
"""

from lpjax.rounding.feedback import Lattice as Lattice
from lpjax.rounding.feedback import round_with_feedback as round_with_feedback
from lpjax.rounding.groups import round_groups as round_groups
from lpjax.rounding.kernels import round_kernel as round_kernel
from lpjax.rounding.pairs import DEAD_ZONE as DEAD_ZONE
from lpjax.rounding.pairs import factors_of as factors_of
from lpjax.rounding.pairs import rotation as rotation
from lpjax.rounding.pairs import round_pair as round_pair
from lpjax.rounding.pairs import round_pair_groups as round_pair_groups
from lpjax.rounding.triangle import DAMPING as DAMPING
from lpjax.rounding.triangle import Triangle as Triangle
from lpjax.rounding.triangle import triangle_of as triangle_of
from lpjax.rounding.triangle import under_metric as under_metric
