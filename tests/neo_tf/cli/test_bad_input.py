"""What a user can get wrong, through the command line: one line, exit status 1, and nothing written."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from checkpoint_helpers import FORMATS, check_error_line, command, copy_checkpoint, cut_short, edit_json, files_below
from checkpoint_helpers import flip_byte as flip
from conftest import GOLDEN, TINY_PYTHON

import neo_tf
from neo_tf.checkpoints import huggingface
from neo_tf.errors import RequestError

SHARD = "model.ckpt-300.data-00001-of-00002"
COMMANDS = ("convert", "export")


@pytest.fixture
def folder(tmp_path):
    """A copy of a checkpoint as the original code left it: two shards, Adam's slots, global_step."""
    return copy_checkpoint(GOLDEN / "tiny-local-radius", tmp_path / "source")


@pytest.fixture
def converted(tmp_path):
    """A function that gives the demo model in a format."""

    def convert(to):
        neo_tf.convert(TINY_PYTHON, tmp_path / "source", to)
        return tmp_path / "source"

    return convert


@pytest.fixture
def refused(capfd, tmp_path):
    """A function that runs a command which must be refused, and checks what it says and leaves."""

    def run(*arguments, naming=()):
        capfd.readouterr()
        assert command(*arguments) == 1
        out, err = capfd.readouterr()
        assert out == ""
        check_error_line(err, *naming)
        assert files_below(tmp_path / "out") == []

    return run


# ---- the original's checkpoint


@pytest.mark.parametrize("how", COMMANDS)
@pytest.mark.parametrize("shard", ["model.ckpt-300.data-00000-of-00002", SHARD])
def test_missing_shard(folder, tmp_path, refused, shard, how):
    (folder / shard).unlink()
    refused(how, folder, tmp_path / "out" / "dst", naming=[folder, shard, "missing"])


def test_no_shard_at_all(folder, tmp_path, refused):
    for shard in folder.glob("*.data-*"):
        shard.unlink()
    refused("convert", folder, tmp_path / "out" / "dst", naming=[folder, "no data shards"])


@pytest.mark.parametrize("how", COMMANDS)
@pytest.mark.parametrize("size", [0, 1000, -1])
def test_shard_cut_short(folder, tmp_path, refused, size, how):
    cut_short(folder / SHARD, size)
    refused(how, folder, tmp_path / "out" / "dst", naming=[folder, "damaged"])


def place(folder, where):
    """A shard, and the offset of a byte in it."""
    if where == "global_step":
        return folder / "model.ckpt-300.data-00000-of-00002", 3
    data = (folder / SHARD).read_bytes()
    if where in ("first", "last"):
        return folder / SHARD, {"first": 0, "last": len(data) - 1}[where]
    tensor = tf.train.load_checkpoint(str(folder)).get_tensor(where).tobytes()
    return folder / SHARD, data.index(tensor) + len(tensor) // 2


PLACES = {
    "first": "gpt2/",
    "last": "gpt2/",
    "global_step": "global_step",
    **{name: name for name in ("gpt2/h0/attn/q", "gpt2/wpe", "gpt2/h3/mlp/conv1d_main/c_fc/bias")},
    **{name: name for name in ("gpt2/h0/attn/q/adam_m", "gpt2/wte/adam_v")},
}


@pytest.mark.parametrize("how", COMMANDS)
@pytest.mark.parametrize("where", PLACES)
def test_byte_flipped_in_a_shard(folder, tmp_path, refused, where, how):
    flip(*place(folder, where))
    refused(how, folder, tmp_path / "out" / "dst", naming=[folder, PLACES[where], "damaged"])


@pytest.mark.parametrize("to", FORMATS)
def test_byte_flipped_and_every_format_asked_for(folder, tmp_path, refused, to):
    flip(*place(folder, "gpt2/h2/attn/v"))
    refused("convert", folder, tmp_path / "out" / "dst", "--to", to, naming=["gpt2/h2/attn/v"])


def test_a_process_of_its_own_says_no_more_than_the_one_line(folder, tmp_path):
    """TensorFlow's C++ code logs past Python: only a fresh process shows whether it is kept quiet."""
    flip(*place(folder, "gpt2/h0/attn/q"))
    environment = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
    arguments = [sys.executable, "-m", "neo_tf.cli", "convert", str(folder), str(tmp_path / "out" / "dst")]
    done = subprocess.run(
        arguments, capture_output=True, text=True, env=environment, cwd=GOLDEN.parents[2], timeout=120
    )
    assert (done.returncode, done.stdout) == (1, "")
    check_error_line(done.stderr, folder, "gpt2/h0/attn/q")
    assert files_below(tmp_path / "out") == []


