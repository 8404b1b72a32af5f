"""Keras on the JAX backend: keras-hub's BERT, DistilBERT and RoBERTa from and to checkpoints, and factored layers.

Imported on use only. `keras.saving.load_model` reads a model with factored layers once this is imported.
"""

from lpjax.keras._backend import check_backend as _check_backend

_check_backend()

from lpjax.keras._compress import compress_keras as compress_keras  # noqa: E402
from lpjax.keras._layers import FactoredDense as FactoredDense  # noqa: E402
from lpjax.keras._layers import FactoredEinsumDense as FactoredEinsumDense  # noqa: E402
from lpjax.keras._layers import FactoredEmbedding as FactoredEmbedding  # noqa: E402
from lpjax.keras._layers import FactoredReversibleEmbedding as FactoredReversibleEmbedding  # noqa: E402
from lpjax.keras._saving import FactoredModel as FactoredModel  # noqa: E402
from lpjax.keras._weights import from_keras as from_keras  # noqa: E402
from lpjax.keras._weights import to_keras as to_keras  # noqa: E402
