"""One budget for all matrices of a net, shared out."""

from lpjax.allocation._allocate import Allocation as Allocation
from lpjax.allocation._allocate import allocate as allocate
from lpjax.allocation._allocate import check_allocation as check_allocation
from lpjax.allocation._allocate import require_budget as require_budget
from lpjax.allocation.request import Request as Request
