"""Batch jobs: many prompts through one engine, a result for each, few of them in memory at once."""

import time
from dataclasses import dataclass, field
from typing import Any

from neo_tf.errors import EngineError, NeoTFError, RequestError, one_line
from neo_tf.progress import Progress, no_progress

from ..argument_table import ARGUMENTS
from ..arguments import GenerateArguments
from ..engine.generation import Generation
from ..pipeline import Prompt, TextGenerationPipeline
from .prompts import JobLines, Line
from .results import JobResults

# Where results are wanted in order, a line is begun at most this many windows of requests beyond the oldest one.
_WINDOWS_AHEAD = 8


@dataclass
class _Open:
    """A line whose requests run."""

    line: Line
    prompt: Prompt
    options: GenerateArguments
    result: dict[str, Any]
    generations: list[Generation] = field(default_factory=list)


class Job:
    """Runs the prompts of a file. Each gets the text that it would get alone.

    Args:
        generator: What continues the prompts.
        arguments: The generation arguments of all prompts, without a seed. A line of JSON may override them.
        seed: The seed of the first prompt's sampling. Each next sequence has the next seed.
        results: Where the results go.
        skip_errors: Writes a result {"index", "error"} for a prompt that cannot be served, and goes on.
        progress: Told after each step of the prompts that are done since the last one; what it is told beside is the
            number of new tokens so far and the speed.

    Example:
        >>> with open("prompts.jsonl", "rb") as file:
        ...     Job(generator, {"max_new_tokens": 50}, 0, JobStream()).run(Lines(file, "prompts.jsonl", json=True))
    """

    def __init__(
        self,
        generator: TextGenerationPipeline,
        arguments: dict[str, Any],
        seed: int,
        results: JobResults,
        skip_errors: bool = False,
        progress: Progress = no_progress,
    ) -> None:
        self._generator = generator
        self._engine = generator.engine
        self._arguments = arguments
        self._seed = seed
        self._results = results
        self._skip_errors = skip_errors
        self._progress = progress
        self._window = 2 * generator.session.slots  # requests: as many wait as run, so that no slot is idle
        self._open: dict[int, _Open] = {}  # by the line's index
        self._of_generation: dict[int, _Open] = {}  # by the Generation's id
        self._failure: NeoTFError | None = None
        self._done = 0  # lines
        self._reported = 0  # lines
        self._tokens = 0  # of Generations that have ended

    def run(self, lines: JobLines) -> None:
        """Runs lines to their end. Where a line cannot be served, the lines before it are finished first.

        Raises:
            NeoTFError: A line cannot be served, and where it stands; or the results cannot be written.
        """
        self._started = time.perf_counter()
        try:
            count = self._run(lines)
        except BaseException:
            for one in self._open.values():
                for generation in one.generations:
                    self._engine.cancel(generation)
            raise
        if self._failure:
            raise self._failure
        self._results.finish(count)

    def _run(self, lines: JobLines) -> int:
        """Returns how many lines there were."""
        count = 0
        more = True
        while more or self._open:
            while more and self._has_room(count) and not (self._open and lines.waits):
                line = next(lines, None)
                if line is None:
                    more = False
                    break
                count += 1
                if not self._results.holds(line):
                    self._start(line)
                more = self._failure is None
            if self._open:
                self._step()
                more = more and self._failure is None
        return count

    def _has_room(self, count: int) -> bool:
        if self._results.ordered and self._open and count - min(self._open) >= _WINDOWS_AHEAD * self._window:
            return False
        return len(self._of_generation) < self._window

    def _start(self, line: Line) -> None:
        """Submits a line's requests."""
        result: dict[str, Any] = {"index": line.index}
        try:
            values = line.read()
            if "id" in values:
                result["id"] = values.pop("id")
            if "prompt" not in values:
                raise RequestError(f'has no "prompt", only {", ".join(map(repr, values)) or "nothing"}')
            one = _Open(line, values.pop("prompt"), self._options(line, values), result)
            requests = self._generator.requests(one.prompt, one.options)
            for request in requests:
                self._engine.check(request)
        except RequestError as error:
            self._done += 1
            self._fail(line, result, error)
            return
        self._open[line.index] = one
        for request in requests:
            generation = self._engine.submit(request)
            one.generations.append(generation)
            self._of_generation[id(generation)] = one

    def _options(self, line: Line, values: dict[str, Any]) -> GenerateArguments:
        for name in values:
            if name in ARGUMENTS and not ARGUMENTS[name].in_json:
                raise RequestError(f"{name} is for calls from Python: JSON cannot say it")
        options = self._generator.checked(values, self._arguments)
        return options.with_seed(self._seed + line.index * options.num_return_sequences)

    def _step(self) -> None:
        self._engine.step()
        for generation in self._engine.ended:
            one = self._of_generation.pop(id(generation), None)
            if one is None:  # of an earlier job, which was interrupted
                continue
            self._tokens += len(generation.tokens)
            if all(each.finish_reason for each in one.generations):
                del self._open[one.line.index]
                self._end(one)
        self._report()

    def _report(self) -> None:
        tokens = self._tokens
        for one in self._open.values():
            # A line's Generations that have ended are counted already.
            tokens += sum(len(each.tokens) for each in one.generations if not each.finish_reason)
        speed = tokens / (time.perf_counter() - self._started)
        self._progress(self._done - self._reported, f"{tokens} tokens, {speed:.0f} tokens/s")
        self._reported = self._done

    def _end(self, one: _Open) -> None:
        """Writes what came of a line."""
        self._done += 1
        for generation in one.generations:
            if generation.error:
                self._fail(one.line, one.result, generation.error)
                return
        sequences = [sequence for generation in one.generations for sequence in self._sequences(one, generation)]
        one.result["prompt_tokens"] = len(one.generations[0].request.prompt)
        self._results.add(one.line, one.result | (sequences[0] if len(sequences) == 1 else {"sequences": sequences}))

    def _sequences(self, one: _Open, generation: Generation) -> list[dict[str, Any]]:
        """Each sequence's part of a result: its text or ids first, then how it ended."""
        sampling = generation.request.sampling
        seed = {"seed": sampling.seed} if sampling.do_sample else {}
        sequences = []
        results = self._generator.results(one.prompt, generation, one.options)
        for result, found in zip(results, generation.continuations, strict=True):
            end = {"new_tokens": len(found.tokens), "finish_reason": found.finish_reason}
            sequences.append(result | end | seed)
        return sequences

    def _fail(self, line: Line, result: dict[str, Any], error: Exception) -> None:
        message = f"{line.where}: {one_line(error)}"
        if self._skip_errors:
            self._results.add(line, result | {"error": message})
        elif self._failure is None:
            kind = type(error) if isinstance(error, NeoTFError) else EngineError
            self._failure = kind(message)
