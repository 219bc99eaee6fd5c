"""Execution providers: which one a session runs on, and how ONNX Runtime's sessions are made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neo_tf.errors import ProviderError

if TYPE_CHECKING:
    from pathlib import Path

    from onnxruntime import InferenceSession, SessionOptions

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


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
        ProviderError: CUDA is needed, but this onnxruntime or this machine has none, or the folder is for the CPU.
    """
    import onnxruntime

    name, index = normalise_device(device)
    if "cuda" not in (name, target) or name == "cpu":
        return "cpu", 0
    why = "CUDA was asked for" if name else "the folder was exported for CUDA"
    if PROVIDERS["cuda"] not in onnxruntime.get_available_providers():
        raise ProviderError(f"{why}, but this onnxruntime has no CUDA provider: install onnxruntime-gpu")
    if target != "cuda":
        raise ProviderError(f"{why}, but the folder was exported for the CPU: export it with --target cuda")
    if name is None and not _has_gpu():
        raise ProviderError(f"{why}, and no GPU is here: export it for the CPU, in fp32, int8 or int4")
    return "cuda", index


def has_cuda(device: str | int | None) -> bool:
    """Whether a model runs on CUDA that may: CUDA is named, or no device is named and a GPU is here."""
    name, _ = normalise_device(device)
    return name == "cuda" or (name is None and _has_gpu())


def session_options(threads: int | None = None, spin_microseconds: int | None = None) -> SessionOptions:
    """The options of an onnxruntime session that raises its errors and does not print them as well.

    Args:
        threads: The number of threads that compute; ONNX Runtime's choice where None.
        spin_microseconds: How long a thread waits awake for its next piece of work; ONNX Runtime's choice where None.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if spin_microseconds is not None:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(spin_microseconds))
    if threads:
        options.intra_op_num_threads = threads
    return options


def create_session(model: Path | str | bytes, device: str, device_id: int, options: SessionOptions) -> InferenceSession:
    """Makes an onnxruntime session on one device.

    Args:
        model: The path of a graph, or the graph itself as bytes.
        device: "cpu" or "cuda".
        device_id: The index of the device.
        options: See session_options.

    Raises:
        ProviderError: CUDA could not be started. ONNX Runtime itself would use the CPU and say nothing.
    """
    import onnxruntime

    providers: list[str | tuple[str, dict[str, int]]] = [PROVIDERS["cpu"]]
    if device == "cuda":
        onnxruntime.preload_dlls()
        providers.insert(0, (PROVIDERS["cuda"], {"device_id": device_id}))
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    source = model if isinstance(model, bytes) else str(model)
    session = onnxruntime.InferenceSession(source, options, providers=providers)
    if PROVIDERS[device] not in session.get_providers():
        raise ProviderError(
            f"CUDA was asked for, but device {device_id} did not start: no GPU, or no driver or libraries"
        )
    return session


def placement(session: InferenceSession) -> dict[str, list[str]]:
    """The names of the nodes that each provider runs, as {provider: [names]}, of a session on CUDA."""
    placed: dict[str, list[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        placed.setdefault(part.ep_name, []).extend(node.name for node in part.get_nodes())
    return placed


def _has_gpu() -> bool:
    import onnxruntime

    return any(device.ep_name == PROVIDERS["cuda"] for device in onnxruntime.get_ep_devices())
