"""Compressed weights that replace dense arrays, and the functions that dispatch on them."""

from lpjax.weights.dispatch import densify as densify
from lpjax.weights.dispatch import matmul as matmul
from lpjax.weights.dispatch import take_rows as take_rows
from lpjax.weights.low_rank import LowRank as LowRank
from lpjax.weights.quantized import Quantized as Quantized
from lpjax.weights.sparse import Sparse as Sparse
