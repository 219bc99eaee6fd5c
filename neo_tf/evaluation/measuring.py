"""What the benchmarks of speed and of serving have in common."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from neo_tf.evaluation.machine import describe_machine, versions
from neo_tf.onnx_folder import DECODER
from neo_tf.runtime.device.kv_cache import KVCache
from neo_tf.runtime.device.machine import physical_cores
from neo_tf.runtime.device.session import Session
from neo_tf.variables import count_parameters

if TYPE_CHECKING:
    import numpy as np

    from neo_tf.runtime.device.decoder_session import DecodedRows

STEPS = 32  # the decode steps of one sample


class TimedSession(Session):
    """A Session that adds up the seconds of its decode steps.

    Attributes:
        seconds: The sum, which may be set to 0 again.
    """

    seconds = 0.0

    def decode(
        self, first: int, token_ids: np.ndarray, past: np.ndarray, inverse_temperatures: np.ndarray | None = None
    ) -> DecodedRows:
        """See Session.decode."""
        start = time.perf_counter()
        rows = super().decode(first, token_ids, past, inverse_temperatures)
        self.seconds += time.perf_counter() - start
        return rows


def describe_run(session: Session, settings: dict[str, Any]) -> dict[str, Any]:
    """What was measured, and where: {"model", "machine", "versions", "settings"}.

    Args:
        session: The session that was measured.
        settings: The benchmark's settings by name. "threads" may be None.
    """
    used = {
        "device": session.device,
        "threads": settings["threads"] or physical_cores(),
        "precision": session.precision,
    }
    return {
        "model": describe_model(session),
        "machine": describe_machine(),
        "versions": versions(),
        "settings": settings | used,
    }


def describe_model(session: Session) -> dict[str, Any]:
    """What a session runs: {"folder", "precision", "parameters", "n_ctx"}, and sizes in bytes."""
    folder = session.folder
    try:
        from neo_tf.evaluation.traffic import bytes_per_token

        read = bytes_per_token(folder.graph_path(session.precision, DECODER))
    except ImportError:  # a machine that decodes need not have onnx
        read = None
    cache = session.cache
    return {
        "folder": str(folder.path),
        "precision": session.precision,
        "parameters": count_parameters(session.config),
        "n_ctx": session.config.n_ctx,
        "weights_bytes": folder.data_path.stat().st_size,
        "bytes_per_token": read,
        "cache_bytes_per_sequence": KVCache.bytes_per_slot(
            session.config, cache.dtype, cache.device, folder.windowed_caches
        ),
    }
