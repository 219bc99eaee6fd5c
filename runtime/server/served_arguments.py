"""What a request asks for, with the model's own settings under it, and a protocol's defaults under those."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from neo_tf.errors import RequestError

from ..argument_table import ARGUMENTS, Panel
from ..arguments import GenerateArguments
from ..generation_config import ModelSettings
from .errors import bad_request

if TYPE_CHECKING:
    from .serving import Serving

# Of the model's own settings: a request says how many texts it wants, and these protocols have no beams.
_NOT_FROM_MODEL = (Panel.BEAMS, Panel.RESULTS)


def served_arguments(
    given: Mapping[str, Any], defaults: Mapping[str, Any], new_tokens: int, serving: Serving, guide_field: str | None
) -> GenerateArguments:
    """The arguments of generation that a request means.

    Args:
        given: What the request says, {argument's name: value}.
        defaults: What holds where neither the request nor the model's generation_config.json says anything.
        new_tokens: The number of new tokens where neither of them names a limit.
        serving: The model.
        guide_field: The field that says what the text must keep to; None where it has the argument's name.

    Raises:
        RequestError: They do not go together.
    """
    own = serving.pipeline.settings
    below = {name: value for name, value in own.arguments.items() if ARGUMENTS[name].panel not in _NOT_FROM_MODEL}
    options = GenerateArguments.parse(given, settings=ModelSettings({**defaults, **below}, {}, own.source))
    _check_guide(options, guide_field, serving)
    return dataclasses.replace(options, origin=dataclasses.replace(options.origin, new_tokens=new_tokens))


def _check_guide(options: GenerateArguments, field: str | None, serving: Serving) -> None:
    """Raises ServerError, with the field, where what the text must keep to cannot be served."""
    try:
        guide = options.sampling.guide
        if guide:
            serving.tokenizer.grammar(guide)
    except RequestError as error:
        name, _, reason = str(error).partition(": ")
        raise bad_request(f"{field or name}: {reason}", field or name, "invalid_value") from None
