"""Writes the lock files of this folder: `make update`, or `make lock` to keep the versions that still fit.

A lock file names every package of an environment with its exact version and hashes, for Python 3.11 to 3.13 on Linux,
macOS and Windows. What they are made of: setup.py, and the files *.in beside this one.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
PYTHONS = ("3.11", "3.12", "3.13")
PLATFORMS = (
    "x86_64-manylinux_2_31",  # glibc 2.31: the wheels of llguidance need it
    "aarch64-manylinux_2_31",
    "aarch64-apple-darwin",
    "x86_64-pc-windows-msvc",
)
# Packages that are published as source alone, and built with build.txt. All others must have wheels.
SOURCES = ("future", "bson", "rouge-score", "sqlitedict", "word2number")
# torch and what its builds for CUDA need; nothing else in the locks needs packages of these names.
TORCH = re.compile(r"torch$|nvidia-|cuda-")
# Packages that are not installed though others ask for them. triton 3.7 crashes the process when it is imported after
# TensorFlow (tensorflow/tensorflow#124205); torch imports it where it is there, and needs it only to compile kernels.
LEFT_OUT = ("triton",)


def uv(*arguments, **environment):
    """Runs uv in the repository's root; its warnings and errors go to the terminal."""
    command = [sys.executable, "-m", "uv", *map(str, arguments)]
    subprocess.run(command, cwd=ROOT, env=os.environ | environment, check=True, stdout=subprocess.DEVNULL)


def resolve(*arguments, before="", upgrade=True):
    """Resolves requirements for all platforms.

    Args:
        arguments: uv's, such as a file of requirements.
        before: text of the lock as it was, whose versions are kept where they fit, unless `upgrade`.

    Returns:
        {package: its lines of the lock}.
    """
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "lock.txt"
        output.write_text(before, encoding="utf-8")
        # One version for every Python: what was tested is what is installed. uv's own choice would be the newest for
        # each.
        options = ["--universal", "--python-version", PYTHONS[0], "--fork-strategy", "fewest"]
        options += ["--generate-hashes", "--no-emit-index-url", "--no-header", "--annotation-style", "line"]
        if upgrade:
            options.append("--upgrade")
        uv("pip", "compile", *arguments, "--output-file", output, "--quiet", *options)
        text = output.read_text(encoding="utf-8")
    starts = re.split(r"^(?=[a-zA-Z0-9])", text, flags=re.MULTILINE)
    packages = {re.match(r"[\w.-]+", lines)[0]: lines for lines in starts if lines.strip()}
    return {name: lines for name, lines in packages.items() if name not in LEFT_OUT}


def split(packages):
    """Two parts of a lock: torch with CUDA's libraries, and all else."""
    torch = {name: lines for name, lines in packages.items() if TORCH.match(name)}
    return torch, {name: lines for name, lines in packages.items() if name not in torch}


def read(name):
    """A lock file's text, empty where there is none yet."""
    path = FOLDER / f"{name}.txt"
    return path.read_text(encoding="utf-8") if path.exists() else ""


def write(name, purpose, packages):
    """Writes a lock file, with its purpose at its head; one that would not change is left, and not reinstalled."""
    text = f"# {purpose}\n# Written by `make update`: do not edit.\n" + "".join(packages.values())
    if text != read(name):
        (FOLDER / f"{name}.txt").write_text(text, encoding="utf-8")


def check(name):
    """Fails where a package of a lock file has no wheel for a platform and Python that it is for; installs nothing."""
    built = [part for package in SOURCES for part in ("--no-binary", package)]
    for platform in PLATFORMS:
        for version in PYTHONS:
            options = ["--dry-run", "--quiet", "--target", "build/none", "--no-deps", "--require-hashes"]
            options += ["--only-binary", ":all:", *built, "--python-platform", platform, "--python-version", version]
            options += ["--requirements", FOLDER / f"{name}.txt"]
            uv("pip", "install", *options, MACOSX_DEPLOYMENT_TARGET="14.0")  # torch's oldest


def lock_npm(upgrade):
    """Writes the lock of the peer in JavaScript: versions and hashes, no addresses."""
    folder = ROOT / "tests/portable"
    if shutil.which("npm") is None:
        print("npm is not installed: tests/portable/package-lock.json is left as it is")
        return
    if upgrade:
        (folder / "package-lock.json").unlink(missing_ok=True)
    options = ("--package-lock-only", "--omit-lockfile-registry-resolved", "--no-audit", "--no-fund")
    subprocess.run(["npm", "install", *options], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def main():
    """Writes all lock files, each with the versions of those before it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="change a version only where it does not fit any more")
    upgrade = not parser.parse_args().keep

    build = "requirements/build.in"
    old = read("test") + read("torch")
    torch, tests = split(resolve("setup.py", build, "--extra", "test", before=old, upgrade=upgrade))
    write("test", "All that the tests import, but torch: `make test`.", tests)
    write("torch", "torch, and on Linux CUDA's libraries, where torch-cpu.txt cannot be installed: `make test`.", torch)
    version = torch["torch"].split()[0]
    if f"{version}+cpu " not in read("torch-cpu"):
        print(f"torch-cpu.txt is not of {version}: its version and hashes must be copied from PyTorch's own index")
    tested = ("--constraints", "requirements/test.txt")
    write("demo", "neo-tf with TensorFlow: `make demo`.", resolve("setup.py", "--extra", "tensorflow", *tested))
    write("build", "What builds neo-tf itself, and packages that have no wheel.", resolve(build, *tested))
    ray = resolve("setup.py", build, "--extra", "ray", *tested, before=read("ray"), upgrade=upgrade)
    write("ray", "neo-tf with Ray, one of the environments of `make peers`.", ray)
    genai = resolve("requirements/genai.in", before=read("genai"), upgrade=upgrade)
    write("genai", "onnxruntime-genai, one of the other runtimes of `make peers`.", genai)
    fuzzer = resolve("requirements/schemathesis.in", before=read("schemathesis"), upgrade=upgrade)
    write("schemathesis", "schemathesis, which makes requests from the server's schema: `make server-fuzz`.", fuzzer)
    harness = resolve("requirements/lm-eval.in", before=read("lm-eval"), upgrade=upgrade)
    write("lm-eval", "lm-evaluation-harness, which scores through the server: `make peers`.", harness)
    same_torch = ("--constraints", "requirements/torch.txt")
    _, optimum = split(resolve("requirements/optimum.in", *same_torch, before=read("optimum"), upgrade=upgrade))
    write("optimum", "Optimum, one of the other runtimes of `make peers`, but for torch.", optimum)
    for name in ("npu", "pipeline-ai"):
        client = resolve(f"requirements/{name}.in", before=read(name), upgrade=upgrade)
        write(name, f"{name}, a client of the server: `make peers`.", client)
    updater = resolve("requirements/update.in", before=read("update"), upgrade=upgrade)
    write("update", "uv, which writes these files.", updater)
    lock_npm(upgrade)
    for name in ("demo", "test", "torch", "ray", "genai", "optimum", "schemathesis", "lm-eval", "npu", "pipeline-ai"):
        check(name)


if __name__ == "__main__":
    main()
