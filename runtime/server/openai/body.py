"""What OpenAI's completions and chats have in common: the fields of sampling, and what they mean for generate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict

from ...argument_kinds import Kind, Whole
from ...argument_table import ARGUMENTS
from ...guided.response_format import guided_arguments
from ..errors import bad_request
from ..fields import Argument, Checked, Ignored, NotServed, argument_fields, arguments_of, foreign_id
from ..served_arguments import served_arguments
from ..serving import Serving

if TYPE_CHECKING:
    from ...arguments import GenerateArguments
    from ...engine.generation import Generation

# What holds where neither the request nor the model's generation_config.json says anything: as in OpenAI's API.
_DEFAULTS: Mapping[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0, "include_stop_str_in_output": False}

_ONE_MODEL = NotServed("the model's own text is all there is", (False, 0, "none", []))


class _ResponseFormat(Kind):
    """OpenAI's response_format."""

    words = "an object with the type text, json_object or json_schema"

    def check(self, name: str, value: Any) -> None:
        """See Kind."""
        guided_arguments(value)


def _typed(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"type": {"const": kind}, **more}, "required": ["type", *more]}


_NAMED_SCHEMA = {"type": "object", "properties": {"schema": {"type": "object"}}, "required": ["schema"]}
_RESPONSE_FORMATS = {"anyOf": [_typed("text"), _typed("json_object"), _typed("json_schema", json_schema=_NAMED_SCHEMA)]}


class StreamOptions(BaseModel):
    """What else a stream holds."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = None
    include_obfuscation: Annotated[Any, Ignored()] = None
    continuous_usage_stats: bool | None = None


class OpenAIBody(BaseModel):
    """The fields that completions and chats share. A field that is null or missing has its default."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    n: Annotated[Any, Argument("num_return_sequences", meaning="Return this number of texts for each prompt.")] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Annotated[Any, Argument("stop_strings")] = None
    seed: Annotated[Any, Argument("seed")] = None
    temperature: Annotated[Any, Argument("temperature", also=(0,))] = None
    top_p: Annotated[Any, Argument("top_p")] = None
    presence_penalty: Annotated[Any, Argument("presence_penalty")] = None
    frequency_penalty: Annotated[Any, Argument("frequency_penalty")] = None
    logit_bias: Annotated[Any, Argument("logit_bias")] = None
    user: Annotated[Any, Ignored()] = None
    # vLLM's names
    top_k: Annotated[Any, Argument("top_k", also=(-1,))] = None
    min_p: Annotated[Any, Argument("min_p")] = None
    repetition_penalty: Annotated[Any, Argument("repetition_penalty")] = None
    min_tokens: Annotated[Any, Argument("min_new_tokens")] = None
    stop_token_ids: Annotated[Any, Argument("stop_token_ids")] = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: Annotated[Any, Argument("include_stop_str_in_output")] = None
    skip_special_tokens: Annotated[Any, Argument("skip_special_tokens")] = None
    prompt_logprobs: Annotated[Any, Argument("prompt_logprobs")] = None
    truncate_prompt_tokens: Annotated[
        Any,
        Checked(
            Whole(least=1), "Keep this number of the prompt's last tokens; -1 keeps as many as the context has.", (-1,)
        ),
    ] = None
    # Structured output: OpenAI's name, and vLLM's
    response_format: Annotated[
        Any,
        Checked(_ResponseFormat(), "Write JSON: any object, or what keeps to a schema.", schema=_RESPONSE_FORMATS),
    ] = None
    guided_regex: Annotated[Any, Argument("guided_regex")] = None
    guided_choice: Annotated[Any, Argument("guided_choice")] = None
    guided_json: Annotated[Any, Argument("guided_json")] = None
    # Clients send them, and they change no text.
    store: Annotated[Any, Ignored()] = None
    metadata: Annotated[Any, Ignored()] = None
    service_tier: Annotated[Any, Ignored()] = None
    safety_identifier: Annotated[Any, Ignored()] = None
    prompt_cache_key: Annotated[Any, Ignored()] = None
    priority: Annotated[Any, Ignored()] = None
    request_id: Annotated[Any, Ignored()] = None
    spaces_between_special_tokens: Annotated[Any, Ignored()] = None
    # It would change the text.
    use_beam_search: Annotated[Any, NotServed("this protocol returns texts as they are drawn", (False,))] = None

    @property
    def streams(self) -> bool:
        """Whether the answer is a stream."""
        return bool(self.stream)

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def count(self) -> int:
        """The number of texts for each prompt."""
        return 1 if self.n is None else int(self.n)


