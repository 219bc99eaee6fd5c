"""Which provider a session runs on: CUDA that was asked for and is not there is an error, never the CPU."""

import onnxruntime
import pytest
from conftest import GOLDEN, run_cli
from cuda_layout import export_cuda_layout
from cuda_standin import Gpus, stand_in

import neo_tf
from neo_tf.errors import CheckpointError, ProviderError
from neo_tf.runtime.device import providers
from neo_tf.runtime.device.providers import choose, create_session, normalise_device, session_options
from neo_tf.runtime.device.session import Session
from neo_tf.text_generation import pipeline

WITHOUT = ["CPUExecutionProvider"]
WITH = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.fixture
def machine(monkeypatch):
    """A function that makes this onnxruntime look like one with or without the CUDA provider."""

    def pretend(available):
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)

    return pretend


@pytest.fixture(scope="module")
def cuda_folder(tmp_path_factory):
    """A folder for CUDA, in fp16."""
    folder = tmp_path_factory.mktemp("cuda") / "onnx"
    neo_tf.export_onnx(GOLDEN / "tiny-global", folder, "fp16", target="cuda")
    return folder


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
    machine(WITH)
    with pytest.raises(ProviderError, match=r"exported for the CPU: export it with --target cuda"):
        choose(device, "cpu")


def test_unasked_it_is_what_the_folder_was_exported_for(machine):
    machine(WITH)
    assert choose(None, "cuda") == ("cuda", 0)
    assert choose(None, "cpu") == ("cpu", 0)


def test_a_folder_for_cuda_does_not_end_on_the_cpu_unasked(machine):
    machine(WITHOUT)
    with pytest.raises(ProviderError, match=r"exported for CUDA.*no CUDA provider: pip install 'neo-tf\[cuda\]'"):
        choose(None, "cuda")
    assert choose("cpu", "cuda") == ("cpu", 0)


def test_what_was_asked_for_is_taken(machine):
    machine(WITH)
    assert choose("cpu", "cpu") == ("cpu", 0)
    assert choose("cuda:3", "cuda") == ("cuda", 3)
    assert choose(-1, "cuda") == ("cpu", 0)


# ---- what does not start says why, in one line


def without_driver(monkeypatch):
    """As on a machine with no GPU, with or without CUDA's libraries: ONNX Runtime makes a session on the CPU."""
    monkeypatch.setattr(providers, "missing_driver", lambda: "libcuda.so.1")
    make = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda model, options, **more: make(model, options, providers=WITHOUT)
    )


def test_a_session_does_not_fall_back_silently(cuda_folder, machine, monkeypatch, capfd):
    """Whatever this machine has: the provider that was asked for is not among the session's."""
    machine(WITH)
    without_driver(monkeypatch)
    with pytest.raises(ProviderError, match=r"CUDA did not start: this machine has no NVIDIA driver \(libcuda.so.1"):
        create_session(cuda_folder / "decoder.onnx", "cuda", 0, session_options())
    assert capfd.readouterr() == ("", "")


def test_libraries_that_are_missing_are_named_with_what_installs_them(monkeypatch):
    said = (
        "Failed to load /x/libcublasLt.so.13: no such file\nFailed to load libcurand.so.10: none\nPlease follow it.\n"
    )
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print(said))
    monkeypatch.setattr(providers, "missing_driver", lambda: None)
    why = providers.why_not_started(0, providers.load_cuda())
    assert why == "CUDA's libraries are missing (libcublasLt.so.13, libcurand.so.10): pip install 'neo-tf[cuda]'"


@pytest.mark.parametrize("device", [None, "cuda:0"])
def test_a_command_without_a_gpu_ends_with_one_line(cuda_folder, machine, monkeypatch, capfd, device):
    machine(WITH)
    without_driver(monkeypatch)
    options = [] if device is None else ["--device", device]
    status, out, err = run_cli(monkeypatch, capfd, "generate", cuda_folder, "abc", *options)
    assert status == 1 and out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert "NVIDIA driver" in err


def test_a_gpu_that_does_not_exist_is_told_with_how_many_there_are(exported, tmp_path, monkeypatch):
    folder = export_cuda_layout(GOLDEN / "tiny-global", tmp_path / "onnx")
    stand_in(monkeypatch, Gpus(count=2))
    assert Session(folder, device="cuda:1").device_id == 1
    with pytest.raises(ProviderError, match="there is no GPU 2: this machine has 2, counted from 0"):
        Session(folder, device="cuda:2")


def test_a_graph_that_cannot_be_read_is_no_matter_of_the_gpu(tmp_path, monkeypatch):
    folder = export_cuda_layout(GOLDEN / "tiny-global", tmp_path / "onnx")
    (folder / "decoder.onnx").write_bytes(b"none")
    stand_in(monkeypatch)
    with pytest.raises(CheckpointError, match=r"decoder\.onnx: cannot be loaded"):
        Session(folder)


def test_too_little_memory_tells_how_many_slots_fit(tmp_path, monkeypatch):
    folder = export_cuda_layout(GOLDEN / "tiny-global", tmp_path / "onnx")
    stand_in(monkeypatch, Gpus(memory=2**28 + 20_000_000))
    with pytest.raises(ProviderError, match=r"GPU 0 has .* free beside the weights, and (\d+) slots fit") as error:
        Session(folder, slots=5000)
    fit = int(str(error.value).split(" slots fit")[0].split()[-1])
    assert fit > 1
    assert Session(folder, slots=fit).slots == fit
    with pytest.raises(ProviderError, match=f"{fit} slots fit"):
        Session(folder, slots=fit + 1)


@pytest.mark.parametrize("device", ["cuda", 0])
def test_cuda_asked_for_here_is_an_error_throughout(exported, device):
    folder = exported(GOLDEN / "tiny-global")  # for the CPU, with or without a GPU
    with pytest.raises(ProviderError):
        Session(folder, device=device)
    with pytest.raises(ProviderError):
        pipeline("text-generation", model=folder, device=device)


@pytest.mark.parametrize("device", [None, "cpu", -1])
def test_the_cpu_is_used_and_said(exported, device):
    session = Session(exported(GOLDEN / "tiny-global"), device=device)
    assert session.device == "cpu"
