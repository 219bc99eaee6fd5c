"""benchmarks/compare.py on the demo model against transformers: what it measures agrees with itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY_PYTHON

import neo_tf

ROOT = Path(__file__).parents[1]


def compare(*arguments):
    command = [sys.executable, ROOT / "benchmarks" / "compare.py", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment, timeout=300)


def test_ratios_and_tokens_against_transformers(demo_folder, tmp_path):
    neo_tf.convert(TINY_PYTHON, tmp_path / "model", to="huggingface")
    neo_tf.export_onnx(TINY_PYTHON, tmp_path / "int8", "int8")
    ours = ("--ours", f"int8={tmp_path / 'int8'}", "--ours", f"fp32={demo_folder}")
    peers = [f"--peer=transformers:{precision}={sys.executable}:{tmp_path / 'model'}" for precision in ("fp32", "bf16")]
    # A model this small is faster with one thread, and does not wait where others use the processor.
    chosen = ("--tasks", "decode,batch8", "--rounds", 2, "--threads", 1, "--json", tmp_path / "report.json")
    done = compare(*ours, *peers, *chosen)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    systems = {system["name"]: system for system in report["systems"]}
    # fp32 is compared with fp32; of bf16 there is none of ours, so with the first.
    for peer, base in (("transformers fp32", "neo-tf fp32"), ("transformers bf16", "neo-tf int8")):
        assert systems[peer]["against"] == base
        for task, ratio in systems[peer]["ratio"].items():
            pairs = zip(systems[peer]["samples"][task], systems[base]["samples"][task], strict=True)
            first, second = (theirs / mine for theirs, mine in pairs)
            assert ratio == pytest.approx((first + second) / 2)
            assert f"{ratio:.2f}x" in done.stdout
        assert {"transformers", "torch"} <= set(systems[peer]["versions"])
    assert systems["transformers fp32"]["same_tokens"] is True and "the same tokens" in done.stdout
    read, decode = systems["neo-tf fp32"]["bytes_per_token"], systems["neo-tf fp32"]["seconds"]["decode"]
    floor = read / report["bandwidth"]["bytes_per_s"]
    assert systems["neo-tf fp32"]["share_of_floor"] == pytest.approx(floor / (decode / 128))
    assert systems["neo-tf int8"]["bytes_per_token"] < read / 2


def test_a_worker_that_fails_says_why(demo_folder, tmp_path):
    done = compare("--ours", f"fp32={demo_folder}", f"--peer=transformers:fp32={sys.executable}:{tmp_path}")
    assert done.returncode == 1 and done.stdout == ""
    assert "transformers fp32 ended early" in done.stderr


@pytest.mark.parametrize(
    "argument", ["llama:fp32={0}:{1}", "openvino:fp31={0}:{1}", "openvino:int8={1}:{1}", "openvino:int8={0}:missing"]
)
def test_a_peer_that_cannot_be_is_refused(demo_folder, argument):
    peer = argument.format(sys.executable, demo_folder)
    done = compare("--ours", f"fp32={demo_folder}", "--peer", peer)
    assert done.returncode == 2 and "argument --peer" in done.stderr
