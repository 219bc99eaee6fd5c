"""Who imports whom, what an import loads, and what works where TensorFlow or onnx is not installed."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from checkpoint_helpers import check_error_line, files_below
from conftest import GOLDEN, TINY_PYTHON
from import_rules import EXCEPTIONS, RUNTIME_ROOMS, imports_of, room_of, source_modules, violations

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


# ---- who imports whom

MODULES = source_modules()
IMPORTS = [
    found for name, path in MODULES.items() for found in imports_of(name, path, path.read_text("utf-8"), MODULES)
]


def test_every_import_goes_down():
    broken = [line for found in IMPORTS for line in violations(found)]
    assert not broken, "imports that DESIGN.md forbids:\n" + "\n".join(broken)


def test_every_exception_to_the_rules_is_still_needed():
    unused = EXCEPTIONS - {(found.importer, found.target) for found in IMPORTS}
    assert not unused, f"remove these from EXCEPTIONS in tests/import_rules.py: {unused}"


def test_every_module_of_the_runtime_has_a_room():
    lost = [name for name in MODULES if name.startswith("neo_tf.runtime.") and room_of(name) is None]
    assert not lost, f"add them to RUNTIME_ROOMS in tests/import_rules.py: {lost}"
    assert all(room in MODULES for room in RUNTIME_ROOMS)


@pytest.mark.parametrize(
    ("module", "text", "rule"),
    [
        ("neo_tf.runtime.tokenizer", "def f():\n    import onnx.helper", "the runtime needs no onnx"),
        ("neo_tf.runtime.tokenizer", "\nfrom neo_tf.checkpoints import Checkpoint", "the runtime knows no checkpoints"),
        ("neo_tf.runtime.tokenizer", "\nfrom neo_tf import export_onnx", "the runtime knows no export"),
        ("neo_tf.runtime.tokenizer", "import neo_tf\nneo_tf.GPTNeo()", "the runtime needs no TensorFlow"),
        ("neo_tf.runtime.engine.slots", "\nfrom ..jobs.job import Job", "the runtime's rooms"),
        ("neo_tf.runtime.device.session", "\nfrom ..sampling import beams", "the runtime's rooms"),
        ("neo_tf.runtime.engine.slots", "\nfrom neo_tf.runtime.device import session", "imports are relative"),
        ("neo_tf.runtime.engine", "\nfrom ...errors import NeoTFError", "an import of another package is absolute"),
        ("neo_tf.export.graph", "\nimport keras", "export needs no TensorFlow"),
        ("neo_tf.export.graph", "\nfrom neo_tf.runtime.device.session import Session", "export knows no runtime"),
        ("neo_tf.export.graph", "\nif TYPE_CHECKING:    import neo_tf.runtime", "export knows no runtime"),
        ("neo_tf.checkpoints.save", "\nimport neo_tf.export.package", "checkpoints know no export"),
        ("neo_tf.config", "\nimportlib.import_module('neo_tf.checkpoints')", "contracts import"),
        ("neo_tf.evaluation.speed", "\nfrom neo_tf.cli.console import results", "nobody imports neo_tf.cli"),
        ("neo_tf.model_cache", "\nfrom neo_tf import verify", "only neo_tf.cli imports neo_tf.evaluation"),
    ],
)
def test_a_forbidden_import_is_told_by_file_line_and_rule(module, text, rule):
    found = imports_of(module, MODULES[module], text, MODULES)
    told = [line for one in found for line in violations(one)]
    place = MODULES[module].relative_to(Path(__file__).parents[2])
    assert any(line.startswith(f"{place}:2: {module} imports ") and rule in line for line in told), told


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("neo_tf.runtime.device.session", "if TYPE_CHECKING:\n    import onnx"),
        ("neo_tf.runtime.jobs.job", "from ..arguments import GenerateArguments\nfrom neo_tf.errors import NeoTFError"),
        ("neo_tf.runtime.engine.engine", "from .slots import Slots\nfrom ..device import session"),
        ("neo_tf.export.calibrate", "import onnx, onnxruntime\nfrom . import graph"),
        ("neo_tf.cli.app", "from neo_tf.evaluation import verify\nimport neo_tf\nneo_tf.pipeline()"),
        ("neo_tf.runtime.engine.slots", "import onnxruntime\nimport neo_tfx.cli"),
    ],
)
def test_an_import_that_goes_down_is_allowed(module, text):
    assert [line for found in imports_of(module, MODULES[module], text, MODULES) for line in violations(found)] == []


def test_no_module_is_replaced_by_a_function_of_its_name():
    for name in neo_tf.__all__:
        getattr(neo_tf, name)
    for name in MODULES:
        parent, _, last = name.rpartition(".")
        if parent and last != "__main__":  # which runs the command
            module = importlib.import_module(name)
            found = getattr(sys.modules[parent], last)
            assert isinstance(found, ModuleType) and found is module, name


# ---- what an import loads, in a fresh process


def test_importing_loads_neo_tf_itself_and_the_standard_library_alone():
    code = "before = set(sys.modules); import neo_tf; print(*set(sys.modules) - before)"
    done = run_without((), code)
    loaded = set(done.stdout.split())
    assert "neo_tf" in loaded, done.stderr
    assert {name for name in loaded if name.partition(".")[0] not in sys.stdlib_module_names} == {"neo_tf"}


def test_importing_is_light():
    done = run_without((), "import neo_tf; print(*sys.modules)")
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {*HEAVY, "onnx", "onnxruntime", "numpy", "tokenizers"}, done.stderr


def test_decoding_needs_neither_tensorflow_nor_torch_nor_onnx(demo_folder):
    code = """
import neo_tf
print(neo_tf.pipeline(model=sys.argv[1])("import os", do_sample=False, max_new_tokens=4)[0]["generated_text"])
"""
    done = run_without((*HEAVY, "onnx"), code, demo_folder)
    assert done.stdout.startswith("import os"), done.stderr


def test_base_install_exports_and_decodes_safetensors(safetensors_folder, tmp_path):
    code = """
import os, neo_tf
os.environ["NEO_TF_CACHE"] = sys.argv[2]
print(neo_tf.pipeline(model=sys.argv[1])("import os", do_sample=False, max_new_tokens=4)[0]["generated_text"])
neo_tf.convert(sys.argv[1], sys.argv[2] + "/copy", "huggingface")
"""
    done = run_without(HEAVY, code, safetensors_folder, tmp_path)
    assert done.stdout.startswith("import os"), done.stderr
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
