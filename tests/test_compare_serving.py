"""benchmarks/compare_serving.py on the demo model, against a stand-in that has the calls of OpenVINO GenAI."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY_PYTHON

import neo_tf

ROOT = Path(__file__).parents[1]
# Serves one request after the other, two tokens a step; a handle gives what has come since it was read.
STAND_IN = """
import time
from types import SimpleNamespace as GenerationConfig, SimpleNamespace as SchedulerConfig

class Handle:
    def __init__(self, count):
        self.left, self.unread = count, []

    def can_read(self):
        return bool(self.unread)

    def read(self):
        ids, self.unread = self.unread, []
        return {0: GenerationConfig(generated_ids=ids)}

class ContinuousBatchingPipeline:
    def __init__(self, folder, scheduler, device, settings):
        self.handles = []
        assert settings == {"INFERENCE_NUM_THREADS": 1}, settings

    def add_request(self, number, ids, config):
        assert ids.shape[0] == 1 and config.ignore_eos and not config.do_sample
        self.handles.append(Handle(config.max_new_tokens))
        return self.handles[-1]

    def has_non_finished_requests(self):
        self.handles = [handle for handle in self.handles if handle.left]
        return bool(self.handles)

    def step(self):
        time.sleep(0.001)
        new = min(2, self.handles[0].left)
        self.handles[0].left -= new
        self.handles[0].unread += [7] * new
"""


@pytest.fixture
def peer_python(tmp_path):
    """A python in whose environment the stand-in is."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "openvino_genai.py").write_text(STAND_IN)
    (modules / "openvino.py").write_text("Tensor = lambda ids: ids\n")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{modules}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return python


def compare(*arguments):
    command = [sys.executable, ROOT / "benchmarks" / "compare_serving.py", "--threads", 1, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment, timeout=300)


def test_figures_and_ratios(demo_folder, peer_python, tmp_path):
    neo_tf.export_onnx(TINY_PYTHON, tmp_path / "int8", "int8")
    ours = ("--ours", f"fp32={demo_folder}", "--ours", f"int8={tmp_path / 'int8'}")
    peer = f"--peer=openvino-paged:int8={peer_python}:{tmp_path}"
    chosen = ("--requests", 5, "--slots", 2, "--rounds", 2, "--json", tmp_path / "report.json")
    done = compare(*ours, peer, *chosen)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    systems = {system["name"]: system for system in report["systems"]}
    mine, theirs = systems["neo-tf int8"], systems["openvino-paged int8"]
    assert theirs["against"] == "neo-tf int8" and "every layer as a global one" in done.stdout
    for system in systems.values():
        assert len(system["samples"]) == 2
        for one in system["samples"]:
            assert one["tokens_per_s"] * one["seconds"] == pytest.approx(report["workload"]["new_tokens"])
    # Above 1 where neo-tf is better: more tokens a second, less waiting.
    for name, ratio in theirs["ratio"].items():
        pairs = zip(mine["samples"], theirs["samples"], strict=True)
        first, second = (a[name] / b[name] if name == "tokens_per_s" else b[name] / a[name] for a, b in pairs)
        assert ratio == pytest.approx((first + second) / 2)
        assert f"{ratio:.2f}x" in done.stdout
    # Two of its tokens come with each step.
    assert theirs["inter_token_p50_ms"] < 1 < theirs["inter_token_p99_ms"]


def test_a_peer_that_is_not_there_says_why(demo_folder, tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    python.chmod(0o755)
    done = compare("--ours", f"fp32={demo_folder}", f"--peer=openvino-paged:fp32={python}:{tmp_path}")
    assert done.returncode == 1 and done.stdout == ""
    assert "openvino-paged fp32 ended early" in done.stderr


@pytest.mark.parametrize("peer", ["openvino:int8={0}:{1}", "openvino-paged:fp31={0}:{1}"])
def test_a_peer_that_cannot_be_is_refused(demo_folder, peer):
    done = compare("--ours", f"fp32={demo_folder}", "--peer", peer.format(sys.executable, demo_folder))
    assert done.returncode == 2 and "argument --peer" in done.stderr


def test_no_requests_is_one_line(demo_folder):
    done = compare("--ours", f"fp32={demo_folder}", "--requests", 0)
    assert (done.returncode, done.stderr) == (1, "error: requests must be at least 1, not 0\n")
