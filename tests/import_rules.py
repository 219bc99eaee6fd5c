"""The rules of DESIGN.md on which package may import which, and what finds the imports that break them."""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import neo_tf

ROOT = Path(__file__).parent.parent
# A package -> its folder in the source tree. The longest name comes first.
FOLDERS = {"neo_tf.export": ROOT / "export", "neo_tf.runtime": ROOT / "runtime", "neo_tf": ROOT / "neo_tf"}


def source_modules() -> dict[str, Path]:
    """All modules of the installed packages, {dotted name: source file}."""
    modules = {}
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            if parts[-1] == "__init__":
                parts.pop()
            modules[".".join(parts)] = path
    return modules


@dataclass(frozen=True)
class Import:
    """One import.

    Args:
        importer: The dotted name of the module that imports.
        target: The dotted name of the imported module.
        path: The importer's file.
        line: The line of the import.
        relative: Whether the import is a relative one.
        typing: Whether it stands under `if TYPE_CHECKING:`, so that only type checkers read it.
    """

    importer: str
    target: str
    path: Path
    line: int
    relative: bool = False
    typing: bool = False


def imports_of(module: str, path: Path, text: str, modules: dict[str, Path]) -> Iterator[Import]:
    """All imports in a module's source: those in functions too, those by name, and those that neo_tf's names cause."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(text, str(path))
    typing = {id(node) for block in ast.walk(tree) if _is_type_checking(block) for node in ast.walk(block)}

    def found(target: str, node: ast.AST, relative: bool = False) -> Import:
        return Import(module, target, path, node.lineno, relative, id(node) in typing)

    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield found(name.name, node)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                outer = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*outer, *base.split(".")]).rstrip(".")
            for name in node.names:
                whole = f"{base}.{name.name}"
                target = _home(name.name) if base == "neo_tf" else base
                yield found(whole if whole in modules else target, node, bool(node.level))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "neo_tf":
            yield found(_home(node.attr), node)  # neo_tf.export_onnx loads neo_tf.export.package
        elif isinstance(node, ast.Call) and (name := _imported_by_name(node)):
            yield found(name, node)


def _imported_by_name(call: ast.Call) -> str | None:
    """The module that a call such as importlib.import_module("keras") imports, or None."""
    if ast.unparse(call.func) not in ("importlib.import_module", "import_module", "__import__"):
        return None
    first = call.args[0] if call.args else None
    return str(first.value) if isinstance(first, ast.Constant) else None


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _home(name: str) -> str:
    """The module that a name of the package neo_tf comes from."""
    return neo_tf._HOMES.get(name, "neo_tf")


# ---- the rules

# Modules that everyone may import, and that import nothing of neo-tf but each other.
CONTRACTS = {
    "neo_tf.atomic",
    "neo_tf.cache_layout",
    "neo_tf.config",
    "neo_tf.config_fields",
    "neo_tf.config_formats",
    "neo_tf.config_values",
    "neo_tf.errors",
    "neo_tf.file_locks",
    "neo_tf.file_names",
    "neo_tf.git_lfs",
    "neo_tf.hub",
    "neo_tf.json_files",
    "neo_tf.notes",
    "neo_tf.onnx_folder",
    "neo_tf.progress",
    "neo_tf.sizes",
    "neo_tf.text_files",
    "neo_tf.tokenizer_backend",
    "neo_tf.tokenizer_classes",
    "neo_tf.variables",
}
ROOF = ("neo_tf.evaluation", "neo_tf.model_cache", "neo_tf.text_generation", "neo_tf.cli")
KERAS_MODEL = ("neo_tf.model", "neo_tf.layers", "neo_tf.moe", "neo_tf.activations", "neo_tf.training")
TENSORFLOW = ("tensorflow", "keras", "h5py", "torch", "transformers", "neo_tf.keras_backend", *KERAS_MODEL)
# The rooms of the runtime. A room may import rooms of a lower number and itself.
RUNTIME_ROOMS = {
    "neo_tf.runtime.argument_kinds": 0,
    "neo_tf.runtime.argument_table": 1,
    "neo_tf.runtime.guided": 1,
    "neo_tf.runtime.chat_template": 0,
    "neo_tf.runtime.pooling": 0,
    "neo_tf.runtime.text_pieces": 0,
    "neo_tf.runtime.text_stream": 1,
    "neo_tf.runtime.tokenizer": 2,
    "neo_tf.runtime.device": 2,
    "neo_tf.runtime.sampling": 2,
    "neo_tf.runtime.engine": 3,
    "neo_tf.runtime.generation_config": 2,
    "neo_tf.runtime.arguments": 4,
    "neo_tf.runtime.call_arguments": 5,
    "neo_tf.runtime.pipeline": 6,
    "neo_tf.runtime.jobs": 7,
    "neo_tf.runtime.server": 8,
}


@dataclass(frozen=True)
class Rule:
    """A rule that some imports break.

    Args:
        text: The rule in words.
        is_broken: Whether an import breaks it.
    """

    text: str
    is_broken: Callable[[Import], bool]


def is_below(module: str, *packages: str) -> bool:
    """Whether a module is one of these packages or lies in one of them."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def room_of(module: str) -> str | None:
    """The room of the runtime that a module lies in."""
    return next((room for room in RUNTIME_ROOMS if is_below(module, room)), None)


