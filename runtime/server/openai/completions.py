"""OpenAI's /v1/models and /v1/completions."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import Response

from ...argument_kinds import Flag, Whole
from ..answering import answer
from ..errors import bad_request
from ..fields import Argument, Checked, NotServed
from ..logprob_values import MOST_LOGPROBS, check_logprobs
from ..serving import Served, Serving
from ..streaming import STREAMED
from .answer import OpenAIAnswer
from .body import (
    OpenAIBody,
    check_body,
    finish_reason,
    generate_arguments,
    refuse_streamed_prompt_logprobs,
    truncation,
    usage,
)
from .logprobs import CompletionLogprobs, joined, prompt_logprobs
from .prompt_field import Prompts

if TYPE_CHECKING:
    from ...engine.generation import Generation
    from ...engine.request import Request
    from ..call import Update

router = APIRouter(prefix="/v1", tags=["OpenAI"])

_NEW_TOKENS = 16  # as in OpenAI's API


class CompletionBody(OpenAIBody):
    """A request of /v1/completions. A field that is null or missing has its default."""

    prompt: Annotated[Any, Prompts()] = None
    max_tokens: Annotated[
        Any, Argument("max_new_tokens", (0,), f"Stop after this number of new tokens; by default {_NEW_TOKENS}.")
    ] = None
    logprobs: Annotated[Any, Argument("logprobs")] = None
    echo: Annotated[Any, Checked(Flag(), "Return the prompt before the new text.")] = None
    best_of: Annotated[
        Any,
        Checked(Whole(least=1), "Draw this number of texts, and return the n whose tokens are the likeliest."),
    ] = None
    add_special_tokens: Annotated[Any, Argument("add_special_tokens")] = None
    suffix: Annotated[Any, NotServed("the model writes what follows a text, and cannot fill a gap")] = None


@router.get("/models", summary="The models that are served")
async def models(serving: Served) -> dict[str, Any]:
    """Lists the model under all of its names."""
    return {"object": "list", "data": [_model(serving, name) for name in serving.options.names]}


@router.get("/models/{name:path}", summary="One model")
async def model(name: str, serving: Served) -> dict[str, Any]:
    """Describes the model."""
    serving.check_name(name)
    return _model(serving, name)


def _model(serving: Serving, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": serving.created,
        "owned_by": "neo-tf",
        "root": serving.name,
        "parent": None,
        "max_model_len": serving.config.n_ctx,
    }


@router.post("/completions", summary="Continue texts", responses=STREAMED)
async def completions(body: CompletionBody, serving: Served, http: HttpRequest) -> Response:
    """Continues one prompt or several, as OpenAI's API does."""
    return await answer(lambda: _Completion(body, serving), serving, http, body.prompt, body.streams)


