"""Refuses the Keras backends that fastreg does not support, before anything else is imported."""

import keras


def require_tensorflow() -> None:
    """Raise ImportError unless Keras runs on TensorFlow."""
    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise ImportError(
            "fastreg supports Keras's TensorFlow backend only: set KERAS_BACKEND=tensorflow before Keras is imported. "
            f"Received: Keras on the backend {backend!r}"
        )


require_tensorflow()
