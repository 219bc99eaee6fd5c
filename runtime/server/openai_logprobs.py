"""Log-probabilities in the forms of OpenAI's completions, of its chats, and of vLLM's prompt_logprobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..engine.generation import Generation
    from ..engine.request import Request
    from .serving import Serving


class CompletionLogprobs:
    """Writes `logprobs` of one sequence of a completion, piece by piece.

    Args:
        serving: The model.
        request: The sequence's request.
        count: The number of most likely tokens at each place. The token itself is always among them.
        offset: The number of characters before the new text, in the text that is returned.
    """

    def __init__(self, serving: Serving, request: Request, count: int, offset: int) -> None:
        self._texts = serving.texts
        self._tokenizer = serving.tokenizer
        self._prompt = list(request.prompt)
        self._count = count
        self._offset = offset
        assert request.tokenizer is not None
        self._stream = request.tokenizer.stream(request.prompt)

    def of_prompt(self, generation: Generation) -> dict[str, list[Any]]:
        """The prompt's tokens. Nothing is known of the first one."""
        stream = self._tokenizer.stream([], skip_special_tokens=False)
        offsets = []
        offset = 0
        for token in self._prompt:
            offsets.append(offset)
            offset += len(stream(token))
        found = self._form(
            self._prompt[1:], generation.prompt_token_logprobs, generation.prompt_top_logprobs, offsets[1:]
        )
        first: dict[str, list[Any]] = {
            "tokens": [self._texts.text(self._prompt[0])],
            "token_logprobs": [None],
            "top_logprobs": [None],
            "text_offset": [0],
        }
        return joined(first, found)

    def of_new(self, generation: Generation, begin: int, end: int) -> dict[str, list[Any]]:
        """The new tokens from one number up to another; call it in their order."""
        tokens = generation.tokens[begin:end]
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(self._stream(token))
        return self._form(tokens, generation.token_logprobs[begin:end], generation.top_logprobs[begin:end], offsets)

    def _form(
        self,
        tokens: Sequence[int],
        logprobs: Sequence[float],
        tops: Sequence[Mapping[int, float]],
        offsets: list[int],
    ) -> dict[str, list[Any]]:
        texts = [self._texts.text(token) for token in tokens]
        alternatives = []
        for text, logprob, top in zip(texts, logprobs, tops, strict=True):
            found: dict[str, float] = {}
            for token, value in list(top.items())[: self._count]:
                found.setdefault(self._texts.text(token), finite(value))
            found.setdefault(text, finite(logprob))
            alternatives.append(found)
        return {
            "tokens": texts,
            "token_logprobs": [finite(value) for value in logprobs],
            "top_logprobs": alternatives,
            "text_offset": offsets,
        }


def joined(first: Mapping[str, list[Any]], second: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Two parts of `logprobs`, one after the other."""
    return {name: [*first[name], *second[name]] for name in first}


def chat_logprobs(serving: Serving, generation: Generation, begin: int, end: int, count: int) -> dict[str, Any]:
    """`logprobs` of a chat's new tokens from one number up to another, each with `count` most likely ones."""
    content = []
    for place in range(begin, end):
        token = generation.tokens[place]
        top = list(generation.top_logprobs[place].items())[:count]
        entry = _chat_token(serving, token, generation.token_logprobs[place])
        content.append({**entry, "top_logprobs": [_chat_token(serving, one, value) for one, value in top]})
    return {"content": content, "refusal": None}


def _chat_token(serving: Serving, token: int, logprob: float) -> dict[str, Any]:
    return {
        "token": serving.texts.text(token),
        "logprob": finite(logprob),
        "bytes": list(serving.texts.bytes(token)),
    }


def prompt_logprobs(serving: Serving, generation: Generation, count: int) -> list[dict[str, Any] | None]:
    """vLLM's prompt_logprobs: for each token of the prompt {token id: logprob, rank, text}; None for the first one.

    The rank of a token that is not among the `count` most likely ones is not known: it is null.
    """
    found: list[dict[str, Any] | None] = [None]
    places = zip(
        generation.request.prompt[1:], generation.prompt_token_logprobs, generation.prompt_top_logprobs, strict=True
    )
    for token, logprob, top in places:
        entries: dict[str, Any] = {}
        for rank, (one, value) in enumerate(list(top.items())[:count], start=1):
            entries[str(one)] = _prompt_token(serving, one, value, rank)
        entries.setdefault(str(token), _prompt_token(serving, token, logprob, None))
        found.append(entries)
    return found


def _prompt_token(serving: Serving, token: int, logprob: float, rank: int | None) -> dict[str, Any]:
    return {"logprob": finite(logprob), "rank": rank, "decoded_token": serving.texts.text(token)}


def finite(logprob: float) -> float:
    """A log-probability that JSON can hold. As in OpenAI's API, -9999 stands for what is too small."""
    return max(logprob, -9999.0)
