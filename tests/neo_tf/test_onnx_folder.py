"""An ONNX folder is read once, and says what is wrong with it."""

import json
import shutil

import pytest
from conftest import GOLDEN

import neo_tf
from neo_tf import onnx_folder
from neo_tf.config import GPTNeoConfig
from neo_tf.errors import ConfigError, RequestError
from neo_tf.onnx_folder import DECODER, MODEL, PREFILL, OnnxFolder
from neo_tf.runtime.device.session import Session

LOCAL = GOLDEN / "tiny-local-radius"


@pytest.fixture
def written(exported, tmp_path):
    """A function that gives a copy of an exported folder whose config.json has other keys."""

    def write(**changes):
        folder = shutil.copytree(exported(LOCAL), tmp_path / "folder")
        params = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(params))
        return folder

    return write


def test_it_says_what_the_folder_holds(written):
    folder = OnnxFolder.read(written(precisions=["int8", "fp16"], target="cuda", windowed_caches=False))
    assert folder.config.n_ctx == 256 and folder.target == "cuda" and not folder.is_standard
    assert folder.precisions == ("int8", "fp16")
    assert folder.find_precision() == "int8" and folder.find_precision("fp16") == "fp16"
    assert folder.graph_path("int8", DECODER) == folder.path / "decoder.onnx"
    assert folder.graph_path("fp16", PREFILL) == folder.path / "prefill_fp16.onnx"
    with pytest.raises(RequestError, match="exported in int8 and fp16, not in fp32"):
        folder.find_precision("fp32")


@pytest.mark.parametrize(
    "key, value", [("precisions", []), ("precisions", "fp32"), ("precisions", ["fp31"]), ("target", "tpu")]
)
def test_a_config_that_says_something_else_is_refused(written, key, value):
    folder = written(**{key: value})
    with pytest.raises(ConfigError, match=rf"{folder}/config.json: {key} must be .*, not ") as error:
        OnnxFolder.read(folder)
    assert str(error.value).endswith(repr(value))


def test_caches_of_local_layers_are_windowed_for_the_cpu_alone(exported, written):
    assert OnnxFolder.read(exported(LOCAL)).windowed_caches
    with pytest.raises(ConfigError, match=r"exported for CUDA with windowed caches, .*: export it again with this"):
        OnnxFolder.read(written(target="cuda"))
    params = json.loads((exported(LOCAL) / "config.json").read_text())
    assert params.pop("windowed_caches") is True  # folders for the CPU that were made before do not say it


@pytest.mark.parametrize(
    "name, options",
    [("attn-mix", ["attention type linear"]), ("mem-kv", ["num_mem_kv"]), ("moe", ["moe_layers"]), ("rotary", [])],
)
def test_it_names_the_options_that_cannot_be_captured(name, options, tmp_path):
    folder = OnnxFolder(tmp_path, GPTNeoConfig.from_file(GOLDEN / name / "config.json"), ("fp16",), "cuda")
    assert [reason.split(":")[0] for reason in folder.why_not_captured()] == options
    assert folder.needs_cudnn == (name in ("attn-mix", "moe"))


def test_other_folders_are_not_found(exported, tmp_path, written):
    assert OnnxFolder.find(tmp_path / "missing") is None and OnnxFolder.find(LOCAL) is None
    found = OnnxFolder.find(exported(LOCAL))
    assert found == OnnxFolder.read(str(exported(LOCAL))) and OnnxFolder.read(found) is found
    folder = written()
    (folder / "decoder.onnx").unlink()  # someone else's model.onnx, beside a config.json
    assert OnnxFolder.find(folder) is None
    (folder / "config.json").write_text("[]")
    assert OnnxFolder.find(folder) is None
    (folder / "config.json").write_text('{"ops": "standard"}')
    with pytest.raises(ConfigError, match=r"config\.json"):
        OnnxFolder.find(folder)


def test_config_json_is_read_once(exported, monkeypatch):
    read, inner = [], onnx_folder.read_json
    monkeypatch.setattr(onnx_folder, "read_json", lambda path: read.append(path) or inner(path))
    folder = OnnxFolder.read(exported(LOCAL))
    assert Session(folder).config is folder.config
    assert {found.graph for found in neo_tf.verify(LOCAL, folder, tokens=4)} == {f"{DECODER}.onnx", f"{MODEL}.onnx"}
    assert read == [folder.path / "config.json"]
