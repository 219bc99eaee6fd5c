"""What the cards' hosted services do: texts as those of transformers' pipeline, with its arguments and its defaults."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import Request as HttpRequest

from neo_tf.errors import RequestError

from ...argument_kinds import is_well_formed
from ...argument_table import ARGUMENTS, OLD_NAMES
from ...call_arguments import CallArguments
from ...pipeline import SAMPLING_DEFAULTS
from ..fields import foreign_id
from ..logprob_values import MOST_LOGPROBS, check_logprobs, finite

if TYPE_CHECKING:
    from ...arguments import GenerateArguments
    from ...engine.generation import Generation
    from ...engine.request import Request
    from ..serving import Serving


@dataclass(frozen=True)
class HostedTexts:
    """Prompts and their arguments, checked. Make it with `of`, in a thread.

    Args:
        serving: The model.
        prompts: The texts.
        options: What holds for all of them.
        requests: What is run: the same number for each prompt, in their order.
    """

    serving: Serving
    prompts: Sequence[str]
    options: GenerateArguments
    requests: Sequence[Request]

    @classmethod
    def of(cls, prompts: Sequence[Any], given: Any, serving: Serving) -> HostedTexts:
        """Checks prompts and arguments that a client sent.

        Args:
            prompts: What should be texts.
            given: What should be {name: value}, in transformers' names or in those of the services.
            serving: The model.

        Raises:
            ServerError, RequestError: They cannot be served.
        """
        if not prompts:
            raise RequestError("there is no prompt")
        for prompt in prompts:
            if not isinstance(prompt, str):
                raise RequestError(f"a prompt must be a text, not {type(prompt).__name__}")
            _check_texts(prompt, "a prompt")
        options = _options(given, serving)
        serving.admission.check(len(prompts) * options.slots_of_each)  # before that many requests are made
        requests = [
            request
            for prompt in prompts
            for request in serving.requests(prompt, options, None, "prompt", "max_new_tokens")
        ]
        return cls(serving, prompts, options, requests)

    async def run(self, http: HttpRequest) -> list[Any]:
        """Continues the texts for a client, which ends them where it disconnects; returns the results.

        Raises:
            ClientGoneError, ServerError: See Call.results.
        """
        self.serving.log_prompt(http, self.prompts)
        call = self.serving.start(self.requests)
        async with call.watched(http.receive):
            generations = await call.results()
        return await asyncio.to_thread(self.results, generations)

    def results(self, generations: Sequence[Generation]) -> list[Any]:
        """Results as the cards show them.

        Returns:
            For one prompt a list of {"generated_text": …}, for several prompts a list of such lists.
        """
        each = self.options.requests_of_each
        found = []
        for number, prompt in enumerate(self.prompts):
            own = generations[number * each : (number + 1) * each]
            results = [
                result
                for generation in own
                for result in self.serving.pipeline.results(prompt, generation, self.options)
            ]
            found.append([_as_json(result) for result in results])
        return found[0] if len(self.prompts) == 1 else found

    @property
    def new_tokens(self) -> int:
        """The number of new tokens that all sequences may have together."""
        return sum(request.max_new_tokens or 1 for request in self.requests)


def _options(given: Any, serving: Serving) -> GenerateArguments:
    """The arguments, over the model's settings and the defaults of transformers' pipeline."""
    if not isinstance(given, Mapping):
        raise RequestError(f"the options must be a dict of arguments, not {type(given).__name__}")
    for name in given:
        if not isinstance(name, str):
            raise RequestError(f"the options' names must be texts, not {type(name).__name__}")
        _check_texts(given[name], ascii(name))
    config = given.get("generation_config")
    for values in (given, config if isinstance(config, Mapping) else {}):
        _check_values(values, serving)
    options = CallArguments.of({}, given).parse(serving.pipeline.settings, SAMPLING_DEFAULTS)
    check_logprobs(options.logprobs, "logprobs", MOST_LOGPROBS, serving)
    check_logprobs(options.prompt_logprobs, "prompt_logprobs", MOST_LOGPROBS, serving)
    if options.sampling.guide:
        serving.tokenizer.grammar(options.sampling.guide)
    return options


def _check_texts(value: Any, what: str) -> None:
    """Raises RequestError where a value holds a text that UTF-8 cannot write: JSON and pickles can say one."""
    if isinstance(value, str) and not is_well_formed(value):
        raise RequestError(f"{what} holds a text that UTF-8 cannot write")
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        for each in value:
            _check_texts(each, what)


def _check_values(values: Mapping[Any, Any], serving: Serving) -> None:
    """Raises RequestError for what a call from Python alone can say, and for ids outside the vocabulary."""
    for name, value in values.items():
        row = ARGUMENTS.get(OLD_NAMES.get(name, (name,))[0])
        if row is None or value is None:
            continue
        if not row.in_json and value not in (row.default, []):
            raise RequestError(f"{name} is for calls from Python: a request cannot say it")
        normal = row.kind.normal(value)
        row.kind.check(name, normal)
        if wrong := foreign_id(name, row.name, normal, serving.config.n_vocab):
            raise RequestError(wrong)


def _as_json(value: Any) -> Any:
    """A result in numbers that JSON can hold: a log-probability may be minus infinity."""
    if isinstance(value, float):
        return finite(value)
    if isinstance(value, dict):
        return {key: _as_json(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_as_json(each) for each in value]
    return value
