"""The wheel: what lies in it, and that it takes no name from a user's own project."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import TINY_PYTHON
from import_rules import FOLDERS, ROOT, source_modules

import neo_tf

# A user's export.py, which is run as a script and imported, beside a package of the user's called runtime.
EXPORT = '''
"""A user's own module with the name of one of neo-tf's packages."""

import sys

import export
import runtime

import neo_tf
from neo_tf import export_onnx, pipeline

OWNER = "the user"


def main():
    source, folder = sys.argv[1:]
    export_onnx(source, folder)
    generator = pipeline("text-generation", model=folder)
    print(export.OWNER, runtime.OWNER, neo_tf.__file__)
    print(generator("import os", max_new_tokens=4, do_sample=False)[0]["generated_text"])


if __name__ == "__main__":
    main()
'''


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that pip builds from a copy of the sources."""
    copy, built = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    for folder in FOLDERS.values():
        shutil.copytree(folder, copy / folder.name, ignore=shutil.ignore_patterns("__pycache__"))
    options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation")
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(built), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = built.iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder for PYTHONPATH that holds what pip would install from the wheel."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_every_file_of_the_wheel_lies_below_neo_tf(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = [Path(name) for name in archive.namelist()]
        (top_level,) = [name for name in names if name.name == "top_level.txt"]
        assert archive.read(str(top_level)).decode().split() == ["neo_tf"]
        assert "neo_tf/py.typed" in archive.namelist()  # type checkers read the annotations
    assert {name.parts[0] for name in names} == {"neo_tf", f"neo_tf-{neo_tf.__version__}.dist-info"}


def test_the_files_of_the_servers_page_are_in_the_wheel(installed):
    page = ROOT / "runtime" / "server" / "page"
    for path in page.iterdir():
        assert (installed / "neo_tf/runtime/server/page" / path.name).read_bytes() == path.read_bytes()


def test_every_module_of_the_sources_is_in_the_wheel(installed):
    files = {path.relative_to(installed).as_posix() for path in (installed / "neo_tf").rglob("*.py")}
    expected = set()
    for name, path in source_modules().items():
        folder = name.replace(".", "/")
        expected.add(f"{folder}/__init__.py" if path.name == "__init__.py" else f"{folder}.py")
    assert files == expected, "a package is missing in setup.py, or one is named twice"


def test_a_users_own_export_and_runtime_work_beside_neo_tf(installed, tmp_path):
    neo_tf.convert(TINY_PYTHON, tmp_path / "model", "huggingface")  # which is read without TensorFlow
    project = tmp_path / "project"
    (project / "runtime").mkdir(parents=True)
    (project / "export.py").write_text(EXPORT)
    (project / "runtime" / "__init__.py").write_text('OWNER = "the user too"\n')
    done = subprocess.run(
        [sys.executable, "export.py", str(tmp_path / "model"), str(tmp_path / "onnx")],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, text = done.stdout.split("\n", 1)
    assert first == f"the user the user too {installed / 'neo_tf' / '__init__.py'}"
    assert text.startswith("import os") and len(text.strip()) > len("import os")
