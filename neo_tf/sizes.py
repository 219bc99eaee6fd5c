"""Bytes as people read and write them."""

import re

from neo_tf.errors import RequestError


def readable_bytes(size):
    """1234567 -> "1.2 MB"; powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


def bytes_of(name, text):
    """ "500MB" or "1.5 GB" -> bytes; powers of 1000, as they are shown."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)B?", text.strip())
    if not found:
        raise RequestError(f"{name} must be a size such as 2GB or 500MB, not {text!r}")
    return int(float(found[1]) * 1000 ** " kMGT".index(found[2] or " "))
