"""The Hugging Face-shaped front: pipeline("text-generation", model=…), as the model cards call it."""

import difflib
import operator

from neo_tf.errors import RequestError
from runtime.engine import Engine, Request
from runtime.models import resolve_model
from runtime.sampling import SamplingOptions
from runtime.session import Session
from runtime.tokenizer import TOKENIZER_FILE, Tokenizer

DEFAULT_NEW_TOKENS = 256  # as transformers' pipeline; fewer where the context ends
DEFAULT_TOP_K = 50  # of sampling, as in transformers
TASK = "text-generation"


def pipeline(
    task=TASK,
    model=None,
    *,
    tokenizer=None,
    revision=None,
    moe_policy=None,
    device=None,
    batch_size=8,
    threads=None,
    precision=None,
):
    """A text generator.

    Args:
        task: "text-generation".
        model: an ONNX folder, a checkpoint in any format (exported into the cache once), or a hub id.
        tokenizer: a tokenizer.json or a folder that holds one; otherwise the model's own.
        revision: of a hub id.
        moe_policy: see neo_tf.open_checkpoint.
        device: None (what the model was exported for), "cpu", "cuda", "cuda:N", or transformers' -1, 0, 1, ...
        batch_size: sequences that are decoded together.
        threads: CPU threads; ONNX Runtime's choice where None.
        precision: one of an ONNX folder's; its first where None.

    Returns:
        A TextGenerationPipeline.

    Raises:
        RequestError: another task, or no model.
        NeoTFError: see runtime.models.resolve_model and runtime.session.Session.

    Example:
        >>> generator = pipeline("text-generation", model="EleutherAI/gpt-neo-125M")
        >>> generator("EleutherAI has", do_sample=True, min_length=50)
        [{'generated_text': 'EleutherAI has ...'}]
    """
    if task != TASK:
        raise RequestError(f"unknown task {task!r} (known: {TASK})")
    if model is None:
        raise RequestError("no model given: name a folder or a hub id")
    if batch_size < 1:
        raise RequestError(f"batch_size must be at least 1, not {batch_size}")
    folder = resolve_model(model, tokenizer, revision, moe_policy=moe_policy)
    return TextGenerationPipeline(folder, tokenizer, device, batch_size, threads, precision)


