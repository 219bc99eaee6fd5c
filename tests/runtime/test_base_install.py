"""Decoding on a machine that has the base install alone, and what an import loads."""

import json
import os
import subprocess
import sys

import pytest
from conftest import GOLDEN, TINY_PYTHON, Reference

import neo_tf

# A finder before all others, for which some packages do not exist.
BLOCK = """
import importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
"""
GENERATE = """
import json
from neo_tf import pipeline
generator = pipeline("text-generation", model=sys.argv[1], do_sample=False)
found = generator(json.loads(sys.argv[2]), max_new_tokens=int(sys.argv[3]), return_tensors=True, return_full_text=False)
print(json.dumps(found[0]["generated_token_ids"]))
"""
EXTRAS = ("tensorflow", "keras", "torch", "h5py", "transformers")


def run(code, *arguments, blocked=(), **environment):
    script = f"BLOCKED = {blocked!r}\n{BLOCK}\n{code}"
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=GOLDEN,  # not the repository: what is imported is what is installed
    )


def output(*arguments, **options):
    done = run(*arguments, **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("source, padding", [(GOLDEN / "vocab-padded", 257), (TINY_PYTHON, 1)], ids=["golden", "demo"])
def test_an_exported_folder_needs_neither_the_extras_nor_onnx(exported, source, padding):
    prompt, new = Reference.load(source, padding).greedy["same_len"][0]
    blocked = (*EXTRAS, "onnx", "safetensors", "ml_dtypes", "huggingface_hub")
    arguments = (exported(source), json.dumps(prompt), len(new))
    assert output(GENERATE, *arguments, blocked=blocked) == new


def test_a_hugging_face_folder_needs_none_of_the_extras(tmp_path, reference):
    neo_tf.convert(GOLDEN / "vocab-padded", tmp_path / "model", to="huggingface")
    prompt, new = reference("vocab-padded").greedy["same_len"][0]
    arguments = (tmp_path / "model", json.dumps(prompt), len(new))
    assert output(GENERATE, *arguments, blocked=EXTRAS, NEO_TF_CACHE=str(tmp_path / "cache")) == new


def test_what_needs_an_extra_says_so_in_one_line(tmp_path):
    code = """
import neo_tf
try:
    neo_tf.open_checkpoint(sys.argv[1])
except neo_tf.NeoTFError as error:
    import json
    print(json.dumps(str(error)))
"""
    neo_tf.convert(GOLDEN / "tiny-global", tmp_path / "keras", to="keras")
    for source in (GOLDEN / "tiny-global", tmp_path / "keras"):
        message = output(code, source, blocked=EXTRAS)
        assert "neo-tf[tensorflow]" in message and "\n" not in message


LOADED = """
import json
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
HEAVY = {"tensorflow", "keras", "torch", "h5py", "transformers"}


def test_importing_neo_tf_is_light():
    loaded = set(output(f"import neo_tf\n{LOADED}"))
    assert not loaded & (HEAVY | {"numpy", "onnx", "onnxruntime", "tokenizers", "huggingface_hub", "safetensors"})


def test_generating_loads_nothing_that_is_not_needed(demo_folder):
    code = "from neo_tf import pipeline\npipeline('text-generation', model=sys.argv[1])('def', max_new_tokens=2)\n"
    loaded = set(output(code + LOADED, demo_folder))
    assert {"onnxruntime", "tokenizers"} <= loaded
    assert not loaded & (HEAVY | {"onnx", "huggingface_hub", "safetensors"})


def test_exporting_from_hugging_face_loads_no_tensorflow(tmp_path):
    neo_tf.convert(GOLDEN / "tiny-global", tmp_path / "model", to="huggingface")
    code = "import neo_tf\nneo_tf.export_onnx(sys.argv[1], sys.argv[2])\n"
    assert not set(output(code + LOADED, tmp_path / "model", tmp_path / "onnx")) & HEAVY