# ---- the config


@pytest.mark.parametrize(
    ("changes", "naming"),
    [
        ({"n_head": 5}, ["n_embd 32", "n_head 5"]),
        ({"attention_types": [[["locul"], 4]]}, ["'locul'", "layer 0"]),
        ({"attention_types": [[["local"], 3]]}, ["3 layers", "n_layer is 4"]),
        ({"n_embd": 64}, ["[257, 32]", "[257, 64]", "n_embd 64"]),
        ({"n_vocab": 50257}, ["gpt2/wte", "[257, 32]", "n_vocab 50257"]),
        ({"n_ctx": 2048}, ["gpt2/wpe", "[256, 32]", "n_ctx 2048"]),
        ({"n_layer": 2, "attention_types": [[["local"], 2]]}, ["unknown to the model 26", "gpt2/h2/attn/k"]),
        ({"n_layer": 5, "attention_types": [[["local"], 5]]}, ["missing 13", "gpt2/h4/attn/q"]),
        ({"mlm_training": True}, ["mlm_training"]),
        ({"rotary_emb": True}, ["unknown to the model 1", "gpt2/wpe"]),
        ({"n_head": "4"}, ["n_head", "'4'"]),
        ({"eos_token_id": "<|endoftext|>"}, ["eos_token_id"]),
    ],
)
@pytest.mark.parametrize("how", COMMANDS)
def test_config_that_contradicts_itself_or_the_weights(folder, tmp_path, refused, changes, naming, how):
    edit_json(folder / "config.json", **changes)
    refused(how, folder, tmp_path / "out" / "dst", naming=[folder, *naming])


@pytest.mark.parametrize(
    ("content", "naming"),
    [(None, "config.json"), (b"", "not JSON"), (b'{"n_head": 4,', "not JSON"), (b"[]", "JSON object")],
)
@pytest.mark.parametrize("to", FORMATS)
def test_config_missing_or_not_json(converted, tmp_path, refused, to, content, naming):
    folder = converted(to)
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_bytes(content)
    refused("convert", folder, tmp_path / "out" / "dst", naming=[folder, naming])


# ---- the other formats


@pytest.mark.parametrize("how", COMMANDS)
@pytest.mark.parametrize("size", [0, 7, 5000, 3_000_000, -1])
@pytest.mark.parametrize(("to", "file"), [("huggingface", "model.safetensors"), ("keras", "model.weights.h5")])
def test_weights_cut_short(converted, tmp_path, refused, to, file, size, how):
    folder = converted(to)
    cut_short(folder / file, size)
    refused(how, folder, tmp_path / "out" / "dst", naming=[folder / file])


@pytest.mark.parametrize(("to", "file"), [("huggingface", "model.safetensors"), ("keras", "model.weights.h5")])
def test_weights_that_are_something_else(converted, tmp_path, refused, to, file):
    folder = converted(to)
    shutil.copy(TINY_PYTHON / "README.md", folder / file)
    refused("convert", folder, tmp_path / "out" / "dst", naming=[folder / file])


