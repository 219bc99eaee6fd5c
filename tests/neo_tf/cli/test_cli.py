"""The command line, each subcommand once: what it writes and what it says."""

import io
import json
import re
import shutil
import signal
import subprocess
import sys

import pytest
from checkpoint_helpers import FORMATS, assert_same_bits, command, read_all
from conftest import GOLDEN, TINY_PYTHON, Reference

import neo_tf

PROMPT = "def read_lines(path):"


@pytest.fixture
def run(capfd):
    """A function that runs a command which must succeed, and returns standard output and standard error."""

    def run(*arguments):
        capfd.readouterr()
        status = command(*arguments)
        out, err = capfd.readouterr()
        assert status == 0, err
        return out, err

    return run


def rows(table):
    """{label: value} of a printed table."""
    lines = [re.split(r"  +", line.strip(), maxsplit=1) for line in table.splitlines()]
    return dict(line for line in lines if len(line) == 2)  # a long path goes on in a line of its own


def test_version_and_help(run):
    assert run("--version")[0] == f"neo-tf {neo_tf.__version__}\n"
    out, _ = run("--help")
    for name in ("convert", "export", "verify", "generate", "benchmark", "init", "info"):
        assert name in out
        assert "Usage" in run(name, "--help")[0]


@pytest.mark.parametrize("to", FORMATS)
def test_convert(run, tmp_path, to):
    out, err = run("convert", TINY_PYTHON, tmp_path / "dst", "--to", to)
    assert_same_bits(read_all(neo_tf.open_checkpoint(tmp_path / "dst")), read_all(neo_tf.open_checkpoint(TINY_PYTHON)))
    assert out == "" and err.startswith(f"{tmp_path / 'dst'}: {to}, 1.5 million parameters, 6.")


def test_convert_writes_keras_by_default_and_takes_every_option(run, tmp_path):
    config, tokenizer = tmp_path / "there.json", GOLDEN / "tokenizer.json"
    config.write_bytes((GOLDEN / "vocab-padded" / "config.json").read_bytes())
    options = ["--config", config, "--tokenizer", tokenizer, "--n-vocab", 257]
    run("convert", GOLDEN / "vocab-padded" / "model.ckpt-300", tmp_path / "dst", *options)
    checkpoint = neo_tf.open_checkpoint(tmp_path / "dst")
    assert (checkpoint.format, checkpoint.config.n_vocab) == ("keras", 257)
    assert checkpoint.files["tokenizer.json"] == tokenizer.read_bytes()


def test_export_and_verify(run, tmp_path):
    _, err = run("export", TINY_PYTHON, tmp_path / "onnx")
    assert err.startswith(f"{tmp_path / 'onnx'}: ONNX, fp32, 1.5 million parameters")
    out, err = run("verify", TINY_PYTHON, tmp_path / "onnx", "--tokens", 280)
    assert err.startswith("280 tokens") and "is within 1e-04" in err
    assert out.count("steps") == out.count("prefill") == 2


def test_verify_fails_where_the_weights_differ(tmp_path, capfd):
    neo_tf.init_checkpoint(TINY_PYTHON / "config.json", tmp_path / "other", "huggingface")
    neo_tf.export_onnx(tmp_path / "other", tmp_path / "onnx")
    assert command("verify", TINY_PYTHON, tmp_path / "onnx", "--tokens", 20) == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: {tmp_path / 'onnx'}: decoder.onnx, prefill: logits differ")
    assert command("verify", TINY_PYTHON, tmp_path / "onnx", "--tokens", 20, "--tolerance", 1000) == 0
    capfd.readouterr()


def test_generate_shows_the_originals_greedy_text(run, demo_folder):
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(TINY_PYTHON / "byte-level-bpe.tokenizer.json"))
    greedy = Reference.load(TINY_PYTHON, padding=1).greedy
    prompt, expected = next(iter(greedy.values()))[0]
    text = tokenizer.decode(prompt)
    assert tokenizer.encode(text).ids == prompt
    out, err = run("generate", demo_folder, text, "--max-new-tokens", 60)
    assert out == tokenizer.decode(prompt + expected[:60]) + "\n"
    assert err == ""


