"""A check that Keras is installed and runs on JAX."""

from __future__ import annotations

from lpjax._extras import require

_ADVICE = 'set the environment variable KERAS_BACKEND to "jax" before Keras is imported'


def check_backend() -> None:
    """Import Keras, and refuse any backend but JAX.

    Raises:
        MissingExtra: Keras is not installed.
        ImportError: Keras is set to another backend, installed or not.
    """
    require("keras", "`lpjax.keras`")
    try:
        import keras
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("tensorflow", "torch", "openvino"):
            raise
        raise ImportError(f"Keras runs on {error.name}, which is not installed; {_ADVICE}") from error
    if (backend := keras.config.backend()) != "jax":
        raise ImportError(f"`lpjax.keras` needs Keras on JAX, but it runs on {backend}; {_ADVICE}")
