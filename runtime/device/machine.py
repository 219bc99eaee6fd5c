"""What the machine can do and what memory it has left: what decides how a session is set up."""

import os
import platform
from pathlib import Path

_BUFFER = 512_000_000  # bytes: far more than the caches hold
_PASSES = 3


def physical_cores():
    """Cores that this process may use, hyper-threads counted once: so many threads does ONNX Runtime start."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = {
        (processor.get("physical id"), processor["core id"])
        for processor in processors()
        if "core id" in processor and int(processor.get("processor", -1)) in allowed
    }
    return len(cores) or len(allowed)


def exact_int8():
    """Whether sums of products of uint8 and int8 are exact here: x86 without VNNI cuts them off at 16 bits."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    return any({"avx512_vnni", "avx_vnni"} & set(processor.get("flags", "").split()) for processor in processors())


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


def _lines(path):
    """Lines of a file; none where it cannot be read."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def processors():
    """[{key: value}] of /proc/cpuinfo, one for each processor; empty on other systems."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return []
    lines = ([line.partition(":") for line in block.splitlines()] for block in text.split("\n\n"))
    return [{key.strip(): value.strip() for key, _, value in block} for block in lines]
