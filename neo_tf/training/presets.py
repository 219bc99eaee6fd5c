"""Presets: the configs that the original code ships, by the size of the model or by the file's name."""

from pathlib import Path
from typing import Any

from neo_tf.errors import RequestError
from neo_tf.json_files import read_json

_FILE = Path(__file__).with_name("presets.json")


def preset(name: str) -> dict[str, Any]:
    """One of the original's configs, as a dict that GPTNeoConfig and Hyperparameters read.

    The sizes stand for gpt3_small_256 (125M), gpt3_medium_256 (350M), gpt3_large_256 (760M), GPT3_XL (1.3B),
    gpt3_2-7B_256 (2.7B), gpt3_6-7B_256 (6.7B) and gpt3_13B_256 (13B). GPT3_XL is that of the original's notebook.

    Args:
        name: A size, such as "125M", or the name of a config without ".json".

    Raises:
        RequestError: There is no such preset.
    """
    data = read_json(_FILE)
    found = data["presets"].get(data["sizes"].get(name, name))
    if found is None:
        raise RequestError(f"{name}: no preset (known: {', '.join(preset_names())})")
    return {**data["every"], **found}


def preset_names() -> list[str]:
    """The names that preset takes: the sizes, and then the configs."""
    data = read_json(_FILE)
    return [*data["sizes"], *data["presets"]]
