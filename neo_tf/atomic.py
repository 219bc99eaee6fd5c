"""Writing a folder or a file so that it appears whole under its name, or not at all."""

import contextlib
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from neo_tf.errors import NeoTFError, OutputError, first_line
from neo_tf.file_names import CHAT_TEMPLATES_FOLDER, CONFIG_FILE, GENERATION_CONFIG_FILE, TOKENIZER_FILES
from neo_tf.sizes import readable_bytes

# Patterns of the files that neo-tf writes. --force replaces a folder only if it holds weights and no other files.
_WEIGHTS = ("model*.safetensors", "model.weights.h5", "model.onnx_data", "model.ckpt-*.index")
_OURS = (
    *_WEIGHTS,
    CONFIG_FILE,
    GENERATION_CONFIG_FILE,
    *TOKENIZER_FILES,
    "genai_config.json",
    "dataset.json",
    "checkpoint",
    "model.safetensors.index.json",
    "model.ckpt-*.data-*-of-*",
    "*.onnx",
    "optimizer.safetensors",
    "training_state.json",
)
# A folder that is being written is called .{name}.partial-{process}-{random}; -old is added to the one it replaces.
_PARTIAL = ".partial-"
_OLD = "-old"


@contextlib.contextmanager
def new_folder(
    dst: Path | str, *, force: bool = False, needs: int = 0, source: Path | str | None = None
) -> Iterator[Path]:
    """Yields a temporary folder beside dst. It becomes dst when the block ends well and is removed when it fails.

    A process that is killed leaves at most the hidden `.{name}.partial-*`, which the next writer of dst removes.

    Args:
        dst: The final folder. It may exist if it is empty.
        force: Whether a folder that is not empty is replaced. It must hold nothing but files that neo-tf writes.
        needs: The number of bytes that will be written. They are compared with the free space first.
        source: The path that the block reads from, which must not be dst.

    Raises:
        OutputError: dst cannot be written; the message says why. An OSError of the block becomes an OutputError.
    """
    dst = Path(dst)
    _check_target(dst, force, source)
    try:
        final = dst.resolve()
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(final.parent, final.name)
        free = shutil.disk_usage(final.parent).free
        if needs <= free:
            partial = Path(tempfile.mkdtemp(prefix=f".{final.name}{_PARTIAL}{os.getpid()}-", dir=final.parent))
    except OSError as error:
        raise _output_error(dst, error) from None
    if needs > free:
        raise OutputError(f"{dst}: needs {readable_bytes(needs)}, but only {readable_bytes(free)} are free")
    try:
        yield partial
        partial.chmod(0o777 & ~_umask())
        _sync(partial)
        _check_target(dst, force, source)  # again: files may have come there in the meantime
        _replace(partial, final)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, NeoTFError):
            raise
        raise _output_error(dst, error) from None
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextlib.contextmanager
def new_file(path: Path | str) -> Iterator[Path]:
    """Yields the path of a temporary file beside `path`. It becomes `path` when the block ends well, or is removed.

    Raises:
        OutputError: The file cannot be written; the message says why. Where this can be known before the block
            begins, it is raised then.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OutputError(f"{path}: exists and is no plain file")
    final = path.resolve()
    try:
        _remove_leftovers(final.parent, final.name)
        descriptor, name = tempfile.mkstemp(prefix=f".{final.name}{_PARTIAL}{os.getpid()}-", dir=final.parent)
        os.close(descriptor)
    except OSError as error:
        raise _output_error(path, error) from None
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o666 & ~_umask())
        partial.replace(final)
    except OSError as error:
        if isinstance(error, NeoTFError):
            raise
        raise _output_error(path, error) from None
    finally:
        partial.unlink(missing_ok=True)


def _check_target(dst: Path, force: bool, source: Path | str | None) -> None:
    if source is not None and Path(f"{source}.index").is_file():
        source = Path(source).absolute().parent  # a prefix of the original's: its folder must stay
    if source is not None and Path(source).exists() and dst.exists() and dst.samefile(source):
        raise OutputError(f"{dst}: is the source itself")
    if dst.exists() and dst.samefile(Path.cwd()):
        raise OutputError(f"{dst}: is the current folder, which cannot be replaced as a whole: name one inside it")
    if dst.exists() and not dst.is_dir():
        raise OutputError(f"{dst}: exists and is a file")
    if not dst.is_dir():
        return
    held = sorted(dst.iterdir())
    if held and not force:
        raise OutputError(f"{dst}: exists and is not empty (--force replaces it)")
    foreign = [entry.name for entry in held if not _is_ours(entry)]
    if foreign:
        raise OutputError(f"{dst}: holds {foreign[0]!r}, which neo-tf did not write: not replaced even with --force")
    if held and not any(entry.match(pattern) for entry in held for pattern in _WEIGHTS):
        raise OutputError(f"{dst}: holds no weights that neo-tf wrote: not replaced even with --force")


def _is_ours(entry: Path) -> bool:
    """Whether neo-tf writes such a file, or a folder that holds nothing but chat templates."""
    if entry.is_dir():
        return entry.name == CHAT_TEMPLATES_FOLDER and all(path.match("*.jinja") for path in entry.iterdir())
    return any(entry.match(pattern) for pattern in _OURS)


def _remove_leftovers(parent: Path, name: str) -> None:
    """Removes what killed writers of the same folder left behind, unless their process still runs."""
    for leftover in parent.glob(f".{glob.escape(name)}{_PARTIAL}*"):
        process = leftover.name.split(_PARTIAL)[1].split("-")[0]
        if not process.isdigit() or _runs(int(process)):
            continue
        if leftover.is_file():
            leftover.unlink(missing_ok=True)
        elif leftover.name.endswith(_OLD) and not (parent / name).exists():
            leftover.rename(parent / name)  # killed between the two renames of _replace
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _replace(partial: Path, dst: Path) -> None:
    if not dst.exists():
        partial.rename(dst)
        return
    old = partial.with_name(partial.name + _OLD)
    dst.rename(old)
    try:
        partial.rename(dst)
    except OSError:
        old.rename(dst)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Flushes the files to the disk, so that a full disk is noticed before the rename and not after it."""
    for path in folder.rglob("*"):
        if path.is_dir():
            continue
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _output_error(dst: Path, error: OSError) -> OutputError:
    return OutputError(f"{dst}: cannot be written: {error.strerror or first_line(error)}")