def check_body(body: OpenAIBody, serving: Serving) -> None:
    """Checks what the fields cannot check alone.

    Raises:
        ServerError: What is wrong, with its field.
    """
    serving.check_name(body.model)
    if body.stream_options is not None and not body.streams:
        raise bad_request("stream_options needs stream: true", "stream_options", "invalid_value")
    for field, argument in argument_fields(type(body)).items():
        value = getattr(body, field)
        if value is not None and (wrong := foreign_id(field, argument, value, serving.config.n_vocab)):
            raise bad_request(wrong, field, "invalid_value")


def generate_arguments(
    body: OpenAIBody, serving: Serving, count: int, more: Mapping[str, Any], new_tokens: int
) -> GenerateArguments:
    """The arguments of generation that a request means.

    Args:
        body: The request, checked.
        serving: The model, whose generation_config.json holds where the request says nothing.
        count: The number of sequences for each prompt.
        more: Arguments that the protocol sets itself, {name: value}.
        new_tokens: The number of new tokens where neither the request nor the model names a limit.

    Raises:
        RequestError: They do not go together.
    """
    guided = guided_arguments(body.response_format)
    if guided and body.guided_json is not None:
        raise bad_request("response_format and guided_json are both given", "response_format", "invalid_value")
    given = {**arguments_of(body), **guided, **more}
    given.pop("num_return_sequences", None)
    drawing = [name for name in given if (needs := ARGUMENTS[name].needs) and "do_sample" in needs.any_of]
    if given.get("temperature") == 0:
        if count > 1:
            raise bad_request(
                f"temperature 0 takes the most likely tokens, so that all of {count} texts would be the same: ask for "
                "one",
                "n",
                "invalid_value",
            )
        given = {name: value for name, value in given.items() if name not in drawing}
        given["do_sample"] = False
    elif drawing or count > 1:
        given["do_sample"] = True
    if given.get("top_k") == -1:
        given["top_k"] = 0
    if body.ignore_eos:
        given["eos_token_id"] = []
    if count > 1:
        given["num_return_sequences"] = count
    return served_arguments(given, _DEFAULTS, new_tokens, serving, "response_format" if guided else None)


def refuse_streamed_prompt_logprobs(body: OpenAIBody) -> None:
    """Raises ServerError where a stream is to hold prompt_logprobs, for which its chunks have no place."""
    if body.streams and body.prompt_logprobs is not None:
        raise bad_request("prompt_logprobs cannot be streamed", "prompt_logprobs", "invalid_value")


def finish_reason(generation: Generation) -> str:
    """Why a text ended, as OpenAI calls it."""
    return "length" if generation.finish_reason == "time" else str(generation.finish_reason)


def truncation(body: OpenAIBody, serving: Serving) -> int | None:
    """The number of a prompt's last tokens that are kept; None keeps all. -1 stands for the model's context."""
    if body.truncate_prompt_tokens == -1:
        return serving.config.n_ctx
    return None if body.truncate_prompt_tokens is None else int(body.truncate_prompt_tokens)


def usage(prompt_tokens: int, new_tokens: int) -> dict[str, int]:
    """The numbers of tokens, as OpenAI writes them."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": new_tokens,
        "total_tokens": prompt_tokens + new_tokens,
    }
