"""The machine that figures were measured on: what it is, and what its memory gives."""

import os
import platform
import sys
import threading
import time
from pathlib import Path

import numpy as np

import neo_tf
from neo_tf.runtime.device.machine import physical_cores, processors

_BUFFER = 512_000_000  # bytes: far more than the caches hold
_PASSES = 3


def describe_machine():
    """{"cpu", "cores", "memory_bytes", "os"}; None where the system does not tell."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        memory = None
    names = [processor["model name"] for processor in processors() if "model name" in processor]
    cpu = names[0] if names else platform.processor() or platform.machine()
    return {"cpu": cpu, "cores": physical_cores(), "memory_bytes": memory, "os": platform.platform()}


def versions():
    """{package: version} of what decodes."""
    import onnxruntime

    named = {"neo-tf": neo_tf.__version__, "onnxruntime": onnxruntime.__version__, "numpy": np.__version__}
    return named | {"python": platform.python_version()}


def memory_bandwidth(threads):
    """Bytes per second that so many threads read together, from a buffer far larger than the caches.

    The best of a few ways to read it: none of them reaches what the memory gives every time.
    """
    data = np.ones((threads, _BUFFER // 8 // threads), np.int64)
    # Each is one pass over the memory, and lets go of the interpreter's lock.
    return max(_read_together(data, way) for way in (np.max, np.sum, np.bitwise_or.reduce))


def _read_together(data, way):
    def read(part):
        for _ in range(_PASSES):
            way(part)

    workers = [threading.Thread(target=read, args=(part,)) for part in data]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return _PASSES * data.nbytes / (time.perf_counter() - start)


def peak_memory(process="self"):
    """The largest resident memory of a process so far in bytes, mapped files included; None where nobody tells.

    Args:
        process: its id; other processes than this one are known on Linux alone.
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
