"""What may stand where a dense weight stood, and the functions that dispatch on it."""

from lpjax.weights.low_rank import LowRank as LowRank
from lpjax.weights.low_rank import densify as densify
from lpjax.weights.low_rank import is_lowrank as is_lowrank
from lpjax.weights.low_rank import matmul as matmul
from lpjax.weights.low_rank import take_rows as take_rows
from lpjax.weights.sparse import Sparse as Sparse
