"""Runs thousands of requests of all kinds on a GPU, and checks that its memory, and the process's, stays flat.

python check_memory.py --result FILE [--requests N]
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from conftest import GOLDEN
from result import Result

import neo_tf
from benchmarks.soak import soak

MODEL = GOLDEN / "tiny-global-local"
GPU_GROWTH = 2**21  # bytes; ONNX Runtime and CUDA take memory in pieces of 2 MiB
HOST_GROWTH = 10_000_000


def growth(sizes):
    """How many bytes were added after the first of several measurements."""
    return max(sizes) - sizes[0]


def main():
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--result", type=Path, required=True, help="the file that the result is written to")
    parser.add_argument("--requests", type=int, default=2500, help="the number of requests (default: 2500)")
    arguments = parser.parse_args()
    result = Result()
    used = []

    def report(line):
        free, total = torch.cuda.mem_get_info()
        used.append(total - free)
        result.note(f"{line}, {used[-1] / 1e6:.1f} MB of the GPU")

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "onnx"
        neo_tf.export_onnx(MODEL, folder, "fp16", target="cuda")
        found = soak(folder, arguments.requests, slots=8, report=report)
    resident = [size for _, size in found["resident"]]
    too_few = None if len(used) >= 3 else f"{len(used)} measurements are too few"
    gpu, host = growth(used or [0]), growth(resident or [0])
    result.check("the GPU's memory", too_few or (f"grew by {gpu:,} bytes" if gpu > GPU_GROWTH else None))
    result.check("the process's memory", too_few or (f"grew by {host:,} bytes" if host > HOST_GROWTH else None))
    free = found["free_slots"]
    result.check("slots", None if free == 8 else f"{free} of 8 are free at the end")
    return result.end(arguments.result)


if __name__ == "__main__":
    sys.exit(main())
