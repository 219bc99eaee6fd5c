"""What a machine without TensorFlow, and one that only decodes, must be able to do: each in a fresh process."""

import subprocess
import sys

import pytest
from checkpoint_helpers import check_error_line, files_below
from conftest import GOLDEN, TINY_PYTHON

import neo_tf

WITHOUT = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None  # as where it is not installed
{code}
"""
HEAVY = ("tensorflow", "keras", "h5py", "torch", "transformers")


def run_without(blocked, code, *arguments):
    command = [sys.executable, "-c", WITHOUT.format(blocked=blocked, code=code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=GOLDEN.parents[2])


@pytest.fixture(scope="module")
def safetensors_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imports") / "huggingface"
    neo_tf.convert(TINY_PYTHON, folder, "huggingface")
    return folder


def test_importing_is_light():
    done = run_without((), "import neo_tf; print(*sys.modules)")
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {*HEAVY, "onnx", "onnxruntime", "numpy", "tokenizers"}, done.stderr


def test_decoding_needs_neither_tensorflow_nor_torch_nor_onnx(demo_folder):
    code = "import neo_tf; print(neo_tf.pipeline(model=sys.argv[1])('import os', max_new_tokens=4))"
    done = run_without((*HEAVY, "onnx"), code, demo_folder)
    assert "'generated_text': 'import os" in done.stdout, done.stderr


def test_base_install_exports_and_decodes_safetensors(safetensors_folder, tmp_path):
    code = """
import os, neo_tf
os.environ["NEO_TF_CACHE"] = sys.argv[2]
print(neo_tf.pipeline(model=sys.argv[1])("import os", max_new_tokens=4))
neo_tf.convert(sys.argv[1], sys.argv[2] + "/copy", "huggingface")
"""
    done = run_without(HEAVY, code, safetensors_folder, tmp_path)
    assert "'generated_text': 'import os" in done.stdout, done.stderr
    assert (tmp_path / "copy" / "model.safetensors").is_file()


@pytest.mark.parametrize("to", ["keras", "mesh-tf"])
def test_what_needs_tensorflow_says_how_to_install_it(safetensors_folder, tmp_path, to):
    code = "import neo_tf.cli; sys.argv[0] = 'neo-tf'; neo_tf.cli.main()"
    done = run_without(HEAVY, code, "convert", safetensors_folder, tmp_path / "dst", "--to", to)
    assert done.returncode == 1
    check_error_line(done.stderr, "neo-tf[tensorflow]")
    done = run_without(HEAVY, code, "convert", TINY_PYTHON, tmp_path / "dst", "--to", "huggingface")
    assert done.returncode == 1
    check_error_line(done.stderr, "neo-tf[tensorflow]")
    assert files_below(tmp_path) == []


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="pipelin"):
        neo_tf.pipelin  # noqa: B018
    for name in neo_tf.__all__:
        assert getattr(neo_tf, name) is not None and name in dir(neo_tf)