def test_missing_safetensors_shard(converted, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(huggingface, "_SHARD_BYTES", 3_000_000)
    folder = converted("huggingface")
    (folder / "model-00002-of-00003.safetensors").unlink()
    refused("export", folder, tmp_path / "out" / "dst", naming=[folder, "model-00002-of-00003.safetensors"])


# ---- folders


@pytest.mark.parametrize("how", [*COMMANDS, "info"])
@pytest.mark.parametrize("kind", ["empty", "of other things", "a file", "nothing", "onnx"])
def test_folder_that_is_no_checkpoint(tmp_path, refused, demo_folder, kind, how):
    path = demo_folder if kind == "onnx" else tmp_path / "source"
    if kind in ("empty", "of other things"):
        path.mkdir()
    if kind == "of other things":
        (path / "config.json").write_text("{}")
        (path / "pytorch_model.txt").write_text("weights")
    if kind == "a file":
        path.write_text("weights")
    if (kind, how) != ("onnx", "info"):  # which shows what it is
        refused(how, path, *([] if how == "info" else [tmp_path / "out" / "dst"]), naming=[path])


@pytest.mark.parametrize("how", COMMANDS)
def test_destination_that_is_not_empty(tmp_path, refused, capfd, how):
    dst = tmp_path / "dst"
    neo_tf.convert(GOLDEN / "act-relu", dst, "keras")
    before = {path.name: path.read_bytes() for path in dst.iterdir()}
    refused(how, TINY_PYTHON, dst, naming=[dst, "not empty", "--force"])
    assert {path.name: path.read_bytes() for path in dst.iterdir()} == before
    (dst / "thesis.tex").write_text("precious")
    refused(how, TINY_PYTHON, dst, "--force", naming=[dst, "thesis.tex"])
    assert (dst / "thesis.tex").read_text() == "precious"
    (dst / "thesis.tex").unlink()
    assert command(how, TINY_PYTHON, dst, "--force") == 0
    capfd.readouterr()


def test_destination_below_a_file(tmp_path, refused):
    (tmp_path / "file").write_text("precious")
    refused("convert", TINY_PYTHON, tmp_path / "file" / "dst", naming=[tmp_path / "file" / "dst"])


@pytest.mark.parametrize(
    ("options", "naming"),
    [
        (["--tokenizer", "nowhere.json"], ["nowhere.json"]),
        (["--config", "nowhere.json"], ["nowhere.json"]),
        (["--n-vocab", "2047"], ["2047", "2048"]),
        (["--n-vocab", "2049"], ["2048", "2049"]),
    ],
)
def test_option_that_does_not_fit(tmp_path, refused, options, naming):
    refused("convert", TINY_PYTHON, tmp_path / "out" / "dst", *options, naming=naming)


def test_tokenizer_that_is_too_large_or_none(folder, tmp_path, refused):
    tokenizer = TINY_PYTHON / "byte-level-bpe.tokenizer.json"
    refused("convert", folder, tmp_path / "out" / "dst", "--tokenizer", tokenizer, naming=["2048 ids", "257"])
    (folder / "tokenizer.json").write_text(json.dumps({"model": {}}))
    refused("convert", folder, tmp_path / "out" / "dst", naming=[folder, "tokenizer"])


# ---- prompts


@pytest.mark.parametrize(
    ("prompt", "options", "naming"),
    [
        ("def f(x): return x\n" * 100, [], ["n_ctx is 512"]),
        ("import os", ["--max-new-tokens", "512"], ["512", "n_ctx 512"]),
        ("import os", ["--max-new-tokens", "0"], ["max_new_tokens", "0"]),
        ("import os", ["--do-sample", "--temperature", "0"], ["temperature"]),
        ("import os", ["--do-sample", "--top-p", "1.5"], ["top_p", "1.5"]),
        ("import os", ["--device", "tpu"], ["tpu"]),
        ("caf\udce9", [], ["prompt"]),  # what Python makes of an argument that is not UTF-8
    ],
)
def test_prompt_or_option_that_cannot_be_served(demo_folder, refused, prompt, options, naming):
    refused("generate", demo_folder, prompt, *options, naming=naming)


@pytest.mark.parametrize("token", [2048, 50257, -1])
def test_token_id_outside_the_vocabulary(demo_folder, token):
    generator = neo_tf.pipeline("text-generation", model=demo_folder, do_sample=False)
    for prompt in ([5, 6, token], np.array([5, 6, token]), [[5, 6, 7], [5, 6, token]]):
        with pytest.raises(RequestError, match=f"token id {token} at position 2 is outside the vocabulary of 2048"):
            generator(prompt)


def test_prompt_of_no_tokens_or_too_many(demo_folder):
    generator = neo_tf.pipeline("text-generation", model=demo_folder, do_sample=False)
    for prompt in ([], [[]]):
        with pytest.raises(RequestError, match="empty"):
            generator(prompt)
    with pytest.raises(RequestError, match="512"):
        generator([5] * 513)


def test_generate_from_what_is_no_model(tmp_path, refused, monkeypatch):
    monkeypatch.setenv("NEO_TF_CACHE", str(tmp_path / "out"))
    refused("generate", tmp_path / "nowhere", "x", naming=[tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    refused("generate", tmp_path / "empty", "x", naming=[tmp_path / "empty"])
    folder = copy_checkpoint(GOLDEN / "act-relu", tmp_path / "damaged")
    flip(folder / SHARD, 1000)
    refused("generate", folder, "x", naming=[folder])


@pytest.mark.parametrize("file", ["decoder.onnx", "model.onnx_data", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("harm", ["missing", "cut short"])
def test_damaged_onnx_folder(demo_folder, tmp_path, refused, file, harm):
    folder = shutil.copytree(demo_folder, tmp_path / "damaged")
    if harm == "missing":
        (folder / file).unlink()
    else:
        cut_short(folder / file, 1000)
    refused("generate", folder, "import os", naming=["tokenizer" if file == "tokenizer.json" else folder])
