"""The fields of Text Generation Inference's requests, and what they mean for generate."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict

from neo_tf.errors import RequestError

from ..argument_kinds import Flag, Kind, WellFormedText, Whole
from .errors import bad_request
from .fields import Argument, Checked, Ignored, NotServed, arguments_of
from .served_arguments import served_arguments
from .serving import Serving

if TYPE_CHECKING:
    from ..arguments import GenerateArguments

# As in Text Generation Inference.
_NEW_TOKENS = 100
_DEFAULTS = {"do_sample": False, "temperature": 1.0, "top_k": 0}
# Any of these draws the tokens, unless it has the value at which it changes nothing.
_DRAWS = {"temperature": 1, "top_k": 0, "top_p": 1, "typical_p": 1}


class _Grammar(Kind):
    """What a text must keep to."""

    words = "an object with the type json, json_schema or regex, and a value"

    def check(self, name: str, value: Any) -> None:
        """See Kind."""
        guided_argument(value)


def guided_argument(grammar: Any) -> dict[str, Any]:
    """The argument of generation that a grammar stands for.

    Args:
        grammar: {"type": "json", "value": schema}, {"type": "json_schema", "value": {"schema": ...}}, or
            {"type": "regex", "value": pattern}.

    Raises:
        RequestError: It is something else.
    """
    kind = grammar.get("type") if isinstance(grammar, Mapping) else None
    value = grammar.get("value") if isinstance(grammar, Mapping) else None
    if kind == "json_schema" and isinstance(value, Mapping):
        value = value.get("schema")
    if kind in ("json", "json_schema") and isinstance(value, Mapping | str):
        return {"guided_json": value}
    if kind == "regex" and isinstance(value, str):
        return {"guided_regex": value}
    raise RequestError(f"grammar must be {_Grammar.words}")


class GenerateParameters(BaseModel):
    """How the text is continued. A field that is null or missing has its default."""

    model_config = ConfigDict(extra="forbid", strict=True)

    max_new_tokens: Annotated[
        Any, Argument("max_new_tokens", (), "Stop after this number of new tokens; by default 100.")
    ] = None
    stop: Annotated[Any, Argument("stop_strings", (), "End the text at any of these texts, which it then holds.")] = (
        None
    )
    do_sample: Annotated[Any, Argument("do_sample")] = None
    seed: Annotated[Any, Argument("seed")] = None
    temperature: Annotated[Any, Argument("temperature")] = None
    top_k: Annotated[Any, Argument("top_k")] = None
    top_p: Annotated[Any, Argument("top_p")] = None
    typical_p: Annotated[Any, Argument("typical_p")] = None
    repetition_penalty: Annotated[Any, Argument("repetition_penalty")] = None
    frequency_penalty: Annotated[Any, Argument("frequency_penalty")] = None
    best_of: Annotated[
        Any,
        Checked(Whole(least=1), "Draw this number of texts, and return first the one whose tokens are the likeliest."),
    ] = None
    truncate: Annotated[Any, Checked(Whole(least=1), "Keep this number of the prompt's last tokens.")] = None
    return_full_text: Annotated[Any, Checked(Flag(), "Return the prompt before the new text.")] = None
    details: Annotated[
        Any, Checked(Flag(), "Return the tokens, their log-probabilities, and why the text ended. By default it does.")
    ] = None
    decoder_input_details: Annotated[
        Any, Checked(Flag(), "Return the prompt's tokens and their log-probabilities in the details.")
    ] = None
    top_n_tokens: Annotated[
        Any, Checked(Whole(least=0), "Return this number of the most likely tokens at each place in the details.")
    ] = None
    grammar: Annotated[Any, Checked(_Grammar(), "Keep to a JSON schema or to a regular expression.")] = None
    watermark: Annotated[Any, NotServed("texts are not marked", (False,))] = None
    adapter_id: Annotated[Any, NotServed("the server has one model; an adapter is named when it starts")] = None


class GenerateBody(BaseModel):
    """A request of /generate and /generate_stream."""

    model_config = ConfigDict(extra="forbid", strict=True)

    inputs: Annotated[Any, Checked(WellFormedText(), "The text that is continued.")]
    parameters: GenerateParameters | None = None
    stream: bool | None = None
    options: Annotated[Any, Ignored()] = None  # older clients of hosted endpoints send it


def generate_arguments(asked: GenerateParameters, serving: Serving, streams: bool) -> GenerateArguments:
    """The arguments of generation that the parameters mean.

    Raises:
        ServerError, RequestError: They do not go together.
    """
    given = {**arguments_of(asked), "include_stop_str_in_output": True}
    if asked.grammar is not None:
        given |= guided_argument(asked.grammar)
    drawing = {name for name, neutral in _DRAWS.items() if given.get(name) not in (None, neutral)}
    if drawing:
        given["do_sample"] = True
    elif not given.get("do_sample"):  # what changes nothing needs no drawing, either
        given = {name: value for name, value in given.items() if name not in _DRAWS}
    count = 1 if asked.best_of is None else int(asked.best_of)
    if count > 1:
        given["num_return_sequences"] = count
        if streams:
            raise bad_request("best_of cannot be streamed: which text is best is known in the end", "best_of")
        if not given.get("do_sample"):
            raise bad_request("best_of needs do_sample or a temperature: otherwise all texts are the same", "best_of")
    if streams and asked.decoder_input_details:
        raise bad_request("decoder_input_details cannot be streamed", "decoder_input_details")
    options = served_arguments(given, _DEFAULTS, _NEW_TOKENS, serving, "grammar" if asked.grammar is not None else None)
    return options.with_seed(secrets.randbelow(2**53))  # the answer says which; a number that JavaScript can hold