def test_generate_samples_as_the_pipeline_does(run, demo_folder):
    options = {"max_new_tokens": 30, "do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9, "seed": 5}
    (expected,) = neo_tf.pipeline("text-generation", model=demo_folder, do_sample=False)(PROMPT, **options)
    flags = ["--do-sample", "--temperature", 0.7, "--top-k", 20, "--top-p", 0.9, "--seed", 5]
    out, _ = run("generate", demo_folder, PROMPT, "--max-new-tokens", 30, *flags)
    assert out == expected["generated_text"] + "\n"
    assert run("generate", demo_folder, PROMPT, "--max-new-tokens", 30, *flags)[0] == out
    assert run("generate", demo_folder, PROMPT, "--max-new-tokens", 30, *flags[:-1], 6)[0] != out


def test_generate_reads_the_prompt_from_standard_input(run, demo_folder, monkeypatch):
    expected, _ = run("generate", demo_folder, PROMPT, "--max-new-tokens", 5)
    monkeypatch.setattr(sys, "stdin", io.StringIO(PROMPT + "\n"))
    assert run("generate", demo_folder, "--max-new-tokens", 5)[0] == expected


@pytest.mark.parametrize("format", FORMATS)
def test_generate_exports_a_checkpoint_once(run, tmp_path, demo_folder, monkeypatch, format):
    monkeypatch.setenv("NEO_TF_CACHE", str(tmp_path / "cache"))
    expected, _ = run("generate", demo_folder, PROMPT, "--max-new-tokens", 5)
    neo_tf.convert(TINY_PYTHON, tmp_path / "model", format)
    assert run("generate", tmp_path / "model", PROMPT, "--max-new-tokens", 5)[0] == expected
    (folder,) = (tmp_path / "cache").iterdir()
    written = (folder / "decoder.onnx").stat().st_mtime_ns
    assert run("generate", tmp_path / "model", PROMPT, "--max-new-tokens", 5)[0] == expected
    assert [folder] == list((tmp_path / "cache").iterdir())
    assert (folder / "decoder.onnx").stat().st_mtime_ns == written


@pytest.mark.parametrize("to", FORMATS)
def test_init(run, tmp_path, to):
    _, err = run("init", TINY_PYTHON / "config.json", tmp_path / "dst", "--to", to, "--seed", 3)
    assert "1.5 million parameters" in err
    checkpoint = neo_tf.open_checkpoint(tmp_path / "dst")
    assert checkpoint.config.n_layer == 6 and checkpoint.tokenizer is not None
    again = neo_tf.init_checkpoint(TINY_PYTHON / "config.json", tmp_path / "again", "keras", seed=3)
    assert_same_bits(read_all(checkpoint), read_all(again))


@pytest.mark.parametrize("format", [*FORMATS, "onnx"])
def test_info(run, tmp_path, demo_folder, format):
    folder = demo_folder if format == "onnx" else tmp_path / "model"
    if format != "onnx":
        neo_tf.convert(TINY_PYTHON, folder, format)
    shown = rows(run("info", folder)[0])
    names = {"keras": "Keras folder", "huggingface": "Hugging Face folder", "mesh-tf": "Mesh-TensorFlow checkpoint"}
    assert shown["format"] == names.get(format, "ONNX folder for CPU")
    assert shown["parameters"] == "1,515,264" and shown["options"] == "none"
    assert shown["layers"] == "6 (3 global, 3 local, radius 256)"
    assert shown["heads"] == "4 of size 32" and shown["context"] == "512 tokens"
    assert shown["vocabulary"] == "2048 (end-of-text 0)" and shown["tokenizer"] == "2048 ids"


def test_info_of_a_bfloat16_checkpoint_without_a_tokenizer(run):
    shown = rows(run("info", GOLDEN / "tiny-global")[0])
    assert shown["weights"].endswith("in bfloat16") and shown["tokenizer"] == "none found"
    assert shown["layers"] == "4 (4 global)" and shown["trained for"] == "300 steps"


def test_written_folder_may_be_named_relative_to_where_one_is(run, tmp_path, monkeypatch):
    neo_tf.convert(TINY_PYTHON, tmp_path / "here", "huggingface")
    monkeypatch.chdir(tmp_path / "here")
    run("convert", ".", "../keras")
    run("export", ".", "../onnx")
    assert rows(run("info", ".")[0])["format"] == "Hugging Face folder"
    monkeypatch.chdir(tmp_path / "onnx")
    assert run("generate", ".", PROMPT, "--max-new-tokens", 3)[0].startswith(PROMPT)


def test_written_config_is_json_for_people(tmp_path):
    neo_tf.convert(TINY_PYTHON, tmp_path / "dst", "huggingface")
    text = (tmp_path / "dst" / "config.json").read_text()
    assert text.endswith("}\n") and text == json.dumps(json.loads(text), indent=2) + "\n"


def test_info_names_the_options_that_are_on(run):
    assert rows(run("info", GOLDEN / "rotary")[0])["options"] == "rotary_emb"
    assert rows(run("info", GOLDEN / "moe")[0])["options"] == "moe_layers (1, 3), 4 experts"


@pytest.mark.parametrize(
    ("arguments", "naming"),
    [
        (("convert", TINY_PYTHON, "x", "--to", "onnx"), "onnx"),
        (("convert", TINY_PYTHON), "dst"),
        (("generate", "x", "y", "--top-k", "-1"), "--top-k"),
        (("nonsense",), "nonsense"),
        (("info", "--nonsense"), "--nonsense"),
    ],
)
def test_wrong_usage_is_one_line_and_exits_with_2(arguments, naming, capfd):
    assert command(*arguments) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and naming in err.lower()


def test_a_damaged_tokenizer_does_not_keep_info_from_telling_the_rest(run, demo_folder, tmp_path):
    shutil.copytree(demo_folder, tmp_path / "onnx")
    (tmp_path / "onnx" / "tokenizer.json").write_bytes(b"{bad \xff")
    shown = rows(run("info", tmp_path / "onnx")[0])
    assert shown["tokenizer"] == "damaged" and shown["heads"] == "4 of size 32"


def test_a_terminated_export_leaves_nothing(tmp_path):
    """SIGTERM in the middle, as a service manager sends it."""
    code = (
        "import os, signal, sys, neo_tf.cli.export, contextlib\n"
        "stop = lambda *_: os.kill(os.getpid(), signal.SIGTERM)\n"
        "neo_tf.cli.export.byte_progress = lambda *_: contextlib.nullcontext(stop)\n"
        f"sys.argv = ['neo-tf', 'export', {str(TINY_PYTHON)!r}, {str(tmp_path / 'dst')!r}]\n"
        "neo_tf.cli.main()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 128 + signal.SIGTERM and "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []
