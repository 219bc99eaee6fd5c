import json

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from checkpoint_helpers import assert_same_bits, copy_checkpoint, cut_short, flip_byte, read_all
from conftest import DECODABLE, GOLDEN, TINY_PYTHON

import neo_tf
from neo_tf.checkpoints import tensor_bundle
from neo_tf.checkpoints.checkpoint import LazyTensor
from neo_tf.config import GPTNeoConfig
from neo_tf.errors import CheckpointError, ConfigError, NeoTFError

ACT_RELU = GOLDEN / "act-relu"  # the smallest one


def tensorflow_reads(path):
    """{name: array} of everything in a checkpoint, by TensorFlow alone."""
    reader = tf.train.load_checkpoint(str(path))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def trainables(variables):
    """What the original trained: neither Adam's slots nor global_step."""
    slots = ("/adam_m", "/adam_v")
    return {name: value for name, value in variables.items() if not name.endswith(slots) and name != "global_step"}


def write_checkpoint(folder, variables, step=300):
    """A checkpoint of act-relu's config with these variables, written by TensorFlow alone."""
    folder.mkdir()
    prefix = folder / f"model.ckpt-{step}"
    names, values = list(variables), list(variables.values())
    tf.raw_ops.SaveV2(prefix=str(prefix), tensor_names=names, shape_and_slices=[""] * len(names), tensors=values)
    (folder / "config.json").write_bytes((ACT_RELU / "config.json").read_bytes())
    return folder


# ---- reading


@pytest.mark.parametrize("folder", [*(GOLDEN / name for name in DECODABLE), TINY_PYTHON], ids=lambda path: path.name)
def test_reads_the_trainables_bit_for_bit_and_leaves_out_the_rest(folder):
    variables = tensorflow_reads(folder)
    checkpoint = neo_tf.open_checkpoint(folder)
    assert_same_bits(read_all(checkpoint), trainables(variables))
    for name, tensor in checkpoint.tensors.items():
        assert (tensor.shape, tensor.dtype) == (variables[name].shape, variables[name].dtype)
    assert checkpoint.nbytes == sum(value.nbytes for value in trainables(variables).values())
    assert checkpoint.config.training["global_step"] == variables["global_step"]
    assert checkpoint.format == "mesh-tf"


def test_bfloat16_variables_stay_bfloat16():
    checkpoint = neo_tf.open_checkpoint(GOLDEN / "tiny-global")
    assert checkpoint.dtype == "bfloat16"
    assert {tensor.dtype for tensor in read_all(checkpoint).values()} == {np.dtype(ml_dtypes.bfloat16)}


@pytest.mark.parametrize("name", ["", "model.ckpt-300", "model.ckpt-300.index"])
@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "Path"])
def test_folder_prefix_and_index_all_open(name, kind):
    checkpoint = neo_tf.open_checkpoint(kind(ACT_RELU / name))
    assert_same_bits(read_all(checkpoint), trainables(tensorflow_reads(ACT_RELU)))


@pytest.mark.parametrize("path", [".", "./", "model.ckpt-300", "../act-relu"])
def test_opens_relative_to_the_current_folder(monkeypatch, path):
    monkeypatch.chdir(ACT_RELU)
    assert neo_tf.open_checkpoint(path).config.n_layer == 2


def test_the_file_checkpoint_decides_between_steps(tmp_path):
    values = tensorflow_reads(ACT_RELU)
    folder = write_checkpoint(tmp_path / "steps", values, step=900)
    write_checkpoint(tmp_path / "other", values | {"global_step": np.int64(1000)}, step=1000)
    for file in (tmp_path / "other").glob("model.ckpt-*"):
        file.rename(folder / file.name)
    assert neo_tf.open_checkpoint(folder).path.name == "model.ckpt-1000"  # 1000 > 900, though "1" < "9"
    for written in ("model.ckpt-900", "/on/the/machine/that/trained/it/model.ckpt-900", "gs://bucket/m/model.ckpt-900"):
        (folder / "checkpoint").write_text(f'model_checkpoint_path: "{written}"\n')
        assert neo_tf.open_checkpoint(folder).path.name == "model.ckpt-900"
    assert neo_tf.open_checkpoint(folder / "model.ckpt-1000").config.training["global_step"] == 1000


def test_adafactor_slots_are_left_out(tmp_path):
    variables = trainables(tensorflow_reads(ACT_RELU))
    slots = {}
    for name, value in variables.items():
        if value.ndim == 2:
            slots |= {f"{name}_slot_vr": value[:, 0], f"{name}_slot_vc": value[0]}
        else:
            slots[f"{name}_slot_v"] = value
        slots[f"{name}_slot_m"] = value
    folder = write_checkpoint(tmp_path / "adafactor", variables | slots | {"global_step": np.int64(3)})
    assert_same_bits(read_all(neo_tf.open_checkpoint(folder)), variables)