def _never(importer: str, *targets: str) -> Callable[[Import], bool]:
    return lambda found: is_below(found.importer, importer) and is_below(found.target, *targets)


def _climbs(found: Import) -> bool:
    importer = room_of(found.importer)
    target = room_of(found.target)
    if importer is None or target is None or importer == target:
        return False
    return RUNTIME_ROOMS[target] >= RUNTIME_ROOMS[importer]


def _package(module: str) -> str:
    return next(package for package in (*FOLDERS, module.partition(".")[0]) if is_below(module, package))


def _is_absolute_inside(found: Import) -> bool:
    package = _package(found.importer)
    return package != "neo_tf" and not found.relative and is_below(found.target, package)


def _is_relative_outside(found: Import) -> bool:
    return found.relative and _package(found.target) != _package(found.importer)


RULES = (
    Rule("the runtime needs no onnx", _never("neo_tf.runtime", "onnx")),
    Rule("the runtime needs no TensorFlow and no Keras model", _never("neo_tf.runtime", *TENSORFLOW)),
    Rule("the runtime knows no checkpoints", _never("neo_tf.runtime", "neo_tf.checkpoints")),
    Rule("the runtime knows no export", _never("neo_tf.runtime", "neo_tf.export")),
    Rule("the runtime lies below evaluation, model_cache and cli", _never("neo_tf.runtime", *ROOF)),
    Rule("export needs no TensorFlow and no Keras model", _never("neo_tf.export", *TENSORFLOW)),
    Rule("export knows no runtime", _never("neo_tf.export", "neo_tf.runtime")),
    Rule("export lies below evaluation, model_cache and cli", _never("neo_tf.export", *ROOF)),
    Rule("checkpoints know no export", _never("neo_tf.checkpoints", "neo_tf.export")),
    Rule("checkpoints know no runtime", _never("neo_tf.checkpoints", "neo_tf.runtime")),
    Rule("checkpoints lie below evaluation, model_cache and cli", _never("neo_tf.checkpoints", *ROOF)),
    Rule(
        "contracts import nothing of neo-tf but each other",
        lambda found: (
            found.importer in CONTRACTS and is_below(found.target, "neo_tf") and found.target not in CONTRACTS
        ),
    ),
    Rule(
        "nobody imports neo_tf.cli but itself and neo_tf.__main__, which runs it",
        lambda found: (
            is_below(found.target, "neo_tf.cli") and not is_below(found.importer, "neo_tf.cli", "neo_tf.__main__")
        ),
    ),
    Rule(
        "only neo_tf.cli imports neo_tf.evaluation",
        lambda found: (
            is_below(found.target, "neo_tf.evaluation")
            and not is_below(found.importer, "neo_tf.evaluation", "neo_tf.cli")
        ),
    ),
    Rule(
        "the runtime's rooms: argument_table <- device, sampling <- engine <- arguments <- pipeline <- jobs, server",
        _climbs,
    ),
    Rule("inside export/ and runtime/ imports are relative", _is_absolute_inside),
    Rule("an import of another package is absolute", _is_relative_outside),
)
# (importer, target): known imports that break a rule, with the reason.
EXCEPTIONS: set[tuple[str, str]] = set()


def violations(found: Import) -> list[str]:
    """What an import breaks, each as `file:line: module imports target: rule`."""
    if found.typing and not is_below(found.target, "neo_tf"):
        return []  # a type of a library that need not be there
    if (found.importer, found.target) in EXCEPTIONS:
        return []
    path = found.path.relative_to(ROOT) if found.path.is_relative_to(ROOT) else found.path
    return [
        f"{path}:{found.line}: {found.importer} imports {found.target}, but {rule.text}"
        for rule in RULES
        if rule.is_broken(found)
    ]
