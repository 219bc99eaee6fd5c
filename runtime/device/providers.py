"""Execution providers: which one a session runs on, and how ONNX Runtime's sessions are made."""

from __future__ import annotations

import contextlib
import ctypes
import io
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from neo_tf.errors import ProviderError

from .cudart import count_devices

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, SessionOptions

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
INSTALL = "pip install 'neo-tf[cuda]'"
# Levels of ONNX Runtime's log.
_SILENT, _WARNINGS = 4, 2


def normalise_device(device: str | int | None) -> tuple[str | None, int]:
    """The name and the index of a device, in any of the forms that a user may write.

    Args:
        device: None, "cpu", "cuda", "cuda:1", or an index as transformers counts: -1 is the CPU, and 0, 1, ... are
            CUDA devices.

    Returns:
        ("cpu", 0) or ("cuda", index); (None, 0) for None.

    Raises:
        ProviderError: The device is unknown.
    """
    if device is None:
        return None, 0
    if isinstance(device, int) and not isinstance(device, bool):
        return ("cpu", 0) if device < 0 else ("cuda", device)
    name, _, index = str(device).partition(":")
    if name not in PROVIDERS or (index and not index.isdigit()):
        raise ProviderError(f"unknown device {device!r} (known: cpu, cuda, cuda:N)")
    return name, int(index or 0)


def choose(device: str | int | None, target: str) -> tuple[str, int]:
    """The name and the index of the device to use.

    Args:
        device: The device that the user asked for, see normalise_device. None takes the folder's target.
        target: What the folder was exported for: "cpu" or "cuda".

    Returns:
        ("cpu", 0) or ("cuda", index).

    Raises:
        ProviderError: CUDA is needed, but this onnxruntime has none, or the folder is for the CPU. Whether this machine
            has a GPU is known when a session has started on it.
    """
    import onnxruntime

    name, index = normalise_device(device)
    if "cuda" not in (name, target) or name == "cpu":
        return "cpu", 0
    why = "CUDA was asked for" if name else "the folder was exported for CUDA"
    if PROVIDERS["cuda"] not in onnxruntime.get_available_providers():
        raise ProviderError(f"{why}, but this onnxruntime has no CUDA provider: {INSTALL}")
    if target != "cuda":
        raise ProviderError(f"{why}, but the folder was exported for the CPU: export it with --target cuda")
    return "cuda", index


def is_for_cuda(device: str | int | None) -> bool:
    """Whether a model is meant for CUDA: it is named, or no device is named and this machine has NVIDIA's driver.

    Whether CUDA starts is known when a session has started on it.
    """
    name, _ = normalise_device(device)
    return name == "cuda" or (name is None and missing_driver() is None)


def session_options(threads: int | None = None, spin_microseconds: int | None = None) -> SessionOptions:
    """The options of an onnxruntime session that raises its errors and does not print them as well.

    Args:
        threads: The number of threads that compute; ONNX Runtime's choice where None.
        spin_microseconds: How long a thread waits awake for its next piece of work; ONNX Runtime's choice where None.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT
    if spin_microseconds is not None:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(spin_microseconds))
    if threads:
        options.intra_op_num_threads = threads
    return options


def create_session(
    model: Path | str | bytes, device: str, device_id: int, options: SessionOptions, graphs: bool = False
) -> InferenceSession:
    """Makes an onnxruntime session on one device.

    Args:
        model: The path of a graph, or the graph itself as bytes.
        device: "cpu" or "cuda".
        device_id: The index of the device.
        options: See session_options.
        graphs: Whether runs can be captured as CUDA graphs, on CUDA.

    Raises:
        ProviderError: CUDA could not be started. ONNX Runtime itself would use the CPU and say nothing.
    """
    import onnxruntime

    source = model if isinstance(model, bytes) else str(model)
    if device == "cpu":
        return onnxruntime.InferenceSession(source, options, providers=[PROVIDERS["cpu"]])
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    missing = load_cuda()
    providers = [(PROVIDERS["cuda"], _cuda_options(device_id, graphs)), PROVIDERS["cpu"]]
    onnxruntime.set_default_logger_severity(_SILENT)
    try:
        session = onnxruntime.InferenceSession(source, options, providers=providers, enable_fallback=0)
    except Exception as error:
        # A graph that cannot be read is no matter of the GPU's.
        if (why := why_not_started(device_id, missing)) is None:
            raise
        raise ProviderError(f"CUDA did not start: {why}") from error
    finally:
        onnxruntime.set_default_logger_severity(_WARNINGS)
    if PROVIDERS["cuda"] not in session.get_providers():
        why = why_not_started(device_id, missing) or "ONNX Runtime does not say why"
        raise ProviderError(f"CUDA did not start: {why}")
    return session


def _cuda_options(device_id: int, graphs: bool) -> dict[str, str]:
    return {
        "device_id": str(device_id),
        "enable_cuda_graph": str(int(graphs)),
        # Flash and memory-efficient attention. cuDNN's would make a plan for each new length of a prompt's chunk.
        "sdpa_kernel": "3",
        "use_tf32": "0",  # it keeps 10 bits of a float32's 23
        "arena_extend_strategy": "kSameAsRequested",  # the default takes the next power of two
    }


def load_cuda() -> str:
    """Loads CUDA's libraries from the packages that the extra installs, or from where the system finds them.

    Returns:
        What onnxruntime says of libraries that are not there; empty where all are.
    """
    import onnxruntime

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        onnxruntime.preload_dlls()
    return said.getvalue()


def why_not_started(device_id: int, missing: str) -> str | None:
    """Why CUDA does not start, and what to do about it, in one line; None where nothing is wrong with it.

    Args:
        device_id: The index of the GPU.
        missing: See load_cuda.
    """
    causes = []
    if driver := missing_driver():
        causes.append(f"this machine has no NVIDIA driver ({driver} is missing): without a GPU, export for the CPU")
    libraries = re.findall(r"Failed to load (\S+):", missing)
    if libraries:
        names = ", ".join(Path(name).name for name in libraries)
        causes.append(f"CUDA's libraries are missing ({names}): {INSTALL}")
    if causes:
        return "; ".join(causes)
    try:
        count = count_devices()
    except ProviderError as error:
        return str(error)
    if device_id < count:
        return None
    return f"there is no GPU {device_id}: this machine has {count}, counted from 0"


def missing_driver() -> str | None:
    """The name of the driver's library where it cannot be loaded."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        ctypes.CDLL(name)
    except OSError:
        return name
    return None


def placement(session: InferenceSession) -> dict[str, list[str]]:
    """The names of the nodes that each provider runs, as {provider: [names]}, of a session on CUDA."""
    placed: dict[str, list[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        placed.setdefault(part.ep_name, []).extend(node.name for node in part.get_nodes())
    return placed