def test_missing_and_unknown_variables_are_listed(tmp_path):
    variables = tensorflow_reads(ACT_RELU)
    del variables["gpt2/h1/attn/q"], variables["gpt2/ln_f/g"]
    variables |= {"gpt2/h0/attn/attention/mem_k": np.zeros((4, 4, 8), np.float32)}
    folder = write_checkpoint(tmp_path / "edited", variables)
    with pytest.raises(CheckpointError) as refused:
        neo_tf.open_checkpoint(folder)
    for name in (
        "missing 2",
        "gpt2/h1/attn/q",
        "gpt2/ln_f/g",
        "unknown to the model 1",
        "gpt2/h0/attn/attention/mem_k",
    ):
        assert name in str(refused.value)


def test_variable_of_another_shape_is_refused_with_both_shapes(tmp_path):
    variables = tensorflow_reads(ACT_RELU)
    variables["gpt2/h1/attn/k"] = variables["gpt2/h1/attn/k"][:, :24]
    folder = write_checkpoint(tmp_path / "edited", variables)
    with pytest.raises(ConfigError, match=r"gpt2/h1/attn/k has shape \[32, 24\].*\[32, 32\].*n_head 4"):
        neo_tf.open_checkpoint(folder)


def test_config_may_lie_elsewhere_or_have_another_name(tmp_path):
    folder = copy_checkpoint(ACT_RELU, tmp_path / "renamed")
    (folder / "config.json").rename(folder / "act-relu.json")
    (folder / "notes.json").write_text("{}")
    assert neo_tf.open_checkpoint(folder).config.activation_fn == "relu"
    (folder / "act-relu.json").rename(tmp_path / "elsewhere.json")
    with pytest.raises(ConfigError, match=r"config\.json"):
        neo_tf.open_checkpoint(folder)
    assert neo_tf.open_checkpoint(folder, config=tmp_path / "elsewhere.json").config.activation_fn == "relu"
    for name in ("one", "two"):
        (folder / f"{name}.json").write_bytes((tmp_path / "elsewhere.json").read_bytes())
    with pytest.raises(ConfigError, match=r"one\.json, two\.json"):
        neo_tf.open_checkpoint(folder)


# ---- damage


@pytest.mark.parametrize("shard", ["00000", "00001"])
def test_missing_shard_is_named(tmp_path, shard):
    folder = copy_checkpoint(ACT_RELU, tmp_path / "damaged")
    name = f"model.ckpt-300.data-{shard}-of-00002"
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        neo_tf.open_checkpoint(folder)


@pytest.mark.parametrize("slot", ["adam_m", "adam_v"])
def test_damage_in_an_optimizer_slot_is_found_by_verify_alone(tmp_path, slot):
    name = f"gpt2/h1/mlp/conv1d_main/c_fc/kernel/{slot}"
    folder = copy_checkpoint(ACT_RELU, tmp_path / "damaged")
    shard = folder / "model.ckpt-300.data-00001-of-00002"
    flip_byte(shard, shard.read_bytes().index(tensorflow_reads(ACT_RELU)[name].tobytes()) + 1000)
    checkpoint = neo_tf.open_checkpoint(folder)
    read_all(checkpoint)
    with pytest.raises(CheckpointError, match=f"{name} cannot be read"):
        checkpoint.verify()


def test_damaged_index_is_refused_or_harmless(tmp_path):
    folder = copy_checkpoint(ACT_RELU, tmp_path / "damaged")
    expected, index = trainables(tensorflow_reads(ACT_RELU)), folder / "model.ckpt-300.index"
    whole = index.read_bytes()
    for offset in [*range(0, len(whole) - 64, 61), *range(len(whole) - 64, len(whole))]:
        flip_byte(index, offset)
        try:
            tensors = read_all(neo_tf.open_checkpoint(folder))
        except NeoTFError:
            pass
        else:  # bytes that pad the index's footer mean nothing
            assert_same_bits(tensors, expected)
        index.write_bytes(whole)
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        cut_short(index, size)
        with pytest.raises(NeoTFError):
            neo_tf.open_checkpoint(folder)
        index.write_bytes(whole)


def test_file_that_only_looks_like_a_shard_does_not_disturb(tmp_path):
    folder = copy_checkpoint(ACT_RELU, tmp_path / "copy")
    (folder / "model.ckpt-300.data-00001-of-00002.bak").write_bytes(b"")
    neo_tf.open_checkpoint(folder)


# ---- writing


