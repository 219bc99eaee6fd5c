"""Git LFS pointers: the small text files that `git clone` leaves in place of large files where git-lfs is missing."""

from pathlib import Path

from neo_tf.errors import CheckpointError

_BEGINNING = b"version https://git-lfs"
WHAT_IT_IS = "a Git LFS pointer, not the file itself: run `git lfs pull` where it was cloned, or download the file"


def is_pointer(path: Path | str) -> bool:
    """Whether a file is a Git LFS pointer. A file that is missing or cannot be read is none."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_BEGINNING)) == _BEGINNING
    except OSError:
        return False


def refuse_pointer(path: Path | str) -> None:
    """Raises a CheckpointError where a file is a Git LFS pointer."""
    if is_pointer(path):
        raise CheckpointError(f"{path}: {WHAT_IT_IS}")
