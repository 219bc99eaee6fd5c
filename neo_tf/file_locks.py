"""Locks on files and folders, which end with the process that holds them."""

from pathlib import Path
from typing import IO

from neo_tf.errors import OutputError


def lock(held: int | IO[bytes], path: Path) -> None:
    """Keeps other processes from locking an open file or folder, until it is closed. Windows has no such locks.

    Args:
        held: The open file, or a descriptor of the file or folder.
        path: What the message calls it.

    Raises:
        OutputError: Another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(f"{path}: another process is writing it") from None
