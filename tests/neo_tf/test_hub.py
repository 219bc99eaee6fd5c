"""Downloads from a small hub, served on the loopback address by a process of its own."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from conftest import TINY_PYTHON
from safetensors.numpy import save_file

from neo_tf.checkpoints import convert
from neo_tf.errors import CheckpointError
from neo_tf.hub import needed_files

COMMIT = {"main": "a" * 40, "older": "b" * 40, "adapted": "c" * 40}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as a download takes."""

    files, asked = {}, []

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0].strip("/")
        parts = path.split("/")
        if parts[:4] == ["api", "models", "someone", "tiny"]:
            revision = parts[5] if len(parts) > 5 else "main"
            commit = COMMIT.get(revision, revision)
            if commit not in self.files:
                return self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            names = sorted(self.files[commit])
            if len(parts) > 4 and parts[4] == "tree":
                sizes = {name: len(self.files[commit][name]) for name in names}
                body = [{"type": "file", "path": name, "size": sizes[name], "oid": "0" * 40} for name in names]
            else:
                body = {"id": "someone/tiny", "sha": commit, "siblings": [{"rfilename": name} for name in names]}
            return self._answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})
        if parts[:3] == ["someone", "tiny", "resolve"]:
            commit, name = COMMIT.get(parts[3], parts[3]), "/".join(parts[4:])
            content = self.files.get(commit, {}).get(name)
            if content is None:
                return self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            if self.command == "GET":
                self.asked.append(name)
            etag = hashlib.sha256(content).hexdigest()
            return self._answer(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": commit})
        return self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _answer(self, status, body, headers):
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The address of a hub with someone/tiny: safetensors and a .bin on main, safetensors alone on `older`."""
    folder = tmp_path_factory.mktemp("hub") / "tiny"
    convert(TINY_PYTHON, folder, "huggingface")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    Hub.files = {
        COMMIT["main"]: files | {"pytorch_model.bin": b"never asked for", "logo.png": b"nor this", "README.md": b"#"},
        COMMIT["older"]: files,
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def run(hub, cache, *arguments, offline=False):
    env = os.environ | {"HF_ENDPOINT": hub, "HF_HOME": str(cache / "hf"), "NEO_TF_CACHE": str(cache / "neo-tf")}
    env |= {"HF_HUB_OFFLINE": "1" if offline else "0", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "neo_tf.cli", *arguments]
    return subprocess.run(command, env=env, cwd=cache, capture_output=True, text=True, timeout=120)


def test_generate_downloads_what_it_needs_and_then_works_offline(hub, tmp_path):
    Hub.asked.clear()
    arguments = ("generate", "someone/tiny", "def main(", "--max-new-tokens", "8")
    first = run(hub, tmp_path, *arguments)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("def main(")
    assert "model.safetensors" in Hub.asked
    assert not {"pytorch_model.bin", "logo.png", "README.md"} & set(Hub.asked)

    again = run("http://127.0.0.1:9", tmp_path, *arguments, offline=True)
    assert again.returncode == 0, again.stderr
    assert again.stdout == first.stdout


def test_a_revision_is_downloaded_by_name(hub, tmp_path):
    result = run(hub, tmp_path, "convert", "someone/tiny", str(tmp_path / "out"), "--revision", "older")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "model.weights.h5").is_file()
    snapshots = tmp_path / "hf" / "hub" / "models--someone--tiny" / "snapshots"
    assert [path.name for path in snapshots.iterdir()] == [COMMIT["older"]]


def test_an_adapter_is_merged_into_the_base_that_it_names(hub, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    options = {"peft_type": "LORA", "base_model_name_or_path": "someone/tiny", "revision": "older", "r": 2}
    (adapter / "adapter_config.json").write_text(json.dumps(options | {"lora_alpha": 64}))
    generator = np.random.default_rng(0)
    shapes = {"A": (2, 128), "B": (128, 2)}
    name = "base_model.model.transformer.h.0.attn.attention.v_proj.lora_{}.weight"
    tensors = {name.format(half): generator.normal(size=shape).astype(np.float32) for half, shape in shapes.items()}
    save_file(tensors, adapter / "adapter_model.safetensors")
    arguments = ("def main(", "--max-new-tokens", "8")
    named = run(hub, tmp_path, "generate", str(adapter), *arguments)
    assert named.returncode == 0, named.stderr
    snapshots = tmp_path / "hf" / "hub" / "models--someone--tiny" / "snapshots"
    assert [path.name for path in snapshots.iterdir()] == [COMMIT["older"]]
    given = run(hub, tmp_path, "generate", "someone/tiny", *arguments, "--adapter", str(adapter))
    without = run(hub, tmp_path, "generate", "someone/tiny", *arguments)
    assert given.stdout == named.stdout != without.stdout
    files = Hub.files[COMMIT["main"]] | {path.name: path.read_bytes() for path in adapter.iterdir()}
    Hub.files[COMMIT["adapted"]] = files
    beside = run(hub, tmp_path, "generate", "someone/tiny", *arguments, "--revision", "adapted")
    assert beside.stdout == named.stdout, beside.stderr


@pytest.mark.parametrize(
    ("arguments", "offline"),
    [
        (("someone/tiny", "x", "--revision", "nowhere"), False),
        (("someone/else", "x"), False),
        (("someone/tiny", "x"), True),
    ],
)
def test_what_is_not_to_be_had_is_one_line(hub, tmp_path, arguments, offline):
    result = run(hub, tmp_path, "generate", *arguments, offline=offline)
    assert result.returncode == 1
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {arguments[0]}")


def test_one_kind_of_weights_is_needed():
    files = ["config.json", "model.safetensors", "pytorch_model.bin", "flax_model.msgpack", "merges.txt", "a/b.json"]
    assert needed_files(files) == ["config.json", "model.safetensors", "merges.txt"]
    sharded = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    assert needed_files([*sharded, "pytorch_model.bin"]) == sharded
    assert needed_files(["config.json", "pytorch_model.bin"]) == ["config.json", "pytorch_model.bin"]
    with pytest.raises(CheckpointError, match="no weights"):
        needed_files(["config.json", "tf_model.h5"])


def test_all_files_of_a_tokenizer_are_needed():
    tokenizer = ["tokenizer.json", "merges.txt", "vocab.txt", "tokenizer.model", "chat_template.jinja"]
    names = [*tokenizer, "additional_chat_templates/tools.jinja", "model.safetensors"]
    assert needed_files([*names, "onnx/model.onnx", "README.md", "runs/events.json"]) == names


def test_an_onnx_folder_comes_with_all_its_graphs():
    graphs = ["decoder.onnx", "decoder_int8.onnx", "model.onnx", "model.onnx_data", "model_int8.onnx", "prefill.onnx"]
    assert needed_files(["README.md", *graphs, "pytorch_model.onnx.zip"]) == graphs
