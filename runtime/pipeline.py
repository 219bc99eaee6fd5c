"""The Hugging Face-shaped front: pipeline("text-generation", model=…), as the model cards call it."""

import itertools
import operator

import numpy as np

from neo_tf.errors import RequestError
from neo_tf.file_names import TOKENIZER_FILE

from .arguments import GenerateArguments
from .device.session import Session
from .engine.engine import Engine
from .tokenizer import Tokenizer

TASK = "text-generation"


class TextGenerationPipeline:
    """Continues texts; see pipeline. Call it with a prompt or a list of them."""

    task = TASK

    def __init__(self, folder, tokenizer=None, device=None, batch_size=8, threads=None, precision=None, **memory):
        self.session = Session(folder, slots=batch_size, device=device, threads=threads, precision=precision)
        self.config = self.session.config
        self.engine = Engine(self.session, **memory)
        where = tokenizer or folder
        self.tokenizer = Tokenizer(where) if tokenizer or (folder / TOKENIZER_FILE).is_file() else None

    def __call__(self, text_inputs, **arguments):
        """Continues one prompt, or several together.

        Args:
            text_inputs: a text, token ids (a list of int), or a list of either.
            arguments: transformers' own, and some more: see GenerateArguments.

        Returns:
            [{"generated_text": str}, ...], or a list of those for a list of prompts.

        Raises:
            RequestError: a prompt or an argument that cannot be served.
        """
        many = _is_many(text_inputs)
        texts = list(text_inputs) if many else [text_inputs]
        options = GenerateArguments.parse(arguments)
        if options.streamer and (len(texts) > 1 or options.num_return_sequences > 1):
            raise RequestError("streamer takes one prompt and one sequence")
        count = options.requests_of_each
        requests = [request for text in texts for request in self.requests(text, options)]
        if options.streamer:
            end = _stream(requests[0], options.streamer)
        self.engine.generate(requests)
        if options.streamer:
            end()
        texts = [text for text in texts for _ in range(count)]
        results = [
            [self.result(text, request.prompt, found, options) for found in request.hypotheses or [request]]
            for text, request in zip(texts, requests, strict=True)
        ]
        groups = [[*itertools.chain(*results[start : start + count])] for start in range(0, len(results), count)]
        return groups if many else groups[0]

    def requests(self, text, options):
        """The Requests that continue one prompt: one for each sequence, or one with beams.

        Args:
            text: a text, or token ids.
            options: a GenerateArguments.

        Raises:
            RequestError: it cannot be served.
        """
        if self.tokenizer is None and (options.needs_text or not options.return_tensors):
            raise RequestError("the model has no tokenizer to write text with: ask for return_tensors=True alone")
        prompt, count = self._encode(text, options), options.requests_of_each
        return [options.request(prompt, number, self.config, self.tokenizer) for number in range(count)]

    def _encode(self, prompt, options):
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

    def result(self, text, prompt, found, options):
        """What came of a prompt: generated_text or generated_token_ids, and what else was asked for.

        Args:
            text: the prompt, as it was given.
            prompt: its token ids.
            found: the Request, or one of its hypotheses.
            options: a GenerateArguments.
        """
        if options.return_tensors:
            ids = [*prompt, *found.tokens] if options.return_full_text else list(found.tokens)
            result = {"generated_token_ids": ids}
        elif options.return_full_text:
            # A text comes back as it was given, special tokens and all, as in transformers.
            before = text if isinstance(text, str) else self.tokenizer.stream(prompt).before
            result = {"generated_text": before + found.text}
        else:
            result = {"generated_text": found.text}
        for name, attribute in options.kept.items():
            value = getattr(found, attribute)
            result[name] = np.array(value) if name in ("scores", "logits") else value
        return result


def _stream(request, streamer):
    """Lets a request call a streamer, a function of text or one of transformers' kind; returns what to call at last."""
    if not hasattr(streamer, "put"):
        request.on_text = streamer
        return lambda: None
    streamer.put(np.array([request.prompt]))
    request.on_token = lambda token: streamer.put(np.array([token]))
    return streamer.end


def _is_many(text_inputs):
    """Whether it is a list of prompts, rather than one prompt as text or as ids."""
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