class TextGenerationPipeline:
    """Continues texts; see pipeline. Call it with a prompt or a list of them."""

    task = TASK

    def __init__(self, folder, tokenizer=None, device=None, batch_size=8, threads=None, precision=None):
        self.session = Session(folder, slots=batch_size, device=device, threads=threads, precision=precision)
        self.config = self.session.config
        self.engine = Engine(self.session)
        where = tokenizer or folder
        self.tokenizer = Tokenizer(where) if tokenizer or (folder / TOKENIZER_FILE).is_file() else None

    def __call__(self, text_inputs, **arguments):
        """Continues one prompt, or several together.

        Args:
            text_inputs: a text, token ids (a list of int), or a list of either.
            max_new_tokens, max_length: limit of the new tokens, or of prompt and new tokens; 256 new ones by default.
            min_new_tokens, min_length: end-of-text is not chosen before.
            do_sample, temperature, top_k, top_p, seed: see SamplingOptions; top_k is 50 by default. Of several
                prompts each draws with the seed on its own.
            eos_token_id: id, or ids, that end the text; the model's own by default.
            num_return_sequences: continuations of each prompt; with a seed, they use seed, seed + 1, ...
            return_full_text: whether generated_text begins with the prompt; it does by default.
            return_tensors: returns generated_token_ids in place of generated_text.
            streamer: called as streamer(text) with each piece of new text; for one prompt.

        Returns:
            [{"generated_text": str}, ...], or a list of those for a list of prompts.

        Raises:
            RequestError: a prompt or an argument that cannot be served.
        """
        many = _is_many(text_inputs)
        prompts = [self._encode(prompt) for prompt in (text_inputs if many else [text_inputs])]
        options = GenerateArguments.parse(arguments)
        if self.tokenizer is None and (options.streamer or not options.return_tensors):
            raise RequestError("the model has no tokenizer to write text with: ask for return_tensors=True alone")
        if options.streamer and (len(prompts) > 1 or options.num_return_sequences > 1):
            raise RequestError("streamer takes one prompt and one sequence")
        requests = [
            self._request(prompt, options, number)
            for prompt in prompts
            for number in range(options.num_return_sequences)
        ]
        if options.streamer:
            stream = self.tokenizer.stream(prompts[0])
            requests[0].on_token = lambda token: options.streamer(stream(token))
        self.engine.generate(requests)
        if options.streamer:
            options.streamer(stream.finish())
        count = options.num_return_sequences
        texts = [text for text in (text_inputs if many else [text_inputs]) for _ in range(count)]
        results = [self._result(text, request, options) for text, request in zip(texts, requests, strict=True)]
        groups = [results[start : start + count] for start in range(0, len(results), count)]
        return groups if many else groups[0]

    def _encode(self, prompt):
        if not isinstance(prompt, str):
            try:
                return [operator.index(token) for token in prompt]
            except TypeError:
                raise RequestError("a prompt must be a text or a flat list of token ids") from None
        if self.tokenizer is None:
            raise RequestError("the model has no tokenizer: name one with tokenizer=, or prompt with token ids")
        return self.tokenizer.encode(prompt)

    def _request(self, prompt, options, number):
        config, used = self.config, len(prompt)
        limit = options.max_new_tokens
        if limit is None and options.max_length is not None:
            limit = options.max_length - used
            if limit < 1:
                raise RequestError(f"max_length {options.max_length} leaves no room after a prompt of {used} tokens")
        elif limit is None:
            limit = max(1, min(DEFAULT_NEW_TOKENS, config.n_ctx - used))
        least = max(options.min_new_tokens, options.min_length - used)
        if limit < 1:
            raise RequestError(f"max_new_tokens must be at least 1, not {limit}")
        if least > limit:
            raise RequestError(f"at least {least} new tokens are asked for, but at most {limit} allowed")
        stop = options.eos_token_id
        if stop is None:
            stop = () if config.eos_token_id is None else (config.eos_token_id,)
        return Request(
            prompt,
            max_new_tokens=limit,
            min_new_tokens=max(0, least),
            stop_token_ids=tuple(stop) if isinstance(stop, list | tuple) else (stop,),
            sampling=options.sampling(number),
        )

    def _result(self, text, request, options):
        tokens = request.tokens
        if options.return_tensors:
            return {"generated_token_ids": [*request.prompt, *tokens] if options.return_full_text else list(tokens)}
        whole, prompt = self.tokenizer.decode([*request.prompt, *tokens]), self.tokenizer.decode(request.prompt)
        new = whole[len(prompt) :]
        if options.return_full_text:
            # A text comes back as it was given, special tokens and all, as in transformers.
            return {"generated_text": text + new if isinstance(text, str) else whole}
        return {"generated_text": new}


_WHOLE_NUMBERS = ("max_new_tokens", "max_length", "min_new_tokens", "min_length", "top_k", "seed")
_WHOLE_NUMBERS += ("num_return_sequences",)


class GenerateArguments:
    """The arguments of a call, with their defaults; unknown ones are refused by name."""

    DEFAULTS = {  # noqa: RUF012  (never changed)
        "max_new_tokens": None,
        "max_length": None,
        "min_new_tokens": 0,
        "min_length": 0,
        "do_sample": False,
        "temperature": 1.0,
        "top_k": DEFAULT_TOP_K,
        "top_p": 1.0,
        "seed": None,
        "eos_token_id": None,
        "num_return_sequences": 1,
        "return_full_text": True,
        "return_tensors": False,
        "streamer": None,
    }

    def __init__(self, values):
        self.__dict__ |= self.DEFAULTS | values

    @classmethod
    def parse(cls, values):
        """Checks names, and the values that Request does not; None means the default."""
        for name in values:
            if name not in cls.DEFAULTS:
                near = difflib.get_close_matches(name, cls.DEFAULTS, 1)
                hint = f"; did you mean {near[0]!r}?" if near else f" (known: {', '.join(cls.DEFAULTS)})"
                raise RequestError(f"unknown argument {name!r}{hint}")
        options = cls({name: value for name, value in values.items() if value is not None})
        for name in _WHOLE_NUMBERS:
            value = getattr(options, name)
            if value is not None and (isinstance(value, bool) or not hasattr(value, "__index__")):
                raise RequestError(f"{name} must be a whole number, not {value!r}")
        if options.max_new_tokens is not None and options.max_length is not None:
            raise RequestError("max_new_tokens and max_length are both given: one limit is enough")
        if options.num_return_sequences < 1:
            raise RequestError(f"num_return_sequences must be at least 1, not {options.num_return_sequences}")
        options.sampling(0)
        return options

    def sampling(self, number):
        """The SamplingOptions of a prompt's sequence of that number."""
        seed = None if self.seed is None else self.seed + number
        return SamplingOptions(self.do_sample, self.temperature, self.top_k or 0, self.top_p, seed)


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
