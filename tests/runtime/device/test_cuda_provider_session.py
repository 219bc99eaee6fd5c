"""A session on ONNX Runtime's own CUDA provider, on a machine without a GPU: what it asks CUDA for.

CUDA's libraries are replaced by ones that do nothing (tests/dummy_cuda.c), so nothing is said about numbers.
"""

import json
import subprocess
import sys
from pathlib import Path

import dummy_cuda
import pytest
from conftest import GOLDEN

import neo_tf

pytestmark = [
    pytest.mark.cuda_standin,
    pytest.mark.skipif(dummy_cuda.why_not() is not None, reason=str(dummy_cuda.why_not())),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What cuda_session_run.py tells."""
    folder = tmp_path_factory.mktemp("cuda")
    libraries = folder / "libraries"
    libraries.mkdir()
    neo_tf.export_onnx(GOLDEN / "tiny-global-local", folder / "onnx", "fp16", target="cuda")
    script = Path(__file__).with_name("cuda_session_run.py")
    command = [sys.executable, str(script), str(dummy_cuda.build(libraries)), str(folder / "onnx")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == "" and done.stdout.count("\n") == 1, "ONNX Runtime said something"
    return json.loads(done.stdout)


def test_every_bucket_is_captured_and_a_step_is_one_replay(found):
    """The run that captures computes the step twice before. Then inputs go there, and what is chosen comes back."""
    assert found["graphs"] and found["buckets"] == [1, 2, 4]
    assert found["warm-up"]["replay"] == 3
    assert found["warm-up"]["launch"] == 2 * found["warm-up"]["captured-launch"] > 0
    work = [(event, detail) for event, detail in found["step"] if event != "synchronisation"]
    assert work == [("copy", "to the device"), ("replay", ""), ("copy", "to the host")]
    assert [event for event, _ in found["logits"]] == ["copy", "synchronisation"]


def test_a_prompt_is_not_captured(found):
    assert found["prompt"]["launch"] > 0
    assert not {"replay", "captured-launch"} & set(found["prompt"])


def test_requests_of_all_kinds_run_and_the_memory_is_flat(found):
    assert found["tokens"] == [9, 5, 4, 6]
    assert found["free"][1:] == found["free"][1:2] * 7


def test_what_does_not_fit_or_exist_is_one_line(found):
    told = "ProviderError: CUDA did not start: there is no GPU 1: this machine has 1, counted from 0"
    assert found["no such GPU"] == told
    assert "slots fit there" in found["too many slots"] and "\n" not in found["too many slots"]
