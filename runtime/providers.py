"""Execution providers: which one a session runs on, named or chosen."""

from neo_tf.errors import ProviderError

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# GroupQueryAttention has CUDA kernels for these alone.
CUDA_PRECISIONS = ("float16", "bfloat16")


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


def choose(device, precision):
    """(name, index) of the provider to use: what was asked for, else CUDA where it can run the graph, else the CPU.

    Raises:
        ProviderError: CUDA was asked for, and this onnxruntime or this graph has none.
    """
    import onnxruntime

    name, index = normalise_device(device)
    there = PROVIDERS["cuda"] in onnxruntime.get_available_providers()
    if name == "cuda":
        if not there:
            raise ProviderError(
                "CUDA was asked for, but this onnxruntime has no CUDA provider: install onnxruntime-gpu"
            )
        if precision not in CUDA_PRECISIONS:
            raise ProviderError(
                f"CUDA was asked for, but the graph is in {precision}: its attention has CUDA kernels for"
                f" {' and '.join(CUDA_PRECISIONS)} alone, in which neo-tf does not export yet"
            )
    if name is None:
        name = "cuda" if there and precision in CUDA_PRECISIONS and _has_gpu() else "cpu"
    return name, index


def create_session(path, name, index, options):
    """An onnxruntime session on one provider.

    Raises:
        ProviderError: CUDA could not be started; ONNX Runtime itself would go on silently with the CPU.
    """
    import onnxruntime

    providers = [PROVIDERS["cpu"]]
    if name == "cuda":
        onnxruntime.preload_dlls()
        providers.insert(0, (PROVIDERS["cuda"], {"device_id": index}))
    session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    if PROVIDERS[name] not in session.get_providers():
        raise ProviderError(f"CUDA was asked for, but device {index} did not start: no GPU, or no driver or libraries")
    return session


def _has_gpu():
    import onnxruntime

    return any(device.ep_name == PROVIDERS["cuda"] for device in onnxruntime.get_ep_devices())
