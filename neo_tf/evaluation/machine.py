"""The machine that figures were measured on: its parts, and the bandwidth of its memory."""

from __future__ import annotations

import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import neo_tf
from neo_tf.runtime.device.machine import physical_cores, processors

_BUFFER = 512_000_000  # bytes, far more than the caches hold
_PASSES = 3  # how often a sample reads the buffer


def describe_machine() -> dict[str, Any]:
    """{"cpu", "cores", "memory_bytes", "os"}. A value is None where the system does not tell it."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        memory = None
    names = [processor["model name"] for processor in processors() if "model name" in processor]
    cpu = names[0] if names else platform.processor() or platform.machine()
    return {"cpu": cpu, "cores": physical_cores(), "memory_bytes": memory, "os": platform.platform()}


def versions() -> dict[str, str]:
    """{package: version} of the packages that decode, and of Python."""
    import onnxruntime

    named = {"neo-tf": neo_tf.__version__, "onnxruntime": onnxruntime.__version__, "numpy": np.__version__}
    return named | {"python": platform.python_version()}


def memory_bandwidth(threads: int) -> float:
    """Measures how many bytes per second some threads read together, from a buffer far larger than the caches.

    It is the best of a few ways to read, as none of them reaches the memory's full bandwidth every time.
    """
    data = np.ones((threads, _BUFFER // 8 // threads), np.int64)
    # Each of these functions passes over the memory once, and releases the interpreter's lock.
    return max(_read_together(data, way) for way in (np.max, np.sum, np.bitwise_or.reduce))


def _read_together(data: np.ndarray, way: Callable[[np.ndarray], Any]) -> float:
    def read(part: np.ndarray) -> None:
        for _ in range(_PASSES):
            way(part)

    workers = [threading.Thread(target=read, args=(part,)) for part in data]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return _PASSES * data.nbytes / (time.perf_counter() - start)


def peak_memory(process: int | str = "self") -> int | None:
    """The largest resident memory of a process so far, in bytes, with mapped files.

    Args:
        process: The process id. The memory of other processes is known on Linux alone.

    Returns:
        The bytes, or None where the system does not tell.
    """
    try:
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    if process != "self" or sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
