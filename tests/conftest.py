"""What the tests share: the golden checkpoints, and folders converted or exported from them once a session."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A shell that runs the suite in the background ignores Ctrl-C for it and for the commands that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from cuda_layout import export_cuda_layout
from cuda_standin import stand_in

import neo_tf
from tests.gpu.start import why_no_gpu

# The same cases in each run, however busy the machine is.
hypothesis.settings.register_profile("suite", derandomize=True, deadline=None)
hypothesis.settings.load_profile("suite")

FIXTURES = Path(__file__).parent / "fixtures"
GOLDEN = FIXTURES / "golden"
ENGINE_TESTS = Path(__file__).parent / "runtime" / "engine"
TINY_PYTHON = FIXTURES / "tiny-python"
# Written by the original code with global and local attention; the other golden checkpoints use options of its own.
GLOBAL_LOCAL = (
    "tiny-global",
    "tiny-global-local",
    "tiny-local-radius",
    "vocab-padded",
    "microbatch-fp32",
    "act-relu",
)
# The checkpoints that use the original's other options.
OPTIONS = (
    "attn-mix",
    "axial",
    "macaron",
    "mem-kv",
    "mlp-glu",
    "moe",
    "no-weight-tie",
    "rezero",
    "rotary",
    "scalenorm",
    "share-parameters",
)
GOLDEN_NAMES = (*GLOBAL_LOCAL, *OPTIONS)
# In the original, rows of a batch compete for the experts' room; a decoder must not let them: see test_moe.py.
DECODABLE = tuple(name for name in GOLDEN_NAMES if name != "moe")
TOLERANCE = 1e-4  # absolute, on fp32 logits
PADDING = 257  # of the golden prompts
# How many times as many random schedules of requests are tried as usual: `make schedules` tries many.
SCHEDULES = int(os.environ.get("NEO_TF_SCHEDULES", "1"))


@dataclass(frozen=True)
class Reference:
    """What the original computed: its float32 computation where the checkpoint is bfloat16."""

    inputs: np.ndarray
    labels: np.ndarray
    positions: np.ndarray
    logits: np.ndarray
    loss: float
    greedy: dict  # {name: [(prompt ids, new ids), ...]}

    @classmethod
    def load(cls, folder, padding=PADDING):
        """Reads a reference.npz; rows' continuations end where the original's do."""
        data = np.load(folder / "reference.npz")
        suffix = "_fp32_compute" if "logits_fp32_compute" in data.files else ""
        greedy = {}
        for key in data.files:
            name = key.removeprefix("greedy_").removesuffix("_prompt")
            # The original crashes where it decodes linear attention step by step: no outputs there.
            if f"greedy_{name}_prompt" != key or f"greedy_{name}_outputs" not in data.files:
                continue
            rows = zip(data[key], data[f"greedy_{name}_outputs"], strict=True)
            # A bfloat16 model's own greedy output is not float32's: only that of the float32 computation counts.
            if not suffix or name == "fp32_compute":
                greedy[name] = [_split(prompt, output, padding) for prompt, output in rows]
        return cls(
            inputs=data["inputs"].astype(np.int64),
            labels=data["labels"].astype(np.int64),
            positions=data["logits_positions"],
            logits=data[f"logits{suffix}"],
            loss=float(data[f"loss{suffix}"]),
            greedy=greedy,
        )


def _split(prompt, output, padding):
    start = int((prompt != padding).sum())
    end = int((output != padding).sum())
    return output[:start].tolist(), output[start:end].tolist()


@pytest.fixture(scope="session")
def gpu():
    """Skips a test where no GPU starts, with the reason: only starting a session tells."""
    why = why_no_gpu()
    if why:
        pytest.skip(f"no GPU starts here: {why}")


@pytest.fixture(scope="session")
def reference():
    """A function from a golden checkpoint's name to its Reference."""
    return lambda name: Reference.load(GOLDEN / name)


def pytest_generate_tests(metafunc):
    """The engine's tests of exported models run twice: on the CPU, and on the stand-in for CUDA."""
    is_engines = metafunc.definition.path.parent == ENGINE_TESTS
    if is_engines and "exported" in metafunc.fixturenames and not metafunc.definition.get_closest_marker("cpu_only"):
        cuda = pytest.param("cuda", marks=pytest.mark.cuda_standin)
        metafunc.parametrize("device", ["cpu", cuda], indirect=True)


def pytest_collection_modifyitems(config, items):
    """On the stand-in one seed of a random test is enough: the others look for mistakes of the loop alone."""
    again = [item for item in items if _params(item).get("device") == "cuda" and _params(item).get("seed", 0) > 0]
    if again:
        config.hook.pytest_deselected(items=again)
        items[:] = [item for item in items if item not in again]


def _params(item):
    return item.callspec.params if hasattr(item, "callspec") else {}


@pytest.fixture(scope="session")
def layout():
    """{"device": the device that `exported` exports for}."""
    return {"device": "cpu"}


@pytest.fixture(autouse=True)
def device(request, layout, monkeypatch):
    """The device of a test's sessions: "cpu", or "cuda" on the stand-in."""
    kind = getattr(request, "param", "cpu")
    if kind == "cuda":
        stand_in(monkeypatch)
        monkeypatch.setitem(layout, "device", "cuda")
    return kind


@pytest.fixture(scope="session")
def exported(tmp_path_factory, layout):
    """A function from a checkpoint's folder to the ONNX folder that was exported from it, for the test's device."""
    done = {}

    def export(source):
        key = layout["device"], source
        if key not in done:
            done[key] = tmp_path_factory.mktemp("onnx") / Path(source).name
            if key[0] == "cuda":
                export_cuda_layout(source, done[key])
            else:
                neo_tf.export_onnx(source, done[key])
        return done[key]

    return export


@pytest.fixture(scope="session")
def demo_folder(exported):
    """The demo model as an ONNX folder."""
    return exported(TINY_PYTHON)


@pytest.fixture(scope="session")
def judge(tmp_path_factory):
    """A function from a model's name to transformers' GPTNeoForCausalLM of it."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from sampling_helpers import MODELS

    loaded = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # models this small are slower with more

    def load(name):
        if name not in loaded:
            folder = tmp_path_factory.mktemp("huggingface") / name
            neo_tf.convert(MODELS[name], folder, to="huggingface")
            loaded[name] = transformers.GPTNeoForCausalLM.from_pretrained(folder).eval()
            loaded[name].generation_config = transformers.GenerationConfig()
        return loaded[name]

    yield load
    torch.set_num_threads(threads)


def sums_differ_by(values, additions):
    """How far two float32 computations of one sum may lie apart if they add its terms in another order.

    It is a bound for one sum. For logits it is used as an estimate: they are sums of values that the layers before
    have rounded already. The order depends on the processor: on the width of its vectors, and on the kernel that its
    libraries choose for a shape. An addition rounds by at most half of float32's epsilon, 2 ** -23, times its result.
    So the error of a sum is at most the number of additions times that, and two sums differ by at most twice as much.

    Args:
        values: The sums, an array. Its largest value stands for the results of all additions.
        additions: The number of terms in each sum.
    """
    return additions * 2.0**-23 * float(np.abs(values).max())


def run_cli(monkeypatch, capsys, *arguments):
    """(exit status, standard output, standard error) of the command, in this process."""
    from neo_tf.cli import main

    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("sys.argv", ["neo-tf", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    captured = capsys.readouterr()
    return end.value.code, captured.out, captured.err
