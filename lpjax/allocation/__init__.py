"""Division of one budget among all matrices of a model."""

from lpjax.allocation._allocate import Allocation as Allocation
from lpjax.allocation._allocate import allocate as allocate
from lpjax.allocation._allocate import check_allocation as check_allocation
from lpjax.allocation._allocate import require_budget as require_budget
from lpjax.allocation._bytes import plan_for_size as plan_for_size
from lpjax.allocation._predicted import PredictedSize as PredictedSize
from lpjax.allocation._predicted import predict_sizes as predict_sizes
from lpjax.allocation._size import check_size as check_size
from lpjax.allocation._size import parse_size as parse_size
from lpjax.allocation.request import Request as Request
