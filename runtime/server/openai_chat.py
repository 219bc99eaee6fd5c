"""OpenAI's /v1/chat/completions, for models with a chat template."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import Response

from ..argument_kinds import Whole
from .answering import answer
from .errors import bad_request
from .fields import Argument, Checked, Ignored, NotServed
from .messages_field import Messages
from .openai_answer import OpenAIAnswer
from .openai_fields import (
    OpenAIBody,
    check_body,
    check_logprobs,
    finish_reason,
    generate_arguments,
    refuse_streamed_prompt_logprobs,
    truncation,
    usage,
)
from .openai_logprobs import chat_logprobs, prompt_logprobs
from .serving import Served, Serving
from .streaming import STREAMED

if TYPE_CHECKING:
    from ..engine.generation import Generation
    from ..engine.request import Request
    from .call import Update

router = APIRouter(prefix="/v1", tags=["OpenAI"])

_MOST_LOGPROBS = 20  # as in OpenAI's API
_TOOLS = "the model calls no tools"


class ChatBody(OpenAIBody):
    """A request of /v1/chat/completions. A field that is null or missing has its default."""

    messages: Annotated[Any, Messages()]
    max_completion_tokens: Annotated[
        Any,
        Argument("max_new_tokens", meaning="Stop after this number of new tokens; by default the context's end stops."),
    ] = None
    max_tokens: Annotated[Any, Checked(Whole(least=1), "The older name of max_completion_tokens.")] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[
        Any, Checked(Whole(least=0), "Return this number of most likely tokens at each place; it needs logprobs.")
    ] = None
    # vLLM's names
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    # They change no text.
    parallel_tool_calls: Annotated[Any, Ignored()] = None
    # They would change the text.
    tools: Annotated[Any, NotServed(_TOOLS, ([],))] = None
    tool_choice: Annotated[Any, NotServed(_TOOLS, ("none", "auto"))] = None
    functions: Annotated[Any, NotServed(_TOOLS, ([],))] = None
    function_call: Annotated[Any, NotServed(_TOOLS, ("none", "auto"))] = None
    modalities: Annotated[Any, NotServed("the model writes text alone", (["text"],))] = None
    audio: Annotated[Any, NotServed("the model writes text alone")] = None
    reasoning_effort: Annotated[Any, NotServed("the model does not reason apart from its text", ("none",))] = None
    chat_template: Annotated[Any, NotServed("the server's own template is used")] = None
    chat_template_kwargs: Annotated[Any, NotServed("the server's own template is used as it is", ({},))] = None


@router.post("/chat/completions", summary="Answer a chat", responses=STREAMED)
async def chat_completions(body: ChatBody, serving: Served, http: HttpRequest) -> Response:
    """Answers a chat, as OpenAI's API does."""
    return await answer(lambda: _Chat(body, serving), serving, http, body.messages, body.streams)


class _Chat(OpenAIAnswer):
    """One request of /v1/chat/completions: its Requests, and its answer, whole or as events."""

    def __init__(self, body: ChatBody, serving: Serving) -> None:
        kind = "chat.completion.chunk" if body.streams else "chat.completion"
        super().__init__(serving, kind, f"chatcmpl-{uuid.uuid4().hex}", body.include_usage)
        check_body(body, serving)
        check_logprobs(body.top_logprobs, "top_logprobs", _MOST_LOGPROBS, serving)
        check_logprobs(body.prompt_logprobs, "prompt_logprobs", _MOST_LOGPROBS, serving)
        if body.top_logprobs is not None and not body.logprobs:
            raise bad_request("top_logprobs needs logprobs: true", "top_logprobs", "invalid_value")
        refuse_streamed_prompt_logprobs(body)
        self._body = body
        if None not in (body.max_tokens, body.max_completion_tokens):
            raise bad_request("max_tokens is the older name of max_completion_tokens: give one", "max_tokens")
        more = {} if body.max_tokens is None else {"max_new_tokens": body.max_tokens}
        found = serving.requests(
            chat_prompt(body, serving),
            generate_arguments(body, serving, body.count, more, serving.config.n_ctx),
            truncation(body, serving),
            prompt_field="messages",
            limit_field="max_completion_tokens" if body.max_tokens is None else "max_tokens",
        )
        count = (body.top_logprobs or 0) if body.logprobs else None
        self.requests: list[Request] = [dataclasses.replace(request, logprobs=count) for request in found]

    def whole(self, generations: list[Generation]) -> dict[str, Any]:
        """The answer that does not stream."""
        choices = [self._whole_choice(index, generation) for index, generation in enumerate(generations)]
        answer = {**self.head(), "choices": choices, "usage": self.usage(generations)}
        if self._body.prompt_logprobs is not None:  # vLLM's place of it
            answer["prompt_logprobs"] = prompt_logprobs(self._serving, generations[0], self._body.prompt_logprobs)
        return answer

    def _whole_choice(self, index: int, generation: Generation) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": generation.text, "refusal": None},
            "logprobs": self._logprobs(generation, 0, len(generation.tokens)),
            "finish_reason": finish_reason(generation),
        }

    def choice(self, update: Update, generation: Generation, begin: int, is_first: bool) -> dict[str, Any] | None:
        """See OpenAIAnswer."""
        delta = {"role": "assistant"} if is_first else {}
        if update.text or is_first:
            delta["content"] = update.text
        logprobs = self._logprobs(generation, begin, update.tokens) if update.tokens > begin else None
        if not (delta or logprobs or update.ended):
            return None
        reason = finish_reason(generation) if update.ended else None
        return {"index": update.index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def usage(self, generations: Sequence[Generation]) -> dict[str, int]:
        """See OpenAIAnswer."""
        return usage(len(self.requests[0].prompt), sum(len(generation.tokens) for generation in generations))

    def _logprobs(self, generation: Generation, begin: int, end: int) -> dict[str, Any] | None:
        if not self._body.logprobs:
            return None
        return chat_logprobs(self._serving, generation, begin, end, self._body.top_logprobs or 0)


def chat_prompt(body: ChatBody, serving: Serving) -> list[int]:
    """The token ids of a chat.

    Raises:
        ServerError: There is no chat template.
        RequestError: The template refuses the messages.
    """
    template = serving.options.chat_template
    if template is None and serving.tokenizer.chat_template is None:
        raise bad_request(
            "the model has no chat template: use /v1/completions, or give the server one with --chat-template FILE",
            "messages",
            "no_chat_template",
        )
    continues = bool(body.continue_final_message)
    begins = not continues if body.add_generation_prompt is None else body.add_generation_prompt
    return serving.tokenizer.apply_chat_template(
        body.messages,
        chat_template=template,
        add_generation_prompt=begins,
        continue_final_message=continues,
        return_dict=False,
    )
