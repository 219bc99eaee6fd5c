"""The arguments of a call of the pipeline, in the forms that transformers' pipeline takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from neo_tf.errors import RequestError

from .argument_table import ARGUMENTS, LEFT_OUT
from .arguments import GenerateArguments
from .generation_config import ModelSettings

# With None for the limit of new tokens, and no other limit, transformers generates this number of them.
_NEW_TOKENS_OF_NONE = 20
# What None means, where it is not the table's default: every token may be drawn, and no token ends the text.
_OFF: dict[str, Any] = {"top_k": 0, "eos_token_id": ()}
# transformers leaves these out where they are None: the model's own settings hold.
_ABSENT = frozenset(("max_length", "prefix", "stop_strings"))
# transformers' ReturnType, by its numbers.
_RETURN_TYPES: tuple[dict[str, Any], ...] = (
    {"return_tensors": True},
    {"return_full_text": False},
    {"return_full_text": True},
)


@dataclass(frozen=True)
class CallArguments:
    """What a call gives.

    Args:
        given: {name: value} without None.
        none: The names that were given with None.
    """

    given: Mapping[str, Any]
    none: frozenset[str]

    @classmethod
    def of(cls, standing: Mapping[str, Any], call: Mapping[str, Any]) -> CallArguments:
        """The arguments of a call, over those that hold for each call of a pipeline.

        A generation_config takes the place of those that hold for each call. It may be transformers' object or a dict.

        Raises:
            RequestError: A generation_config or a return_type that is none.
        """
        under = standing if call.get("generation_config") is None else {"generation_config": call["generation_config"]}
        named = {**_plain(under), **_plain(call)}
        given = {name: value for name, value in named.items() if value is not None}
        return cls(given, frozenset(named.keys() - given.keys() - _ABSENT))

    def parse(self, settings: ModelSettings, defaults: Mapping[str, Any]) -> GenerateArguments:
        """The arguments of generation, as transformers' pipeline understands them.

        Args:
            settings: What came with the model.
            defaults: What holds where nobody says anything.

        Raises:
            RequestError: See GenerateArguments.parse.
        """
        if "num_beam_groups" in self.given:  # groups differ by their penalty, not by chance
            defaults = {}
        below = {name: value for name, value in {**defaults, **settings.arguments}.items() if name not in self.none}
        not_served = {name: value for name, value in settings.not_served.items() if name not in self.none}
        below |= {name: value for name, value in _OFF.items() if name in self.none}
        options = GenerateArguments.parse(
            self.given, settings=ModelSettings(below, not_served, settings.source), lenient=True
        )
        if "max_new_tokens" not in self.none:
            return options
        return replace(options, origin=replace(options.origin, new_tokens=_NEW_TOKENS_OF_NONE, counts_prefix=True))


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments without generation_config and return_type, which stand for others."""
    named = {name: value for name, value in arguments.items() if name not in ("generation_config", "return_type")}
    config = arguments.get("generation_config")
    if config is not None:
        named = {**_of_config(config), **named}
    form = arguments.get("return_type")
    if form is not None:
        number = getattr(form, "value", form)
        if number not in (0, 1, 2):
            raise RequestError(
                f"return_type must be 0 (token ids), 1 (the new text) or 2 (the full text), not {form!r}"
            )
        named = {**_RETURN_TYPES[number], **named}
    return named


def _of_config(config: Any) -> dict[str, Any]:
    """The settings of a GenerationConfig, or of a dict."""
    values = config.to_diff_dict() if hasattr(config, "to_diff_dict") else config
    if not isinstance(values, Mapping):
        raise RequestError(f"generation_config must be a GenerationConfig or a dict, not {type(config).__name__}")
    known = ARGUMENTS.keys() | LEFT_OUT.keys()
    return {name: value for name, value in values.items() if name in known and value is not None}