class _Completion(OpenAIAnswer):
    """One request of /v1/completions: its Requests, and its answer, whole or as events."""

    def __init__(self, body: CompletionBody, serving: Serving) -> None:
        super().__init__(serving, "text_completion", f"cmpl-{uuid.uuid4().hex}", body.include_usage)
        check_body(body, serving)
        check_logprobs(body.logprobs, "logprobs", MOST_LOGPROBS, serving)
        check_logprobs(body.prompt_logprobs, "prompt_logprobs", MOST_LOGPROBS, serving)
        self._body = body
        self._count = body.count
        self._drawn = body.count if body.best_of is None else int(body.best_of)
        if self._drawn < self._count:
            raise bad_request(f"best_of must be at least n, which is {self._count}", "best_of", "invalid_value")
        if body.streams and self._drawn > self._count:
            raise bad_request("best_of cannot be streamed: which text is best is known in the end", "best_of")
        refuse_streamed_prompt_logprobs(body)
        self._scores = body.max_tokens == 0  # the prompt alone: the engine's one token is not returned
        more = {"max_new_tokens": 1} if self._scores else {}
        options = generate_arguments(body, serving, self._drawn, more, _NEW_TOKENS)
        self._prompts = body.prompt or [""]  # without one, as if a document began
        serving.admission.check(len(self._prompts) * self._drawn)
        self.requests: list[Request] = []
        for prompt in self._prompts:
            self.requests += map(self._keeping, serving.requests(prompt, options, truncation(body, serving)))
        self._logprobs = [self._logprobs_of(index) for index in range(len(self.requests))]

    def _keeping(self, request: Request) -> Request:
        """The request that keeps the log-probabilities which the answer needs."""
        body = self._body
        of_prompt = [body.prompt_logprobs, body.logprobs if body.echo else None]
        kept = [count for count in of_prompt if count is not None]
        logprobs = body.logprobs
        if logprobs is None and self._drawn > self._count:
            logprobs = 0
        return dataclasses.replace(request, logprobs=logprobs, prompt_logprobs=max(kept, default=None))

    def _logprobs_of(self, index: int) -> CompletionLogprobs | None:
        if self._body.logprobs is None:
            return None
        offset = len(self._echoed(index))
        return CompletionLogprobs(self._serving, self.requests[index], self._body.logprobs, offset)

    def _echoed(self, index: int) -> str:
        """The prompt as it comes before a sequence's new text: as it was given, where it is a text."""
        if not self._body.echo:
            return ""
        prompt = self._prompts[index // self._drawn]
        ids = self.requests[index].prompt
        if isinstance(prompt, str) and self._body.truncate_prompt_tokens is None:
            return prompt
        return self._serving.tokenizer.stream(ids, skip_special_tokens=False).before

    # ---- the whole answer

    def whole(self, generations: list[Generation]) -> dict[str, Any]:
        """The answer that does not stream."""
        choices: list[dict[str, Any]] = []
        for begin in range(0, len(generations), self._drawn):
            indices = list(range(begin, begin + self._drawn))
            if self._drawn > self._count:  # stable: of equal ones the first
                indices.sort(key=lambda index: -generations[index].mean_logprob)
            for index in indices[: self._count]:
                choices.append(self._choice(len(choices), index, generations[index]))
        return {**self.head(), "choices": choices, "usage": self.usage(generations)}

    def _choice(self, number: int, index: int, generation: Generation) -> dict[str, Any]:
        text = self._echoed(index)
        logprobs = self._part_of_prompt(index, generation)
        if not self._scores:
            text += generation.text
            new = self._part(index, generation, 0, len(generation.tokens))
            logprobs = joined(logprobs, new) if logprobs and new else logprobs or new
        choice = {
            "index": number,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": self._finish_reason(generation),
        }
        if self._body.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs(self._serving, generation, self._body.prompt_logprobs)
        return choice

    # ---- the answer as a stream

    def choice(self, update: Update, generation: Generation, begin: int, is_first: bool) -> dict[str, Any] | None:
        """See OpenAIAnswer."""
        index = update.index
        text = self._echoed(index) if is_first else ""
        logprobs = self._part_of_prompt(index, generation) if is_first else None
        if not self._scores:
            text += update.text
            new = self._part(index, generation, begin, update.tokens) if update.tokens > begin else None
            logprobs = joined(logprobs, new) if logprobs and new else logprobs or new
        if not (text or logprobs or update.ended):
            return None
        reason = self._finish_reason(generation) if update.ended else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    # ---- parts of both

    def _part_of_prompt(self, index: int, generation: Generation) -> dict[str, Any] | None:
        writer = self._logprobs[index]
        return writer.of_prompt(generation) if writer and self._body.echo else None

    def _part(self, index: int, generation: Generation, begin: int, end: int) -> dict[str, Any] | None:
        writer = self._logprobs[index]
        return writer.of_new(generation, begin, end) if writer else None

    def _finish_reason(self, generation: Generation) -> str:
        return "length" if self._scores else finish_reason(generation)

    def usage(self, generations: Sequence[Generation]) -> dict[str, int]:
        """See OpenAIAnswer."""
        prompts = sum(len(request.prompt) for request in self.requests[:: self._drawn])
        new = 0 if self._scores else sum(len(generation.tokens) for generation in generations)
        return usage(prompts, new)
