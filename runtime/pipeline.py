"""A text generator over an ONNX folder, called as transformers' text-generation pipeline is."""

import dataclasses
import functools
import itertools
import operator
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from neo_tf.errors import RequestError
from neo_tf.file_names import TOKENIZER_FILE

from .arguments import GenerateArguments
from .call_arguments import CallArguments
from .device.session import Session
from .engine.engine import Engine
from .engine.generation import Continuation, Generation
from .engine.request import Request
from .generation_config import ModelSettings, read_generation_config
from .tokenizer import Tokenizer

TASK = "text-generation"
Message = Mapping[str, Any]  # of a chat: {"role": ..., "content": ...}
Prompt = str | Sequence[int] | Sequence[Message]  # a text, its token ids, or a chat
# What transformers' pipeline does where neither the call nor the model says anything.
SAMPLING_DEFAULTS: Mapping[str, Any] = {"do_sample": True, "temperature": 0.7}


class TextGenerationPipeline:
    """Continues texts. Call it with a prompt or a list of prompts, from any number of threads at once.

    Args:
        folder: An ONNX folder that export_onnx wrote.
        tokenizer: A folder that holds one, a tokenizer.json, or a Tokenizer; the ONNX folder's own where None.
        device: See Session.
        batch_size: The number of sequences that are decoded together.
        threads: See Session.
        precision: See Session.
        cache_bytes, prefix_cache_bytes: See Engine.
        arguments: Arguments of generation that hold for each call; the call's own come before them.
        defaults: What holds where neither a call nor the model's generation_config.json says anything.

    Attributes:
        settings: What the model says of generation.

    Raises:
        NeoTFError: See Session, Engine, Tokenizer and read_generation_config.
    """

    task = TASK

    def __init__(
        self,
        folder: Path | str,
        tokenizer: Path | str | Tokenizer | None = None,
        device: str | int | None = None,
        batch_size: int = 8,
        threads: int | None = None,
        precision: str | None = None,
        *,
        cache_bytes: int | None = None,
        prefix_cache_bytes: int | None = None,
        arguments: Mapping[str, Any] | None = None,
        defaults: Mapping[str, Any] = SAMPLING_DEFAULTS,
    ) -> None:
        self.session = Session(folder, slots=batch_size, device=device, threads=threads, precision=precision)
        self.config = self.session.config
        self.device = self.session.device
        self.engine = Engine(self.session, cache_bytes, prefix_cache_bytes)
        self.settings: ModelSettings = read_generation_config(folder, self.config)
        self._arguments = dict(arguments or {})
        self._defaults = defaults
        self.tokenizer: Tokenizer | None = None
        if isinstance(tokenizer, Tokenizer):
            self.tokenizer = tokenizer
        elif tokenizer or (Path(folder) / TOKENIZER_FILE).is_file():
            self.tokenizer = Tokenizer(tokenizer or folder)

    def __call__(self, text_inputs: Any, **arguments: Any) -> Any:
        """Continues one prompt, or several together.

        Args:
            text_inputs: A text, token ids (a list of int), a chat (a list of messages with role and content), or a list
                of either. What is gone through once, such as a generator, is answered prompt by prompt.
            arguments: transformers' own, and some more; docs/generation.md lists them.

        Returns:
            For one prompt [{"generated_text": str}, ...] with one dict for each sequence; for a list of prompts a list
            of such lists. For a chat generated_text is the chat with the answer.

        Raises:
            RequestError: A prompt or an argument that cannot be served.
        """
        if isinstance(text_inputs, Iterator) or _is_dataset(text_inputs):
            return self._one_by_one(text_inputs, arguments)
        many = _is_many(text_inputs)
        texts: list[Any] = list(text_inputs) if many else [text_inputs]
        options = self.arguments(arguments)
        if options.streamer and (len(texts) > 1 or options.num_return_sequences > 1):
            raise RequestError("streamer takes one prompt and one sequence")
        requests = [self.requests(text, self._seeded(options)) for text in texts]
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

    def _one_by_one(self, texts: Any, arguments: Mapping[str, Any]) -> Iterator[Any]:
        """The results of prompts that come one by one; batch_size of them are taken together."""
        size = arguments.get("batch_size") or 1
        source = iter(texts) if hasattr(texts, "__iter__") else (texts[number] for number in range(len(texts)))
        while taken := list(itertools.islice(source, size)):
            yield from self(taken, **arguments) if size > 1 else [self(taken[0], **arguments)]

    def arguments(self, given: Mapping[str, Any]) -> GenerateArguments:
        """A call's arguments, over those of the pipeline, the model's settings, and the defaults.

        Args:
            given: {name: value}, as transformers' pipeline takes them: None means that nothing is to be done.

        Raises:
            RequestError: See GenerateArguments.parse.
        """
        return CallArguments.of(self._arguments, given).parse(self.settings, self._defaults)

    def checked(self, given: Mapping[str, Any], *under: Mapping[str, Any]) -> GenerateArguments:
        """Arguments over the model's settings, as the command and jobs take them: what has no effect is refused.

        Args:
            given: {name: value}. None stands for the default.
            under: See GenerateArguments.parse.

        Raises:
            RequestError: See GenerateArguments.parse.
        """
        return GenerateArguments.parse(given, *under, settings=self.settings)

    @staticmethod
    def _seeded(options: GenerateArguments) -> GenerateArguments:
        """The arguments with a seed, where tokens are drawn: of Python's own generator, which set_seed sets."""
        return options.with_seed(random.getrandbits(63)) if options.sampling.do_sample else options

    @functools.cached_property
    def model(self) -> SimpleNamespace:
        """What scripts read of transformers' model: its config, generation_config and device."""
        generation = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None} | dict(self.settings.declared)
        return SimpleNamespace(
            config=SimpleNamespace(**self.config.to_onnx()),
            generation_config=SimpleNamespace(**generation),
            device=self.device,
        )

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
        ids = self._encode(text, options)
        if not ids and isinstance(text, str):  # like in transformers, an empty text begins with this token
            if options.bos_token_id is None:
                raise RequestError("the prompt is empty, and the model has no bos_token_id to begin with")
            ids = [operator.index(options.bos_token_id)]
        most = min(self.config.n_ctx, self.tokenizer.model_max_length) if self.tokenizer else self.config.n_ctx
        prompt = options.fit(ids, most)
        prefix = self._prefix(text, options)
        uncounted = len(self.tokenizer.encode(prefix, add_special_tokens=False)) if prefix and self.tokenizer else 0
        count = options.requests_of_each
        return [options.request(prompt, number, self.config, self.tokenizer, uncounted) for number in range(count)]

    def _prefix(self, prompt: Prompt, options: GenerateArguments) -> str:
        """The text that goes before a prompt: the call's, or that of the model's config.json."""
        if not isinstance(prompt, str):
            return ""
        own = self.config.huggingface_keys.get("prefix")
        return options.prefix if options.prefix is not None else own if isinstance(own, str) else ""

    def _encode(self, prompt: Prompt, options: GenerateArguments) -> list[int]:
        if _is_chat(prompt):
            return self._encode_chat(prompt, options)
        if not isinstance(prompt, str):
            if options.prefix:
                raise RequestError("prefix is a text: it goes before prompts that are texts, not token ids")
            try:
                return [operator.index(token) for token in prompt]  # type: ignore[arg-type]  # what is no id is refused
            except TypeError:
                raise RequestError("a prompt must be a text or a flat list of token ids") from None
        if self.tokenizer is None:
            raise RequestError("the model has no tokenizer: name one with tokenizer=, or prompt with token ids")
        text = self._prefix(prompt, options) + prompt
        how = options.encoding(self.tokenizer.model_max_length)
        unknown = how.keys() - {"add_special_tokens", "truncation", "max_length"}
        if unknown:
            raise RequestError(f"tokenizer_encode_kwargs: {', '.join(sorted(unknown))} is not served for texts")
        return self.tokenizer.encode(text, **how)

    def _encode_chat(self, messages: Any, options: GenerateArguments) -> list[int]:
        if self.tokenizer is None:
            raise RequestError("the model has no tokenizer: name one with tokenizer=, or prompt with token ids")
        if self.tokenizer.has_response_template:
            raise RequestError("the tokenizer's response_template, which would take answers apart, is not served")
        continues = _continues(messages, options)
        return self.tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=not continues,
            continue_final_message=continues,
            return_dict=False,
            **options.chat_encoding(self.tokenizer.model_max_length),
        )

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
            result["generated_text"] = self._text(text, prompt, found, options)
        for name, attribute in options.kept.items():
            value = getattr(found, attribute)
            result[name] = np.array(value) if name in ("scores", "logits") else value
        return result

    def _text(self, text: Prompt, prompt: Sequence[int], found: Continuation, options: GenerateArguments) -> Any:
        """The text of a result, or for a chat the messages."""
        assert self.tokenizer is not None  # see requests
        new = found.text
        if found.tokens and len(prompt) == 1 and isinstance(text, str) and not self._encode(text, options):
            # The token that was put at the beginning of an empty prompt shows, too.
            new = self.tokenizer.decode(
                [*prompt, *found.tokens],
                skip_special_tokens=options.skip_special_tokens,
                clean_up_tokenization_spaces=options.clean_up_tokenization_spaces,
            )
        if not options.return_full_text:
            return new
        if isinstance(text, str):  # as it was given, special tokens and all, like in transformers
            return text + new
        if not _is_chat(text):
            return self.tokenizer.stream(prompt, skip_special_tokens=options.skip_special_tokens).before + new
        messages = [dict(message) for message in cast("Sequence[Mapping[str, Any]]", text)]
        if not _continues(messages, options):
            return [*messages, {"role": "assistant", "content": new}]
        last = {**messages[-1], "content": messages[-1]["content"] + new}
        return [*messages[:-1], last]


