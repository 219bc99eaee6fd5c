"""Which files of texts are read, and in which order."""

import fnmatch
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from neo_tf.errors import DataError, RequestError
from neo_tf.training.data.files import natural_order
from neo_tf.training.data.texts import KINDS

# What the original's create_tfrecords.py looks for in its folder, in this order.
_ORIGINAL_KINDS = ("jsonl.zst", ".txt", ".xz", ".tar.gz")


def find_texts(
    inputs: Iterable[Path | str],
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    without: Iterable[Path] = (),
) -> list[Path]:
    """The files in the order of `inputs`; those of a folder and of all folders in it in natural order.

    Args:
        inputs: Files and folders. A file is taken whatever its name is.
        include: Of a folder the files that fit one of these patterns. Without any, those that end in one of KINDS. A
            pattern is compared with the path below the folder; its * stands for slashes, too.
        exclude: Of a folder not the files that fit one of these patterns.
        without: Folders that are not looked into.

    Raises:
        DataError: There is no such file or folder, or no file in it fits.
    """
    found: list[Path] = []
    for path in map(Path, inputs):
        if path.is_dir():
            names = [name for name in _names_below(path, [*without]) if _fits(name, include, exclude)]
            if not names:
                wanted = ", ".join(include) if include else "*.txt, *.jsonl, *.tar.gz, …: see --include"
                raise DataError(f"{path}: no texts in this folder ({wanted})")
            found += [path / name for name in natural_order(sorted(names))]
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"{path}: no such file or folder")
    if not found:
        raise DataError("no texts: no file or folder is given")
    return found


def find_texts_as_the_original(inputs: Iterable[Path | str]) -> list[Path]:
    """The files that create_tfrecords.py reads. Those of a folder lie in it itself, and come kind after kind.

    Of one kind they come in natural order; in the original, they come as the file system gives them. To have that
    order, give the files instead of the folder.

    Raises:
        DataError: As find_texts.
    """
    found: list[Path] = []
    for path in map(Path, inputs):
        if not path.is_dir():
            found += find_texts([path])
            continue
        names = [entry.name for entry in path.iterdir() if entry.is_file()]
        chosen = [name for kind in _ORIGINAL_KINDS for name in natural_order(sorted(names)) if name.endswith(kind)]
        if not chosen:
            kinds = ", ".join(f"*{kind}" for kind in _ORIGINAL_KINDS)
            raise DataError(f"{path}: none of the files that the original reads ({kinds})")
        found += [path / name for name in chosen]
    return found


def split_as_the_original(files: list[Path], processes: int) -> list[list[Path]]:
    """The files that each of the original's processes reads. There may be one more than was asked for.

    Raises:
        RequestError: There are fewer files than processes, where the original crashes.
    """
    if processes == 1:
        return [files]
    size = len(files) // processes
    if size == 0:
        raise RequestError(
            f"--original-processes {processes}: there are only {len(files)} files, and the original crashes with fewer "
            "files than processes (ValueError: range() arg 3 must not be zero)"
        )
    return [files[start : start + size] for start in range(0, len(files), size)]


def _names_below(folder: Path, without: list[Path]) -> list[str]:
    """The paths of all files below a folder, relative to it, without hidden ones."""
    left_out = {path.resolve() for path in without}
    names = []
    for where, folders, files in os.walk(folder):
        here = Path(where)
        folders[:] = [name for name in folders if not name.startswith(".") and (here / name).resolve() not in left_out]
        names += [(here / name).relative_to(folder).as_posix() for name in files if not name.startswith(".")]
    return names


def _fits(name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in exclude):
        return False
    if include:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in include)
    return name.lower().endswith(KINDS)
