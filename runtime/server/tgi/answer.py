"""Answers in Text Generation Inference's form, whole or as a stream with an event for each token."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ...engine.generation import FinishReason
from ...engine.stopping import text_stream
from ..errors import ServerError
from ..logprob_values import MOST_LOGPROBS, check_logprobs, finite
from ..streaming import event_json
from .body import GenerateParameters, generate_arguments
from .errors import tgi_form

if TYPE_CHECKING:
    from ...engine.generation import Generation
    from ...engine.request import Request
    from ..call import Update
    from ..serving import Serving
    from .body import GenerateBody


class TgiAnswer:
    """Writes one answer; an Answer.

    Args:
        body: The request.
        serving: The model.
        streams: Whether the answer is a stream.
        in_list: Whether the whole answer is the only entry of a list.

    Attributes:
        requests: What is run for it: best_of sequences.

    Raises:
        ServerError, RequestError: It cannot be served.
    """

    def __init__(self, body: GenerateBody, serving: Serving, streams: bool, in_list: bool) -> None:
        asked = body.parameters or GenerateParameters()
        self._asked = asked
        self._serving = serving
        self._in_list = in_list
        self._with_details = bool(asked.decoder_input_details or asked.details)
        if asked.details is None and body.parameters is not None:
            self._with_details = True
        self._top = int(asked.top_n_tokens or 0)
        check_logprobs(self._top, "top_n_tokens", MOST_LOGPROBS, serving)
        options = generate_arguments(asked, serving, streams)
        self._seed = options.sampling.seed if options.sampling.do_sample else None
        keeps = streams or self._with_details or options.num_return_sequences > 1
        truncate = None if asked.truncate is None else int(asked.truncate)
        self.requests = [
            dataclasses.replace(
                request,
                logprobs=self._top if keeps else None,
                prompt_logprobs=0 if asked.decoder_input_details else None,
            )
            for request in serving.requests(body.inputs, options, truncate, "inputs", "max_new_tokens")
        ]
        self._before = body.inputs if asked.return_full_text else ""
        self._tokens = _Tokens(serving, self.requests[0], self._top)  # of a stream, which has one sequence
        self._is_closed = False

    # ---- the whole answer

    def whole(self, generations: list[Generation]) -> Any:
        """See Answer."""
        best, *others = sorted(range(len(generations)), key=lambda index: -generations[index].mean_logprob)
        found: dict[str, Any] = {"generated_text": self._before + generations[best].text}
        if self._with_details:
            found["details"] = self._details(best, generations[best])
            if others:
                found["details"]["best_of_sequences"] = [
                    {
                        "generated_text": self._before + generations[index].text,
                        **self._details(index, generations[index]),
                    }
                    for index in others
                ]
        return [found] if self._in_list else found

    def _details(self, index: int, generation: Generation) -> dict[str, Any]:
        tokens = _Tokens(self._serving, self.requests[index], self._top)
        details = {
            **self._end_of(index, generation),
            "prefill": self._prefill(generation) if self._asked.decoder_input_details else [],
            "tokens": [tokens.next(generation) for _ in generation.tokens],
        }
        if self._top:
            details["top_tokens"] = [tokens.top(generation, place) for place in range(len(generation.tokens))]
        return details

    def _end_of(self, index: int, generation: Generation) -> dict[str, Any]:
        return {
            "finish_reason": _finish_reason(generation),
            "generated_tokens": len(generation.tokens),
            "seed": None if self._seed is None else self._seed + index,
        }

    def _prefill(self, generation: Generation) -> list[dict[str, Any]]:
        prompt = generation.request.prompt
        stream = self._serving.tokenizer.stream([], skip_special_tokens=False)
        logprobs = [None, *map(finite, generation.prompt_token_logprobs)]  # nothing is known of the first token
        return [
            {"id": token, "text": stream(token), "logprob": logprob}
            for token, logprob in zip(prompt, logprobs, strict=True)
        ]

    # ---- the answer as a stream

    def begin(self) -> Iterator[str]:
        """See EventWriter."""
        yield from ()

    def write(self, update: Update, generation: Generation) -> Iterator[str]:
        """See EventWriter."""
        while self._tokens.written < update.tokens and self._tokens.written < len(generation.tokens):
            place = self._tokens.written
            # It is set before the last token's text comes, so that the last event can say why the text ended.
            is_last = generation.finish_reason in _ENDS and place == len(generation.tokens) - 1
            yield self._event(self._tokens.next(generation), generation, place, is_last)
        if update.ended and not self._is_closed:
            # No token came with the end: none was possible, or a filter has put its own text in place of all.
            token = {"id": -1, "text": generation.text if not generation.tokens else "", "logprob": 0, "special": False}
            yield self._event(token, generation, self._tokens.written, is_last=True)

    def end(self, generations: Sequence[Generation]) -> Iterator[str]:
        """See EventWriter."""
        yield from ()

    def fail(self, error: ServerError) -> Iterator[str]:
        """See EventWriter."""
        yield event_json(tgi_form(error))

    def _event(self, token: dict[str, Any], generation: Generation, place: int, is_last: bool) -> str:
        self._is_closed |= is_last
        event = {"index": place + 1, "token": token}
        if self._top and token["id"] >= 0:
            event["top_tokens"] = self._tokens.top(generation, place)
        details = None
        if is_last:
            details = {**self._end_of(0, generation), "input_length": len(generation.request.prompt)}
        event["generated_text"] = self._before + generation.text if is_last else None
        event["details"] = details
        return event_json(event)


_ENDS = (FinishReason.STOP, FinishReason.LENGTH, FinishReason.TIME, FinishReason.WITHHELD)


class _Tokens:
    """Writes the new tokens of a sequence. Their texts together are the text: a special token's is empty.

    Args:
        serving: The model.
        request: The sequence's request.
        top: The number of most likely tokens at each place.

    Attributes:
        written: The number of tokens that were written.
    """

    def __init__(self, serving: Serving, request: Request, top: int) -> None:
        self._texts = serving.texts
        self._special = frozenset(serving.tokenizer.all_special_ids)
        self._stream = text_stream(request)
        self._top = top
        self.written = 0

    def next(self, generation: Generation) -> dict[str, Any]:
        """The next token of a generation."""
        place = self.written
        self.written += 1
        token = generation.tokens[place]
        text = self._stream(token)
        if generation.finish_reason in _ENDS and self.written == len(generation.tokens):
            text += self._stream.finish()
        return self._form(token, text, generation.token_logprobs[place])

    def top(self, generation: Generation, place: int) -> list[dict[str, Any]]:
        """The most likely tokens at a place, the likeliest first."""
        found = list(generation.top_logprobs[place].items())[: self._top]
        return [self._form(token, self._texts.text(token), logprob) for token, logprob in found]

    def _form(self, token: int, text: str, logprob: float) -> dict[str, Any]:
        return {"id": token, "text": text, "logprob": finite(logprob), "special": token in self._special}


def _finish_reason(generation: Generation) -> str:
    """Why a text ended, as Text Generation Inference calls it."""
    reason = generation.finish_reason
    request = generation.request
    if reason in (FinishReason.LENGTH, FinishReason.TIME):
        return "length"
    if reason == FinishReason.STOP:
        is_stop_token = bool(generation.tokens) and generation.tokens[-1] in request.stop_token_ids
        return "eos_token" if is_stop_token or not request.stop_strings else "stop_sequence"
    return str(reason)
