"""The machine that figures were measured on: what it is, and what its memory gives."""

import os
import platform
import sys
import threading
import time
from pathlib import Path

import numpy as np

import neo_tf

_BUFFER = 512_000_000  # bytes: far more than the caches hold
_PASSES = 3


def describe_machine():
    """{"cpu", "cores", "memory_bytes", "os"}; None where the system does not tell."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        memory = None
    names = [processor["model name"] for processor in _processors() if "model name" in processor]
    cpu = names[0] if names else platform.processor() or platform.machine()
    return {"cpu": cpu, "cores": physical_cores(), "memory_bytes": memory, "os": platform.platform()}


def versions():
    """{package: version} of what decodes."""
    import onnxruntime

    named = {"neo-tf": neo_tf.__version__, "onnxruntime": onnxruntime.__version__, "numpy": np.__version__}
    return named | {"python": platform.python_version()}


def physical_cores():
    """Cores that this process may use, hyper-threads counted once: so many threads does ONNX Runtime start."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = {
        (processor.get("physical id"), processor["core id"])
        for processor in _processors()
        if "core id" in processor and int(processor.get("processor", -1)) in allowed
    }
    return len(cores) or len(allowed)


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


def exact_int8():
    """Whether sums of products of uint8 and int8 are exact here: x86 without VNNI cuts them off at 16 bits."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    return any({"avx512_vnni", "avx_vnni"} & set(processor.get("flags", "").split()) for processor in _processors())


def available_memory(root=Path("/")):
    """Bytes that may still be taken: of the machine, and of the control groups (v2) that the process is in.

    Args:
        root: where proc and sys are.

    Returns:
        None where the system does not tell.
    """
    found = []
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    own = next((line[3:] for line in _lines(root / "proc/self/cgroup") if line.startswith("0::")), "/")
    top = root / "sys/fs/cgroup"
    for group in {top / own.strip("/"), *(top / parent for parent in Path(own.strip("/")).parents)}:
        limit, used = (next(iter(_lines(group / f"memory.{name}")), "") for name in ("max", "current"))
        if limit.isdigit() and used.isdigit():
            # Pages of files are given back where memory is short.
            files = (line.split() for line in _lines(group / "memory.stat"))
            given = sum(int(size) for name, size in files if name in ("active_file", "inactive_file"))
            found.append(int(limit) - int(used) + given)
    return max(min(found), 0) if found else None


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


def _lines(path):
    """Lines of a file; none where it cannot be read."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _processors():
    """[{key: value}] of /proc/cpuinfo, one for each processor; empty on other systems."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return []
    lines = ([line.partition(":") for line in block.splitlines()] for block in text.split("\n\n"))
    return [{key.strip(): value.strip() for key, _, value in block} for block in lines]
