"""The steps of the GPU suite, in order, and how long each may take."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SECONDS = 600  # for the whole suite
PRECISIONS = ("fp16", "bf16", "int8", "int4")
SIZES = {"125M": 60, "1.3B": 70, "2.7B": 95}  # {shape: the seconds of its measurements}


@dataclass(frozen=True)
class Preparation:
    """A folder that is made in the background, from the beginning on, while other steps use the GPU.

    Args:
        name: Its name, by which steps say that they need it.
        command: The command that makes it.
    """

    name: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """A part of the suite: a process of its own, which passes by exiting with 0.

    Args:
        name: The step's name in the report.
        about: What it shows, in a sentence.
        command: The command.
        seconds: How long it may take, the wait for what it needs included.
        environment: Variables of its environment.
        needs: The name of the Preparation that must have ended well before; None for none.
        has_result: Whether it takes `--result FILE` and writes what it found there: see result.py. It has then passed
            only if it says how many checks it made, and that there were any.
    """

    name: str
    about: str
    command: tuple[str, ...]
    seconds: int
    environment: dict[str, str] = field(default_factory=dict)
    needs: str | None = None
    has_result: bool = True


def _python(script, *arguments):
    return (sys.executable, str(HERE / script), *map(str, arguments))


def preparations(work):
    """What is made in the background: the published shapes, with random weights, in fp16 and int8.

    Args:
        work: The folder that they are made in.
    """
    return [Preparation(size, _python("prepare.py", size, work / size)) for size in SIZES]


def steps(work):
    """The steps, in order.

    Args:
        work: See preparations.
    """
    pytest = (sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider")
    found = [
        Step(
            "parity of golden models",
            "logits of every golden model, in each precision, against the original's computation",
            _python("check_parity.py", "golden", "--precisions", ",".join(PRECISIONS)),
            130,
        ),
        Step(
            "parity of head sizes 64 and 128",
            "the attention kernels of the published sizes, far past the local window",
            _python("check_parity.py", "heads", "--precisions", ",".join(PRECISIONS)),
            40,
        ),
        Step(
            "engine",
            "the engine's tests with the device's memory, copies and captured graphs",
            (*pytest, "-m", "cuda_standin", str(ROOT / "tests" / "runtime" / "engine")),
            130,
            environment={"NEO_TF_TEST_GPU": "1"},
            has_result=False,
        ),
        Step(
            "memory",
            "memory of the GPU and of the process stays flat over thousands of requests",
            _python("check_memory.py"),
            50,
        ),
    ]
    for size, seconds in SIZES.items():
        about = f"neo-tf benchmark at {size} in fp16 and int8, beside transformers on CUDA"
        found.append(Step(f"speed at {size}", about, _python("measure.py", size, work / size), seconds, needs=size))
    return found
