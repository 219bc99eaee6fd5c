"""Exits with 0 where the torch that is installed needs CUDA's libraries, with 1 where it is a CPU build."""

import sys
from importlib.metadata import requires

sys.exit(not any(name.startswith(("nvidia-", "cuda-", "triton")) for name in requires("torch") or ()))
