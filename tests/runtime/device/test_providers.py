"""Which provider a session runs on: CUDA that was asked for and is not there is an error, never the CPU."""

import onnxruntime
import pytest
from conftest import GOLDEN

from neo_tf.errors import ProviderError
from neo_tf.runtime.device import providers
from neo_tf.runtime.device.providers import choose, create_session, normalise_device
from neo_tf.runtime.device.session import Session
from neo_tf.text_generation import pipeline

WITHOUT = ["CPUExecutionProvider"]
WITH = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
GPU_HERE = any(device.ep_name == "CUDAExecutionProvider" for device in onnxruntime.get_ep_devices())


@pytest.fixture
def machine(monkeypatch):
    """A function that makes this machine look like one with or without the CUDA provider, and a GPU."""

    def pretend(available, gpu=False):
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
        monkeypatch.setattr(providers, "_has_gpu", lambda: gpu)

    return pretend


@pytest.mark.parametrize(
    "device, expected",
    [
        (None, (None, 0)),
        ("cpu", ("cpu", 0)),
        ("cuda", ("cuda", 0)),
        ("cuda:0", ("cuda", 0)),
        ("cuda:13", ("cuda", 13)),
        (-1, ("cpu", 0)),
        (0, ("cuda", 0)),
        (2, ("cuda", 2)),
    ],
)
def test_devices_in_all_their_forms(device, expected):
    assert normalise_device(device) == expected


@pytest.mark.parametrize("device", ["gpu", "", "CUDA", "cuda:x", "cuda:-1", "tpu:0", "mps", True, 1.5, "0"])
def test_unknown_devices_are_refused_by_name(device):
    with pytest.raises(ProviderError, match=r"unknown device .*known: cpu, cuda"):
        normalise_device(device)


@pytest.mark.parametrize("device", ["cuda", "cuda:1", 0])
def test_cuda_that_is_not_installed_is_an_error(machine, device):
    machine(WITHOUT)
    with pytest.raises(ProviderError, match="no CUDA provider"):
        choose(device, "cuda")


@pytest.mark.parametrize("device", ["cuda", 0])
def test_cuda_that_cannot_run_the_graph_is_an_error(machine, device):
    machine(WITH, gpu=True)
    with pytest.raises(ProviderError, match=r"exported for the CPU: export it with --target cuda"):
        choose(device, "cpu")


def test_unasked_it_is_what_the_folder_was_exported_for(machine):
    machine(WITH, gpu=True)
    assert choose(None, "cuda") == ("cuda", 0)
    assert choose(None, "cpu") == ("cpu", 0)


@pytest.mark.parametrize(
    "available, gpu, message", [(WITH, False, "no GPU is here"), (WITHOUT, True, "no CUDA provider")]
)
def test_a_folder_for_cuda_does_not_end_on_the_cpu_unasked(machine, available, gpu, message):
    machine(available, gpu)
    with pytest.raises(ProviderError, match=f"exported for CUDA.*{message}"):
        choose(None, "cuda")
    assert choose("cpu", "cuda") == ("cpu", 0)


def test_what_was_asked_for_is_taken(machine):
    machine(WITH, gpu=True)
    assert choose("cpu", "cpu") == ("cpu", 0)
    assert choose("cuda:3", "cuda") == ("cuda", 3)
    assert choose(-1, "cuda") == ("cpu", 0)


@pytest.mark.skipif(GPU_HERE, reason="this machine has a GPU")
def test_a_session_does_not_fall_back_silently(exported):
    path = exported(GOLDEN / "tiny-global") / "decoder.onnx"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    with pytest.raises(ProviderError, match="CUDA"):
        create_session(path, "cuda", 0, options)


@pytest.mark.parametrize("device", ["cuda", 0])
def test_cuda_asked_for_here_is_an_error_throughout(exported, device):
    folder = exported(GOLDEN / "tiny-global")  # fp32, which no CUDA kernel takes, with or without a GPU
    with pytest.raises(ProviderError):
        Session(folder, device=device)
    with pytest.raises(ProviderError):
        pipeline("text-generation", model=folder, device=device)


@pytest.mark.parametrize("device", [None, "cpu", -1])
def test_the_cpu_is_used_and_said(exported, device):
    session = Session(exported(GOLDEN / "tiny-global"), device=device)
    assert session.device == "cpu"
