"""Reading and writing the JSON files that lie beside a model's weights."""

import json
from pathlib import Path
from typing import Any

from neo_tf.errors import ConfigError
from neo_tf.git_lfs import refuse_pointer


def read_json(path: Path | str) -> Any:
    """Reads a JSON file.

    Raises:
        ConfigError: The file cannot be read or is not JSON. The message names the file.
        CheckpointError: The file is a Git LFS pointer.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))  # Windows' editors write a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except json.JSONDecodeError as error:
        refuse_pointer(path)
        raise ConfigError(f"{path}: not JSON: {error}") from None


def write_json(path: Path, value: object) -> None:
    """Writes a value as indented JSON that ends with a line break."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
