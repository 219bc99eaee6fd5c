"""Execution providers: which one a session runs on, named or chosen."""

from neo_tf.errors import ProviderError

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def normalise_device(device):
    """None, "cpu", "cuda", "cuda:1", or transformers' -1 (CPU) and 0, 1, ... (CUDA) -> (name or None, index).

    Raises:
        ProviderError: an unknown device.
    """
    if device is None:
        return None, 0
    if isinstance(device, int) and not isinstance(device, bool):
        return ("cpu", 0) if device < 0 else ("cuda", device)
    name, _, index = str(device).partition(":")
    if name not in PROVIDERS or (index and not index.isdigit()):
        raise ProviderError(f"unknown device {device!r} (known: cpu, cuda, cuda:N)")
    return name, int(index or 0)


def choose(device, target):
    """(name, index) of the provider to use: what was asked for, or what the folder was exported for.

    Args:
        device: see normalise_device.
        target: of the folder, "cpu" or "cuda".

    Raises:
        ProviderError: CUDA is needed, and this onnxruntime or this machine has none, or the folder is for the CPU.
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


def create_session(path, name, index, options):
    """An onnxruntime session on one provider, of a file or of a model's bytes.

    Raises:
        ProviderError: CUDA could not be started; ONNX Runtime itself would go on silently with the CPU.
    """
    import onnxruntime

    providers = [PROVIDERS["cpu"]]
    if name == "cuda":
        onnxruntime.preload_dlls()
        providers.insert(0, (PROVIDERS["cuda"], {"device_id": index}))
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(path if isinstance(path, bytes) else str(path), options, providers=providers)
    if PROVIDERS[name] not in session.get_providers():
        raise ProviderError(f"CUDA was asked for, but device {index} did not start: no GPU, or no driver or libraries")
    return session


def placement(session):
    """{provider: [names of the nodes that it runs]} of a session on CUDA."""
    placed = {}
    for part in session.get_provider_graph_assignment_info():
        placed.setdefault(part.ep_name, []).extend(node.name for node in part.get_nodes())
    return placed


def _has_gpu():
    import onnxruntime

    return any(device.ep_name == PROVIDERS["cuda"] for device in onnxruntime.get_ep_devices())
