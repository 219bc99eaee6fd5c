"""Whether a GPU starts here: decided by running a model on it, never by a list of devices.

    python tests/gpu/start.py [--driver]

Prints one line, and exits with 0 where a GPU runs the model, and with 2 where none does. With --driver it looks for
NVIDIA's driver alone, without which nothing starts: before CUDA's libraries are installed there is no more to see.
"""

import argparse
import ctypes
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "tests" / "fixtures" / "golden" / "tiny-global-local"
NO_GPU = 2
_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_SECONDS = 120


def missing_driver():
    """Why there is no driver, or None where there is one."""
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        return f"this machine has no NVIDIA driver: {_DRIVER} cannot be loaded"
    return None


def why_no_gpu():
    """Why no GPU starts, in one line, or None where one does. A process of its own tries, as libraries may crash."""
    command = [sys.executable, str(Path(__file__))]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return f"a session on CUDA did not start within {_SECONDS} seconds"
    if done.returncode == 0:
        return None
    said = (done.stdout.strip() or done.stderr.strip() or f"the process ended with {done.returncode}").splitlines()
    return said[-1]


def run_a_model():
    """Runs a small model on the first GPU. Raises whatever keeps it from running."""
    import neo_tf
    from neo_tf.runtime.device.session import Session

    with tempfile.TemporaryDirectory() as folder:
        neo_tf.export_onnx(MODEL, Path(folder) / "onnx", "fp16", target="cuda")
        Session(Path(folder) / "onnx", device="cuda").prefill(0, [1, 2, 3], 0)


def main():
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--driver", action="store_true", help="look for NVIDIA's driver alone")
    if parser.parse_args().driver:
        missing = missing_driver()
        if missing:
            print(f"No GPU starts here: {missing}.")
        return NO_GPU if missing else 0
    try:
        run_a_model()
    except Exception as error:
        print(" ".join(str(error).split()) or type(error).__name__)
        return NO_GPU
    print("A GPU runs a small model.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
