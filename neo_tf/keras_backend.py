"""Imports TensorFlow and Keras late and quietly, and says how to install them where they are missing."""

from __future__ import annotations

import functools
import os
import sys
import tempfile
from types import ModuleType, TracebackType

from neo_tf.errors import MissingExtraError


@functools.cache
def import_tensorflow() -> ModuleType:
    """Imports TensorFlow, and Keras with TensorFlow as its backend.

    Returns:
        The module tensorflow.

    Raises:
        MissingExtraError: The extra `tensorflow` is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    try:
        with _quiet_stderr():
            import keras  # noqa: F401  (its import of TensorFlow logs too)
            import tensorflow
    except ImportError as error:
        raise MissingExtraError.of("this needs TensorFlow", error, "tensorflow") from None
    return tensorflow


class _quiet_stderr:
    """Holds back what C++ code prints to stderr while a block runs, and shows it only if the block fails.

    An ImportError is no such failure: import_tensorflow explains it.
    """

    def __init__(self) -> None:
        self._saved: int | None = None

    def __enter__(self) -> _quiet_stderr:
        sys.stderr.flush()
        try:
            self._saved = os.dup(2)
        except OSError:  # a process without stderr
            return self
        self._held = tempfile.TemporaryFile()
        os.dup2(self._held.fileno(), 2)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._saved is None:
            return
        sys.stderr.flush()
        os.dup2(self._saved, 2)
        os.close(self._saved)
        if kind is not None and not issubclass(kind, ImportError):
            self._held.seek(0)
            sys.stderr.write(self._held.read().decode(errors="replace"))
        self._held.close()
