"""A line of a job while it runs: its requests, and the result that comes of them. Wherever it runs, it is the same."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from neo_tf.errors import RequestError

from ..argument_table import ARGUMENTS
from ..arguments import GenerateArguments
from ..engine.generation import Generation
from ..engine.request import Request
from ..pipeline import Prompt, TextGenerationPipeline
from .prompts import Line


@dataclass(frozen=True)
class Outcome:
    """What has come of a line.

    Args:
        line: The line.
        result: Its result as JSON; {"index"} and its id alone where there is an error.
        tokens: The number of new tokens.
        error: Why it could not be served.
    """

    line: Line
    result: dict[str, Any]
    tokens: int = 0
    error: Exception | None = None


@dataclass
class OpenLine:
    """A line whose requests run.

    Args:
        line: The line.
        prompt: Its prompt.
        options: Its arguments, over those of the job.
        head: {"index"}, and the id that the line may have.
        requests: What is asked of the engine for it.
        generations: What comes of these, in their order; whoever runs them puts it here.
    """

    line: Line
    prompt: Prompt
    options: GenerateArguments
    head: dict[str, Any]
    requests: list[Request]
    generations: list[Generation] = field(default_factory=list)

    @classmethod
    def read(
        cls,
        line: Line,
        generator: TextGenerationPipeline,
        arguments: dict[str, Any],
        seed: int,
        check: Callable[[Request], None],
    ) -> "OpenLine | Outcome":
        """Reads a line, and checks its requests.

        Args:
            line: The line.
            generator: What continues its prompt.
            arguments: The generation arguments of all lines, without a seed. A line of JSON may override them.
            seed: The seed of the first line's sampling. Each next sequence has the next seed.
            check: Raises RequestError where the engine cannot serve a request.

        Returns:
            The line, or the Outcome of a line that cannot be served.
        """
        head: dict[str, Any] = {"index": line.index}
        try:
            values = line.read()
            head = head_of(line, values)
            values.pop("id", None)
            if "prompt" not in values:
                raise RequestError(f'has no "prompt", only {", ".join(map(repr, values)) or "nothing"}')
            prompt = values.pop("prompt")
            for name in values:
                if name in ARGUMENTS and not ARGUMENTS[name].in_json:
                    raise RequestError(f"{name} is for calls from Python: JSON cannot say it")
            options = generator.checked(values, arguments)
            options = options.with_seed(seed + line.index * options.num_return_sequences)
            requests = generator.requests(prompt, options)
            for request in requests:
                check(request)
        except RequestError as error:
            return Outcome(line, head, error=error)
        return cls(line, prompt, options, head, requests)

    @property
    def tokens(self) -> int:
        """The number of new tokens so far."""
        return sum(len(generation.tokens) for generation in self.generations)

    def outcome(self, generator: TextGenerationPipeline) -> Outcome:
        """What has come of the line, when all its generations have ended."""
        for generation in self.generations:
            if generation.error:
                return Outcome(self.line, self.head, self.tokens, generation.error)
        sequences = [part for generation in self.generations for part in self._sequences(generator, generation)]
        result = self.head | {"prompt_tokens": len(self.requests[0].prompt)}
        result |= sequences[0] if len(sequences) == 1 else {"sequences": sequences}
        return Outcome(self.line, result, self.tokens)

    def _sequences(self, generator: TextGenerationPipeline, generation: Generation) -> list[dict[str, Any]]:
        """Each sequence's part of a result: its text or ids first, then how it ended."""
        sampling = generation.request.sampling
        seed = {"seed": sampling.seed} if sampling.do_sample else {}
        sequences = []
        results = generator.results(self.prompt, generation, self.options)
        for result, found in zip(results, generation.continuations, strict=True):
            end = {"new_tokens": len(found.tokens), "finish_reason": found.finish_reason}
            sequences.append(result | end | seed)
        return sequences


def head_of(line: Line, values: dict[str, Any]) -> dict[str, Any]:
    """The beginning of a line's result: its index, and the id that it may have among the values that it says."""
    return {"index": line.index} | ({"id": values["id"]} if "id" in values else {})


def settings_of(generator: TextGenerationPipeline) -> dict[str, Any]:
    """What decides a text beside the model and the arguments, as a job's first line notes it."""
    session = generator.session
    return {
        "device": session.device,
        "in_pairs": session.in_pairs,  # quantised texts of a batch size of 1 may be others
        "precision": session.precision,
    }
