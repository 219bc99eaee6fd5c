"""Reading the text files that options name."""

from pathlib import Path

from neo_tf.errors import RequestError


def read_option_file(option: str, path: Path) -> str:
    """The text of a file, without the byte order mark that some editors write at its beginning.

    Args:
        option: The option that names the file, for the message.
        path: The file.

    Raises:
        RequestError: The file cannot be read, or is no UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not valid UTF-8 text"
        raise RequestError(f"{option} {path}: cannot be read: {reason}") from None
