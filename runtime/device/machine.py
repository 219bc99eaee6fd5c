"""What the machine can do, and how much memory it has left. Sessions and the engine are set up accordingly."""

import os
import platform
from pathlib import Path


def physical_cores() -> int:
    """The number of cores that this process may use. Hyper-threads of one core count once.

    ONNX Runtime starts as many threads as this.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = {
        (processor.get("physical id"), processor["core id"])
        for processor in processors()
        if "core id" in processor and int(processor.get("processor", -1)) in allowed
    }
    return len(cores) or len(allowed)


def exact_int8() -> bool:
    """Whether this CPU adds products of uint8 and int8 exactly. x86 without VNNI cuts the sums off at 16 bits."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    return any({"avx512_vnni", "avx_vnni"} & set(processor.get("flags", "").split()) for processor in processors())


def available_memory(root: Path = Path("/")) -> int | None:
    """The number of bytes that this process may still take.

    That is the least of what the machine has left and what each control group (v2) of the process has left.

    Args:
        root: The folder that proc and sys lie in.

    Returns:
        Bytes, or None where the system does not tell.
    """
    found = []
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    own_group = Path("/")
    for line in _lines(root / "proc/self/cgroup"):
        if line.startswith("0::"):
            own_group = Path(line.removeprefix("0::"))
            break
    for group in (own_group, *own_group.parents):
        left = _left_in_group(root / "sys/fs/cgroup" / str(group).strip("/"))
        if left is not None:
            found.append(left)
    return max(min(found), 0) if found else None


def _left_in_group(folder: Path) -> int | None:
    """The bytes that a control group may still take, or None where it has no limit."""
    limit = next(iter(_lines(folder / "memory.max")), "")
    used = next(iter(_lines(folder / "memory.current")), "")
    if not limit.isdigit() or not used.isdigit():
        return None
    left = int(limit) - int(used)
    for line in _lines(folder / "memory.stat"):
        name, size = line.split()
        if name in ("active_file", "inactive_file"):  # the system gives pages of files back where memory is short
            left += int(size)
    return left


def _lines(path: Path) -> list[str]:
    """The lines of a file; none where it cannot be read."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def processors() -> list[dict[str, str]]:
    """What /proc/cpuinfo says, a dict for each processor. The list is empty on systems without that file."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return []
    found = []
    for block in text.split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines())
        found.append({key.strip(): value.strip() for key, _, value in pairs})
    return found
