"""Weights in every state in which people hold them: names, types, heads, damage, pointers, links."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from checkpoint_helpers import assert_same_bits, check_error_line, command, copy_checkpoint, edit_json, read_all, worst
from conftest import GOLDEN, TINY_PYTHON
from safetensors.torch import load_file, save_file
from transformers import GPTNeoConfig, GPTNeoForCausalLM, GPTNeoForSequenceClassification, GPTNeoForTokenClassification

import neo_tf
from neo_tf.errors import CheckpointError, EngineError, RequestError
from neo_tf.model_cache import resolve_model
from neo_tf.onnx_folder import OnnxFolder

SHAPE = {
    **{"vocab_size": 96, "max_position_embeddings": 32, "hidden_size": 24, "num_layers": 2, "num_heads": 3},
    **{"attention_types": [[["global", "local"], 1]], "window_size": 5, "bos_token_id": 0, "eos_token_id": 0},
}
IDS = np.arange(30)[None] * 7 % 96
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 526009000\n"


def small(kind=GPTNeoForCausalLM):
    """A model that transformers makes, every parameter random."""
    model = kind(GPTNeoConfig(**SHAPE))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture
def saved(tmp_path):
    small().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def rewrite(folder, change):
    """Saves the folder's tensors again, as change(tensors) returns them."""
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})


def transformers_logits(folder, kind=GPTNeoForCausalLM):
    with torch.no_grad():
        return kind.from_pretrained(folder, dtype="auto").eval()(torch.from_numpy(IDS)).logits.float().numpy()


def our_logits(folder, tmp_path):
    """What transformers computes from the folder that neo-tf makes of another."""
    neo_tf.convert(folder, tmp_path / "ours", "huggingface")
    return transformers_logits(tmp_path / "ours")


# ---- names


def test_tied_weights_may_be_stored_under_the_heads_name_alone(tmp_path, saved):
    def change(tensors):
        return {("lm_head.weight" if name == "transformer.wte.weight" else name): t for name, t in tensors.items()}

    rewrite(saved, change)
    assert worst(our_logits(saved, tmp_path), transformers_logits(saved)) < 1e-6


@pytest.mark.parametrize("tie_word_embeddings", [True, False])
@pytest.mark.parametrize("factor", [1, -1])
def test_two_embeddings_that_differ_are_two_whatever_the_config_says(tmp_path, saved, tie_word_embeddings, factor):
    rewrite(saved, lambda tensors: tensors | {"lm_head.weight": factor * tensors["transformer.wte.weight"]})
    edit_json(saved / "config.json", tie_word_embeddings=tie_word_embeddings)
    assert worst(our_logits(saved, tmp_path), transformers_logits(saved)) < 1e-6
    assert neo_tf.open_checkpoint(saved).config.untied_lm_head == (factor < 0)


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "base_model.model.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "pretrained_model.",
        "model.",
    ],
)
@pytest.mark.parametrize("bare", [False, True], ids=["whole", "bare"])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_prefixes_of_wrappers_are_taken_off(saved, prefix, bare, file):
    expected = read_all(neo_tf.open_checkpoint(saved))
    tensors = load_file(saved / "model.safetensors")
    renamed = {prefix + (name.removeprefix("transformer.") if bare else name): value for name, value in tensors.items()}
    (saved / "model.safetensors").unlink()
    if file.endswith("bin"):
        torch.save(renamed, saved / file)
    else:
        save_file(renamed, saved / file)
    assert_same_bits(read_all(neo_tf.open_checkpoint(saved)), expected)


def test_wrappers_inside_a_name_are_taken_off(saved):
    expected = read_all(neo_tf.open_checkpoint(saved))
    rewrite(
        saved,
        lambda tensors: {
            name.replace("transformer.h.0.", "transformer.h.0._fsdp_wrapped_module._checkpoint_wrapped_module."): value
            for name, value in tensors.items()
        },
    )
    assert_same_bits(read_all(neo_tf.open_checkpoint(saved)), expected)


def test_a_prefix_that_some_names_lack_is_refused(saved):
    rewrite(saved, lambda tensors: tensors | {f"module.{name}": t.clone() for name, t in list(tensors.items())[:3]})
    with pytest.raises(CheckpointError, match=r"unknown to the model 3 \(module\.transformer"):
        neo_tf.open_checkpoint(saved)


def test_one_tensor_under_two_names_must_be_one(saved):
    rewrite(saved, lambda tensors: tensors | {"ln_f.weight": tensors["transformer.ln_f.weight"].clone()})
    neo_tf.open_checkpoint(saved)
    rewrite(saved, lambda tensors: tensors | {"ln_f.weight": tensors["transformer.ln_f.weight"] + 1})
    with pytest.raises(CheckpointError, match=r"holds (transformer\.)?ln_f\.weight twice"):
        neo_tf.open_checkpoint(saved)


# ---- heads