def _streaming(request: Request, streamer: Any) -> Request:
    """The request that calls a streamer: a function of text, or an object with transformers' put and end."""
    if not hasattr(streamer, "put"):
        return dataclasses.replace(request, on_text=streamer)
    streamer.put(np.array([request.prompt]))
    return dataclasses.replace(request, on_token=lambda token: streamer.put(np.array([token])))


def _continues(messages: Any, options: GenerateArguments) -> bool:
    """Whether a chat's last message is continued, and not answered."""
    if options.continue_final_message is None:
        return messages[-1]["role"] == "assistant"
    return options.continue_final_message


def _is_chat(prompt: Any) -> bool:
    """Whether a prompt is a list of messages."""
    return (
        isinstance(prompt, list | tuple)
        and len(prompt) > 0
        and all(isinstance(message, Mapping) and {"role", "content"} <= message.keys() for message in prompt)
    )


def _is_dataset(text_inputs: Any) -> bool:
    """Whether prompts are gone through one by one, as those of a dataset of torch's or datasets' are."""
    if isinstance(text_inputs, str | bytes | list | tuple | Mapping) or hasattr(text_inputs, "tolist"):
        return False
    return hasattr(text_inputs, "__getitem__") or hasattr(text_inputs, "__iter__")


def _is_many(text_inputs: Any) -> bool:
    """Whether the input is a list of prompts, rather than one prompt as text, as ids or as a chat."""
    if isinstance(text_inputs, str) or _is_chat(text_inputs):
        return False
    if not isinstance(text_inputs, list | tuple) and not hasattr(text_inputs, "tolist"):
        raise RequestError(f"a prompt must be a text or a list of token ids, not {type(text_inputs).__name__}")
    if len(text_inputs) == 0:
        raise RequestError("the prompt is empty: it needs at least one token")
    many = [isinstance(prompt, str | list | tuple) or getattr(prompt, "ndim", 0) > 0 for prompt in text_inputs]
    if any(many) and not all(many):
        raise RequestError("prompts and single token ids are mixed: a list holds one prompt's ids, or prompts")
    return all(many)
