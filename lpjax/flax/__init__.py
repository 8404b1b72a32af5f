"""Run any Flax model on factored or quantized weights: linen modules as they are, NNX modules converted in place."""

from lpjax._extras import require as _require

try:
    import flax as _flax  # noqa: F401
except ModuleNotFoundError:
    _require("flax", "`lpjax.flax`")
    raise

from lpjax.flax._linen import apply as apply
from lpjax.flax._linen import factored as factored
from lpjax.flax._linen import input_axes as input_axes
from lpjax.flax._nnx import FactoredEmbed as FactoredEmbed
from lpjax.flax._nnx import FactoredLinear as FactoredLinear
from lpjax.flax._nnx import QuantizedEmbed as QuantizedEmbed
from lpjax.flax._nnx import QuantizedLinear as QuantizedLinear
from lpjax.flax._nnx import compress_nnx as compress_nnx
from lpjax.flax._nnx import put_weights_nnx as put_weights_nnx
from lpjax.flax._serialization import register as _register
from lpjax.flax._serialization import with_pairs as with_pairs

_register()
