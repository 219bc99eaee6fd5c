"""A text generator over an ONNX folder, called as transformers' text-generation pipeline is."""

import dataclasses
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neo_tf.errors import RequestError
from neo_tf.file_names import TOKENIZER_FILE

from .arguments import GenerateArguments
from .device.session import Session
from .engine.engine import Engine
from .engine.generation import Continuation, Generation
from .engine.request import Request
from .tokenizer import Tokenizer, TokenizerLike

TASK = "text-generation"
Prompt = str | Sequence[int]  # a text, or its token ids


class TextGenerationPipeline:
    """Continues texts. Call it with a prompt or a list of prompts.

    Args:
        folder: An ONNX folder that export_onnx wrote.
        tokenizer: A tokenizer.json, or a folder that holds one; the ONNX folder's own where None.
        device: See Session.
        batch_size: The number of sequences that are decoded together.
        threads: See Session.
        precision: See Session.
        cache_bytes, prefix_cache_bytes: See Engine.

    Raises:
        NeoTFError: See Session, Engine and Tokenizer.
    """

    task = TASK

    def __init__(
        self,
        folder: Path | str,
        tokenizer: Path | str | None = None,
        device: str | int | None = None,
        batch_size: int = 8,
        threads: int | None = None,
        precision: str | None = None,
        *,
        cache_bytes: int | None = None,
        prefix_cache_bytes: int | None = None,
    ) -> None:
        self.session = Session(folder, slots=batch_size, device=device, threads=threads, precision=precision)
        self.config = self.session.config
        self.engine = Engine(self.session, cache_bytes, prefix_cache_bytes)
        self.tokenizer: TokenizerLike | None = None
        if tokenizer or (Path(folder) / TOKENIZER_FILE).is_file():
            self.tokenizer = Tokenizer(tokenizer or folder)

    def __call__(
        self, text_inputs: Prompt | Sequence[Prompt], **arguments: Any
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """Continues one prompt, or several together.

        Args:
            text_inputs: A text, token ids (a list of int), or a list of either.
            arguments: transformers' own, and some more; docs/generation.md lists them.

        Returns:
            For one prompt [{"generated_text": str}, ...] with one dict for each sequence; for a list of prompts a list
            of such lists.

        Raises:
            RequestError: A prompt or an argument that cannot be served.
        """
        many = _is_many(text_inputs)
        texts: list[Any] = list(text_inputs) if many else [text_inputs]
        options = GenerateArguments.parse(arguments)
        if options.streamer and (len(texts) > 1 or options.num_return_sequences > 1):
            raise RequestError("streamer takes one prompt and one sequence")
        requests = [self.requests(text, options) for text in texts]
        if options.streamer:
            requests = [[_streaming(requests[0][0], options.streamer)]]
        generations = iter(self.engine.generate([request for own in requests for request in own]))
        if hasattr(options.streamer, "put"):
            options.streamer.end()
        results = [
            [result for _ in own for result in self.results(text, next(generations), options)]
            for text, own in zip(texts, requests, strict=True)
        ]
        return results if many else results[0]

    def requests(self, text: Prompt, options: GenerateArguments) -> list[Request]:
        """The Requests that continue one prompt: one for each sequence, or one with beams.

        Args:
            text: A text, or token ids.
            options: The arguments of the call.

        Raises:
            RequestError: It cannot be served.
        """
        if self.tokenizer is None and (options.needs_text or not options.return_tensors):
            raise RequestError("the model has no tokenizer to write text with: ask for return_tensors=True alone")
        prompt = self._encode(text, options)
        count = options.requests_of_each
        return [options.request(prompt, number, self.config, self.tokenizer) for number in range(count)]

    def _encode(self, prompt: Prompt, options: GenerateArguments) -> list[int]:
        if not isinstance(prompt, str):
            if options.prefix:
                raise RequestError("prefix is a text: it goes before prompts that are texts, not token ids")
            try:
                ids = [operator.index(token) for token in prompt]
            except TypeError:
                raise RequestError("a prompt must be a text or a flat list of token ids") from None
        elif self.tokenizer is None:
            raise RequestError("the model has no tokenizer: name one with tokenizer=, or prompt with token ids")
        else:
            ids = self.tokenizer.encode((options.prefix or "") + prompt)
        return options.fit(ids, self.config.n_ctx)

    def results(self, text: Prompt, generation: Generation, options: GenerateArguments) -> list[dict[str, Any]]:
        """What came of a prompt's request: one result, or with beams one for each sequence that is returned.

        Args:
            text: The prompt, as it was given.
            generation: What came of its request.
            options: The arguments of the call.

        Returns:
            Dicts with "generated_text" or "generated_token_ids", and what else the arguments ask for.
        """
        prompt = generation.request.prompt
        return [self._result(text, prompt, found, options) for found in generation.continuations]

    def _result(
        self, text: Prompt, prompt: Sequence[int], found: Continuation, options: GenerateArguments
    ) -> dict[str, Any]:
        result: dict[str, Any] = {}
        if options.return_tensors:
            result["generated_token_ids"] = [*prompt, *found.tokens] if options.return_full_text else found.tokens[:]
        else:
            before = self._text_before(text, prompt) if options.return_full_text else ""
            result["generated_text"] = before + found.text
        for name, attribute in options.kept.items():
            value = getattr(found, attribute)
            result[name] = np.array(value) if name in ("scores", "logits") else value
        return result

    def _text_before(self, text: Prompt, prompt: Sequence[int]) -> str:
        """A prompt's text: as it was given, special tokens and all, like in transformers."""
        if isinstance(text, str):
            return text
        assert self.tokenizer is not None  # see requests
        return self.tokenizer.stream(prompt).before


def _streaming(request: Request, streamer: Any) -> Request:
    """The request that calls a streamer: a function of text, or an object with transformers' put and end."""
    if not hasattr(streamer, "put"):
        return dataclasses.replace(request, on_text=streamer)
    streamer.put(np.array([request.prompt]))
    return dataclasses.replace(request, on_token=lambda token: streamer.put(np.array([token])))


def _is_many(text_inputs: Any) -> bool:
    """Whether the input is a list of prompts, rather than one prompt as text or as ids."""
    if isinstance(text_inputs, str):
        return False
    if not isinstance(text_inputs, list | tuple) and not hasattr(text_inputs, "tolist"):
        raise RequestError(f"a prompt must be a text or a list of token ids, not {type(text_inputs).__name__}")
    if len(text_inputs) == 0:
        raise RequestError("the prompt is empty: it needs at least one token")
    many = [isinstance(prompt, str | list | tuple) or getattr(prompt, "ndim", 0) > 0 for prompt in text_inputs]
    if any(many) and not all(many):
        raise RequestError("prompts and single token ids are mixed: a list holds one prompt's ids, or prompts")
    return all(many)