@pytest.mark.parametrize(
    ("kind", "names"),
    [(GPTNeoForSequenceClassification, "score.weight"), (GPTNeoForTokenClassification, "classifier.bias")],
)
def test_a_classifier_is_a_language_model_with_a_note(tmp_path, caplog, kind, names):
    small(kind).save_pretrained(tmp_path / "saved")
    got = our_logits(tmp_path / "saved", tmp_path)
    assert worst(got, transformers_logits(tmp_path / "saved")) < 1e-6
    assert "left out what is not the language model's" in caplog.text and names in caplog.text


@pytest.mark.parametrize("prefix", ["", "pretrained_model."])
def test_a_value_head_is_left_out_with_a_note(saved, caplog, prefix):
    expected = read_all(neo_tf.open_checkpoint(saved))
    head = {"v_head.summary.weight": torch.ones(1, 24), "v_head.summary.bias": torch.ones(1)}
    rewrite(saved, lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()} | head)
    assert_same_bits(read_all(neo_tf.open_checkpoint(saved)), expected)
    assert "v_head.summary.weight, v_head.summary.bias" in caplog.text or "v_head.summary.bias" in caplog.text


def test_a_note_is_one_line_on_standard_error(saved):
    rewrite(saved, lambda tensors: tensors | {"score.weight": torch.ones(2, 24)})
    done = subprocess.run([sys.executable, "-m", "neo_tf", "info", saved], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == [f"note: {saved}: left out what is not the language model's: score.weight"]


# ---- types


@pytest.mark.parametrize("safe", [True, False])
def test_float64_is_rounded_to_float32_with_a_note(tmp_path, caplog, safe):
    model = small().double()
    model.save_pretrained(tmp_path / "saved")
    if not safe:
        torch.save(model.state_dict(), tmp_path / "saved" / "pytorch_model.bin")
        (tmp_path / "saved" / "model.safetensors").unlink()
    assert worst(our_logits(tmp_path / "saved", tmp_path), transformers_logits(tmp_path / "saved")) < 1e-5
    assert "tensors in float64 are rounded to float32" in caplog.text
    assert neo_tf.open_checkpoint(tmp_path / "ours").dtype == "float32"


def test_a_float64_beyond_float32_is_named(tmp_path, saved):
    rewrite(saved, lambda tensors: tensors | {"transformer.ln_f.bias": torch.full((24,), 1e300, dtype=torch.float64)})
    with pytest.raises(CheckpointError, match=r"gpt2/ln_f/b holds 1e\+300, which is too large for float32"):
        neo_tf.convert(saved, tmp_path / "ours", "huggingface")


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn", "float8_e5m2", "int32"])
def test_a_type_that_is_not_read_is_named(saved, dtype):
    rewrite(saved, lambda tensors: tensors | {"transformer.ln_f.bias": torch.zeros(24).to(getattr(torch, dtype))})
    with pytest.raises(CheckpointError, match=f"gpt2/ln_f/b is of type {dtype}, not one of float32"):
        neo_tf.open_checkpoint(saved)


# ---- NaN and Inf


@pytest.fixture(params=[("nan", "1 NaN"), ("inf", "1 Inf"), ("-inf", "1 Inf")], ids=lambda param: param[0])
def damaged(request, saved):
    """(a folder with one such number, what a message calls it)."""
    value, words = request.param

    def change(tensors):
        tensors["transformer.h.1.mlp.c_fc.weight"][0, 0] = float(value)
        return tensors

    rewrite(saved, change)
    return saved, words


@pytest.mark.parametrize("to", ["huggingface", "keras", "mesh-tf"])
def test_nan_is_named_at_conversion(damaged, tmp_path, capfd, to):
    folder, words = damaged
    assert command("convert", folder, tmp_path / "out", "--to", to) == 1
    check_error_line(capfd.readouterr().err, folder, f"gpt2/h1/mlp/conv1d_main/c_fc/kernel holds {words} among 2,304")
    assert not (tmp_path / "out").exists()
    assert command("convert", folder, tmp_path / "out", "--to", to, "--allow-nan") == 0
    assert_same_bits(read_all(neo_tf.open_checkpoint(tmp_path / "out")), read_all(neo_tf.open_checkpoint(folder)))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "int4"])
def test_nan_is_named_at_export_and_never_rounded(damaged, tmp_path, precision):
    folder, words = damaged
    with pytest.raises(CheckpointError, match=f"c_fc/kernel holds {words}"):
        neo_tf.export_onnx(folder, tmp_path / "onnx", precision)
    if precision.startswith("int"):
        with pytest.raises(
            RequestError, match=f"NaN and Inf are allowed in fp32, fp16 and bf16 alone, not in {precision}"
        ):
            neo_tf.export_onnx(folder, tmp_path / "onnx", precision, allow_nan=True)
        assert not (tmp_path / "onnx").exists()
    else:
        neo_tf.export_onnx(folder, tmp_path / "onnx", precision, allow_nan=True)


@pytest.mark.parametrize("options", [{"do_sample": False}, {"do_sample": True, "seed": 1}, {"num_beams": 2}])
def test_logits_that_are_nan_end_a_request_with_one_line(damaged, tmp_path, options):
    neo_tf.export_onnx(damaged[0], tmp_path / "onnx", allow_nan=True)
    with pytest.raises(EngineError, match="the model's logits are NaN or infinite"):
        neo_tf.pipeline(model=tmp_path / "onnx")([5, 6, 7], max_new_tokens=3, return_tensors=True, **options)


