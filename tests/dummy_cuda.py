"""CUDA's libraries without a GPU, for ONNX Runtime's own CUDA provider: see dummy_cuda.c.

A process that has loaded them starts sessions on CUDA, so tests do it in a process of their own:

    folder = dummy_cuda.build(tmp_path)
    subprocess.run([sys.executable, "-c", "import dummy_cuda; dummy_cuda.load(folder); ..."])
"""

import ctypes
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import onnxruntime

SOURCE = Path(__file__).with_suffix(".c")
_PROVIDER = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
_DRIVER = "libcuda.so.1"


def why_not():
    """Why the libraries cannot be made here, or None."""
    if not _PROVIDER.is_file():
        return "this onnxruntime has no CUDA provider for Linux"
    tools = [tool for tool in ("cc", "nm") if shutil.which(tool) is None]
    return f"{' and '.join(tools)} not installed" if tools else None


def build(folder):
    """Compiles a library for each one of CUDA's that the provider needs, and returns the folder."""
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", _PROVIDER], capture_output=True, text=True, check=True
    ).stdout
    functions = defaultdict(set)
    for name, _, library in re.findall(r" U (\w+)(@(libcu\S+))?$", listed, flags=re.MULTILINE):
        if library or re.match("cu[A-Z]", name):  # the driver's functions have no versions
            functions[library or _DRIVER].add(name)
    needed = set(re.findall(rb"libcu\w+\.so\.\d+", _PROVIDER.read_bytes()))
    for library in {"libcurand.so.10", _DRIVER} & {name.decode() for name in needed}:
        functions.setdefault(library, set())
    for library, names in functions.items():
        rest = folder / "rest.c"  # whatever dummy_cuda.c does not have
        rest.write_text("".join(f"__attribute__((weak)) long {name}(void) {{ return 0; }}\n" for name in sorted(names)))
        versions = folder / "versions"
        versions.write_text(f"{library} {{ global: *; }};\n")
        linking = [f"-Wl,-soname,{library}", f"-Wl,--version-script={versions}"]
        command = ["cc", "-O1", "-w", "-shared", "-fPIC", "-pthread", *linking, SOURCE, rest, "-o", folder / library]
        subprocess.run(command, check=True)
    return folder


def load(folder):
    """Loads the libraries into this process, before the provider looks for them, and returns CUDA's runtime."""
    paths = sorted(Path(folder).glob("lib*.so.*"), key=lambda path: "libcudart" not in path.name)
    runtime, *_ = [ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL) for path in paths]
    return runtime
