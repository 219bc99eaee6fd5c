"""Importing TensorFlow and Keras: late, quietly, and with a clear word where they are not installed."""

import functools
import os
import sys
import tempfile

from neo_tf.errors import MissingExtraError


@functools.cache
def import_tensorflow():
    """The tensorflow module, with Keras set to use it.

    Raises:
        MissingExtraError: the extra `tensorflow` is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    try:
        with _quiet_stderr():
            import keras  # noqa: F401  (its import of TensorFlow logs too)
            import tensorflow
    except ImportError as error:
        raise MissingExtraError(
            f"this needs TensorFlow ({error}): install it with `pip install 'neo-tf[tensorflow]'`"
        ) from None
    return tensorflow


class _quiet_stderr:
    """Holds back what C++ code prints to stderr, and shows it after all if the block fails."""

    def __enter__(self):
        sys.stderr.flush()
        try:
            self._saved = os.dup(2)
        except OSError:  # a process without stderr
            self._saved = None
            return self
        self._held = tempfile.TemporaryFile()
        os.dup2(self._held.fileno(), 2)
        return self

    def __exit__(self, kind, error, trace):
        if self._saved is None:
            return
        sys.stderr.flush()
        os.dup2(self._saved, 2)
        os.close(self._saved)
        if kind is not None and not issubclass(kind, ImportError):
            self._held.seek(0)
            sys.stderr.write(self._held.read().decode(errors="replace"))
        self._held.close()
