"""The settings of generation that come with a model, in an ONNX folder's generation_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neo_tf.errors import ConfigError
from neo_tf.file_names import GENERATION_CONFIG_FILE
from neo_tf.json_files import read_json

from .argument_kinds import TokenIds
from .argument_table import ARGUMENTS, LEFT_OUT, is_refused

if TYPE_CHECKING:
    from neo_tf.config import GPTNeoConfig

# Arguments of a call alone: what a result holds is not a model's to say.
_OF_CALLS = ("output_scores", "output_logits", "streamer", "logits_processor", "pad_token_id")


@dataclass(frozen=True)
class ModelSettings:
    """What a model says of generation. A call's own arguments come before it.

    Args:
        arguments: {name in the table of arguments: value}, without those that say nothing.
        not_served: {name: value} of settings that change the text and that neo-tf does not have.
        source: What an error message calls it.
        declared: All that it says, as it stands there.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    not_served: Mapping[str, Any] = field(default_factory=dict)
    source: str = GENERATION_CONFIG_FILE
    declared: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raises ConfigError where a setting changes the text and is not served."""
        for name, value in self.not_served.items():
            raise ConfigError(f"{self.source}: {name} {value!r} changes the text, and neo-tf does not have it")


def read_generation_config(folder: Path | str, config: GPTNeoConfig) -> ModelSettings:
    """Reads a folder's settings of generation.

    Names that transformers does not know either are left out, and so are ids of ends and of suppressed tokens outside
    the vocabulary, which can never come.

    Args:
        folder: An ONNX folder.
        config: The model's config, whose ids hold where the folder has no generation_config.json.

    Raises:
        ConfigError: The file is not a JSON object, or an id in it is none.
    """
    path = Path(folder) / GENERATION_CONFIG_FILE
    if not path.is_file():
        ids = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
        return settings_of(ids, config, str(path))
    values = read_json(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: the settings of generation must be a JSON object")
    return settings_of(values, config, str(path))


def settings_of(values: Mapping[str, Any], config: GPTNeoConfig, source: str) -> ModelSettings:
    """The settings of {name: value} in transformers' names.

    Raises:
        ConfigError: An id of an end or of a suppressed token is none.
    """
    values = {name: value for name, value in values.items() if value is not None}
    arguments = {name: value for name, value in values.items() if name in ARGUMENTS and name not in _OF_CALLS}
    kind = TokenIds(or_one=True)
    for name in ("eos_token_id", "suppress_tokens", "begin_suppress_tokens"):
        if name in arguments:
            try:
                ids = kind.token_ids(kind.normal(arguments[name]))
            except TypeError:
                raise ConfigError(f"{source}: {name} must be {kind.words}, not {arguments[name]!r}") from None
            arguments[name] = [token for token in ids if 0 <= token < config.n_vocab]
    arguments.setdefault("eos_token_id", [])  # as in transformers: without one no token ends a text
    not_served = {name: values[name] for name in LEFT_OUT if name in values and is_refused(name, values[name])}
    return ModelSettings(arguments, not_served, source, values)