@pytest.mark.parametrize("shard_bytes", [tensor_bundle._SHARD_BYTES, 20_000])
@pytest.mark.parametrize("source", [TINY_PYTHON, GOLDEN / "tiny-global", ACT_RELU], ids=lambda path: path.name)
def test_written_checkpoint_is_the_originals_bit_for_bit(tmp_path, monkeypatch, source, shard_bytes):
    monkeypatch.setattr(tensor_bundle, "_SHARD_BYTES", shard_bytes)
    neo_tf.convert(source, tmp_path / "written", "mesh-tf")
    original, written = tensorflow_reads(source), tensorflow_reads(tmp_path / "written")
    assert written.pop("global_step") == original["global_step"]
    assert_same_bits(written, trainables(original))
    # The original restores what the file `checkpoint` names, and reads the step as int64.
    latest = tf.train.latest_checkpoint(str(tmp_path / "written"))
    assert latest == str(tmp_path / "written" / f"model.ckpt-{original['global_step']}")
    assert tf.train.load_checkpoint(latest).get_variable_to_dtype_map()["global_step"] == tf.int64
    shards = sorted((tmp_path / "written").glob("*.data-*"))
    assert (len(shards) > 2) == (shard_bytes == 20_000)
    # A shard is closed before it grows too large; a tensor that is larger lies in one of its own.
    largest = max(value.nbytes for value in trainables(original).values())
    assert all(shard.stat().st_size <= max(shard_bytes, largest) + 8 for shard in shards)


def test_nothing_else_is_left_in_the_written_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_bundle, "_SHARD_BYTES", 3_000_000)
    neo_tf.convert(TINY_PYTHON, tmp_path / "written", "mesh-tf")
    prefix = "model.ckpt-7000"
    assert {path.name for path in (tmp_path / "written").iterdir()} == {
        *("checkpoint", "config.json", "dataset.json", "tokenizer.json", f"{prefix}.index"),
        *(f"{prefix}.data-0000{number}-of-00003" for number in range(3)),
    }


@pytest.mark.parametrize("name", [*DECODABLE, "tiny-python"])
def test_written_config_keeps_every_key_of_the_original(tmp_path, name):
    source = TINY_PYTHON if name == "tiny-python" else GOLDEN / name
    neo_tf.convert(source, tmp_path / "written", "mesh-tf")
    before = json.loads((source / "config.json").read_text())
    after = json.loads((tmp_path / "written" / "config.json").read_text())
    assert {key: after.get(key) for key in before} == before
    assert GPTNeoConfig.from_original(after) == GPTNeoConfig.from_original(before)


def test_config_of_a_new_model_has_the_keys_that_the_originals_main_reads(tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(GPTNeoConfig(64, 16, 16, 2, 1, ("global",)).to_original()))
    neo_tf.init_checkpoint(config, tmp_path / "written", "mesh-tf")
    written = json.loads((tmp_path / "written" / "config.json").read_text())
    expected = set(json.loads((TINY_PYTHON / "config.json").read_text())) - {"activation_function"}
    assert expected <= set(written)
    assert tensorflow_reads(tmp_path / "written")["global_step"] == 0


def test_written_dataset_config_has_the_token_ids_and_the_tokenizer(tmp_path):
    neo_tf.convert(TINY_PYTHON, tmp_path / "written", "mesh-tf")
    dataset = json.loads((tmp_path / "written" / "dataset.json").read_text())
    assert (dataset["eos_id"], dataset["padding_id"], dataset["n_vocab"]) == (0, 1, 2048)
    tokenizer = (tmp_path / "written" / dataset["tokenizer_path"]).read_text("utf-8")
    assert tokenizer == (TINY_PYTHON / "byte-level-bpe.tokenizer.json").read_text("utf-8")


def test_bfloat16_is_named_in_the_written_config(tmp_path):
    for name, precision in (("tiny-global", "bfloat16"), ("act-relu", "float32")):
        neo_tf.convert(GOLDEN / name, tmp_path / name, "mesh-tf")
        assert json.loads((tmp_path / name / "config.json").read_text())["precision"] == precision


def test_float16_is_widened_as_the_original_has_no_such_variables(tmp_path):
    source = neo_tf.open_checkpoint(ACT_RELU)
    half = {name: value.astype(np.float16) for name, value in read_all(source).items()}
    tensors = {name: LazyTensor(v.shape, v.dtype, lambda v=v: v) for name, v in half.items()}
    checkpoint = neo_tf.Checkpoint(source.path, "huggingface", source.config, tensors)
    neo_tf.save_checkpoint(checkpoint, tmp_path / "written", "mesh-tf")
    expected = {name: value.astype(np.float32) for name, value in half.items()}
    assert_same_bits(trainables(tensorflow_reads(tmp_path / "written")), expected)
    assert neo_tf.open_checkpoint(tmp_path / "written").config.precision == "float32"


@pytest.mark.parametrize("change", [{"n_inner": 100}, {"layer_norm_epsilon": 1e-6}])
def test_model_that_the_original_cannot_express_is_refused_by_name(tmp_path, change):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(GPTNeoConfig(64, 16, 16, 2, 1, ("global",)).replace(**change).to_original()))
    with pytest.raises(ConfigError, match=next(iter(change))):
        neo_tf.init_checkpoint(path, tmp_path / "written", "mesh-tf")
    assert not (tmp_path / "written").exists()
