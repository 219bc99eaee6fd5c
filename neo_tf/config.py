"""GPTNeoConfig: a model's config, read from the original's JSON or from Hugging Face's config.json."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from neo_tf.config_fields import ConfigFields
from neo_tf.config_formats import (
    read_huggingface_config,
    read_original,
    write_huggingface_config,
    write_onnx_config,
    write_original,
)
from neo_tf.errors import ConfigError
from neo_tf.json_files import read_json


@dataclass(frozen=True)
class GPTNeoConfig(ConfigFields):
    """A GPT-Neo model's config. Its fields and their checks are those of ConfigFields; here are its forms as JSON.

    Example:
        config = GPTNeoConfig.from_file("config.json")
        config.to_huggingface()["hidden_size"] == config.n_embd
    """

    @classmethod
    def from_original(cls, params: dict[str, Any]) -> Self:
        """Reads a config of EleutherAI/gpt-neo, as a dict.

        Raises:
            ConfigError: A key is missing or malformed, contradicts another, or is not supported.
        """
        return cls(**read_original(params))

    def to_original(self) -> dict[str, Any]:
        """The config as a dict that from_original and the original code read."""
        return write_original(self)

    @classmethod
    def from_huggingface(cls, params: dict[str, Any]) -> Self:
        """Reads a transformers config.json, as a dict.

        Raises:
            ConfigError: A key is missing or malformed, contradicts another, or is that of another kind of model.
        """
        return cls(**read_huggingface_config(params))

    def to_huggingface(self) -> dict[str, Any]:
        """The config as a dict that transformers reads.

        Raises:
            ConfigError: The model uses an option that transformers has no key for.
        """
        return write_huggingface_config(self)

    def to_onnx(self) -> dict[str, Any]:
        """The config of an ONNX folder: Hugging Face's keys, and the original's options that the model uses."""
        return write_onnx_config(self)

    @classmethod
    def from_dict(cls, params: dict[str, Any]) -> Self:
        """Reads the original's or Hugging Face's form of a config, which differ in their keys.

        Raises:
            ConfigError: The value is not a dict, or from_huggingface or from_original refuses it.
        """
        if not isinstance(params, dict):
            raise ConfigError("a config must be a JSON object")
        if "model_type" in params or "hidden_size" in params:
            return cls.from_huggingface(params)
        return cls.from_original(params)

    @classmethod
    def from_file(cls, path: Path | str, moe_policy: str | None = None) -> Self:
        """Reads a JSON file that holds either form of a config.

        Args:
            path: The file.
            moe_policy: Replaces moe_second_policy_eval where the model has a mixture of experts.

        Raises:
            ConfigError: The file is missing, is not JSON, or holds a config that cannot be used. The message names
                the file.
        """
        params = read_json(path)
        if moe_policy and isinstance(params, dict) and params.get("moe_layers"):
            params["moe_params"] = (params.get("moe_params") or {}) | {"moe_second_policy_eval": moe_policy}
        try:
            return cls.from_dict(params)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
