"""Numbers of bytes as people read and write them, in powers of 1000."""

import re

from neo_tf.errors import RequestError

_UNITS = {"": 1, "k": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}


def readable_bytes(size: float) -> str:
    """Formats a number of bytes: 1234567 becomes "1.2 MB"."""
    if size < 1000:
        return f"{size:.0f} B"
    for unit in ("kB", "MB"):
        size /= 1000
        if size < 1000:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} GB"


def bytes_of(name: str, text: str) -> int:
    """Reads a number of bytes: "500MB" becomes 500000000.

    Args:
        name: The argument that the text was given for; the error message begins with it.
        text: A number and a unit: B, kB, MB, GB or TB. The B may be left out.

    Raises:
        RequestError: The text is not a size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)B?", text.strip())
    if not found:
        raise RequestError(f"{name} must be a size such as 2GB or 500MB, not {text!r}")
    return int(float(found[1]) * _UNITS[found[2]])