# ---- files that are not what their names say


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin", "config.json", "tokenizer.json"])
def test_a_git_lfs_pointer_is_named(saved, capfd, file):
    if file == "pytorch_model.bin":
        (saved / "model.safetensors").unlink()
    (saved / file).write_text(POINTER)
    assert command("generate", saved, "hi") == 1
    check_error_line(capfd.readouterr().err, saved / file, "a Git LFS pointer", "git lfs pull")


@pytest.mark.parametrize("file", ["model.ckpt-7000.index", "model.ckpt-7000.data-00000-of-00001"])
def test_a_git_lfs_pointer_of_the_originals_is_named(tmp_path, capfd, file):
    folder = copy_checkpoint(TINY_PYTHON, tmp_path / "mesh")
    assert (folder / file).is_file(), sorted(folder.iterdir())
    (folder / file).write_text(POINTER)
    assert command("info", folder) == 1
    check_error_line(capfd.readouterr().err, folder / file, "a Git LFS pointer")


@pytest.mark.parametrize("file", ["decoder.onnx", "model.onnx_data", "tokenizer.json", "config.json"])
def test_a_git_lfs_pointer_in_an_onnx_folder_is_named(tmp_path, demo_folder, capfd, file):
    folder = shutil.copytree(demo_folder, tmp_path / "onnx")
    (folder / file).write_text(POINTER)
    assert command("generate", folder, "hi") == 1
    check_error_line(capfd.readouterr().err, folder / file, "a Git LFS pointer")


def test_a_pointer_that_is_not_read_does_not_disturb(saved):
    (saved / "flax_model.msgpack").write_text(POINTER)
    (saved / "pytorch_model.bin").write_text(POINTER)
    neo_tf.open_checkpoint(saved)


@pytest.mark.parametrize("name", ["faiss.index", "checkpoint", "decoder.onnx", "model.onnx", "optimizer.bin"])
def test_stray_files_do_not_make_a_folder_another_format(saved, tmp_path, monkeypatch, name):
    monkeypatch.setenv("NEO_TF_CACHE", str(tmp_path / "cache"))
    (saved / name).write_bytes(b"of something else")
    assert neo_tf.open_checkpoint(saved).format == "huggingface"
    assert OnnxFolder.find(saved) is None
    assert resolve_model(saved).parent == tmp_path / "cache"


@pytest.mark.parametrize("name", ["tf_model.h5", "flax_model.msgpack", "gpt-neo-q4.gguf"])
def test_weights_that_are_not_read_are_named(saved, capfd, name):
    (saved / "model.safetensors").rename(saved / name)
    assert command("info", saved) == 1
    check_error_line(capfd.readouterr().err, saved, name, "save it with transformers as safetensors")


def link_into_a_store(folder, store):
    """Moves a folder's files into a store, under other names, and leaves links: what the hub's cache looks like."""
    store.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(store / f"{number:064}")
        file.symlink_to(f"../{store.name}/{number:064}")


@pytest.mark.parametrize("to", ["huggingface", "keras", "mesh-tf"])
def test_a_checkpoint_may_be_links_into_a_store(tmp_path, to):
    neo_tf.convert(GOLDEN / "tiny-global-local", tmp_path / "model", to)
    expected = read_all(neo_tf.open_checkpoint(tmp_path / "model"))
    link_into_a_store(tmp_path / "model", tmp_path / "blobs")
    assert_same_bits(read_all(neo_tf.open_checkpoint(tmp_path / "model")), expected)


def test_an_onnx_folder_may_be_links_into_a_store(tmp_path, demo_folder):
    expected = neo_tf.pipeline(model=demo_folder)("def f(", max_new_tokens=5, do_sample=False)
    folder = shutil.copytree(demo_folder, tmp_path / "onnx")
    link_into_a_store(folder, tmp_path / "blobs")
    assert neo_tf.pipeline(model=folder)("def f(", max_new_tokens=5, do_sample=False) == expected


def test_a_link_to_nothing_is_named(saved, capfd):
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors").symlink_to("../blobs/gone")
    assert command("info", saved) == 1
    check_error_line(capfd.readouterr().err, saved, "model.safetensors is a link to ../blobs/gone, where no file is")


@pytest.mark.parametrize("name", ["run [v1]", "a*b?c", "[a-z]*"])
def test_paths_are_never_patterns(tmp_path, name):
    expected = read_all(neo_tf.open_checkpoint(GOLDEN / "tiny-global-local"))
    folder = copy_checkpoint(GOLDEN / "tiny-global-local", tmp_path / name / name)
    for to in ("huggingface", "keras", "mesh-tf", "huggingface"):
        target = tmp_path / name / f"{name} {to}"
        neo_tf.convert(folder, target, to, force=target.exists())
        folder = target
        assert_same_bits(read_all(neo_tf.open_checkpoint(folder)), expected)
    neo_tf.export_onnx(folder, tmp_path / name / "onnx")
    neo_tf.pipeline(model=tmp_path / name / "onnx")([5, 6], max_new_tokens=2, return_tensors=True)
