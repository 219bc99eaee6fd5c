"""Batch jobs: many prompts through one engine, a result for each, few of them in memory at once."""

from dataclasses import dataclass, field

from neo_tf.errors import EngineError, NeoTFError, RequestError, one_line

from ..argument_table import ARGUMENTS
from ..arguments import GenerateArguments

_AHEAD = 8  # windows: so far may be read beyond the oldest line that runs, where results wait for it


@dataclass
class _Open:
    """A line whose requests run."""

    line: object
    prompt: object
    options: GenerateArguments
    result: dict
    requests: list = field(default_factory=list)


class Job:
    """Runs the prompts of a file, each as it would run alone.

    Args:
        generator: a TextGenerationPipeline.
        arguments: of all prompts: see GenerateArguments, without a seed. A line of JSON may override them.
        seed: of the first prompt's sampling; each sequence has the next one.
        results: a JobFile or JobStream.
        skip_errors: writes a result {"index", "error"} for a prompt that cannot be served, and goes on.
        progress: called as progress(count, tokens) after each step with what is done by then.

    Example:
        >>> with open("prompts.jsonl", "rb") as file:
        ...     Job(generator, {"max_new_tokens": 50}, 0, JobStream()).run(Lines(file, "prompts.jsonl", json=True))
    """

    def __init__(self, generator, arguments, seed, results, skip_errors=False, progress=None):
        self._generator, self._engine = generator, generator.engine
        self._arguments, self._seed, self._results = arguments, seed, results
        self._skip_errors, self._progress = skip_errors, progress
        self._window = 2 * generator.session.slots  # requests: as many wait as run, so that no slot is idle
        self._open, self._of_request = {}, {}  # {index: _Open}, {id of a request: its _Open}
        self._failure = None
        self._ended = self._tokens = 0

    def run(self, lines):
        """Runs Lines to their end.

        Where a line cannot be served, those before it are finished first.

        Raises:
            NeoTFError: a line that cannot be served, with where it stands; or the results cannot be written.
        """
        try:
            count = self._run(lines)
        except BaseException:
            for request in [request for one in self._open.values() for request in one.requests]:
                self._engine.cancel(request)
            raise
        if self._failure:
            raise self._failure
        self._results.finish(count)

    def _run(self, lines):
        """How many lines there were."""
        count, more = 0, True
        while more or self._open:
            while more and self._has_room(count) and not (self._open and lines.waits):
                line = next(lines, None)
                more = line is not None
                if more and not self._results.holds(line):
                    self._start(line)
                count += more
                more = more and not self._failure
            if self._open:
                self._step()
                more = more and not self._failure
        return count

    def _has_room(self, count):
        if self._results.ordered and self._open and count - min(self._open) >= _AHEAD * self._window:
            return False
        return len(self._of_request) < self._window

    def _start(self, line):
        """Submits a line's requests."""
        result = {"index": line.index}
        try:
            values = line.read()
            result |= {"id": values.pop("id")} if "id" in values else {}
            if "prompt" not in values:
                raise RequestError(f'has no "prompt", only {", ".join(map(repr, values)) or "nothing"}')
            one = _Open(line, values.pop("prompt"), self._options(line, values), result)
            one.requests = self._generator.requests(one.prompt, one.options)
            for request in one.requests:
                self._engine.check(request)
        except RequestError as error:
            self._ended += 1
            self._fail(line, result, error)
            return
        self._open[line.index] = one
        for request in one.requests:
            self._of_request[id(request)] = one
            self._engine.submit(request)

    def _options(self, line, values):
        for name in values:
            if name in ARGUMENTS and not ARGUMENTS[name].in_json:
                raise RequestError(f"{name} is for calls from Python: JSON cannot say it")
        options = GenerateArguments.parse(values, self._arguments)
        return options.with_seed(self._seed + line.index * options.num_return_sequences)

    def _step(self):
        self._engine.step()
        for request in self._engine.ended:
            one = self._of_request.pop(id(request), None)
            if one is None:  # of an earlier job, which was interrupted
                continue
            self._tokens += len(request.tokens)
            if all(each.finish_reason for each in one.requests):
                del self._open[one.line.index]
                self._end(one)
        if self._progress:
            running = [request for one in self._open.values() for request in one.requests]
            # Those of several sequences that have ended are counted already.
            tokens = sum(len(request.tokens) for request in running if not request.finish_reason)
            self._progress(self._ended, self._tokens + tokens)

    def _end(self, one):
        """Writes what came of a line."""
        self._ended += 1
        for request in one.requests:
            if request.error:
                self._fail(one.line, one.result, request.error)
                return
        sequences = [
            self._sequence(one, request, found) for request in one.requests for found in request.hypotheses or [request]
        ]
        one.result["prompt_tokens"] = len(one.requests[0].prompt)
        self._results.add(one.line, one.result | (sequences[0] if len(sequences) == 1 else {"sequences": sequences}))

    def _sequence(self, one, request, found):
        """One sequence's part of a result: text or ids first, then how it ended."""
        seed = {"seed": request.sampling.seed} if request.sampling.do_sample else {}
        end = {"new_tokens": len(found.tokens), "finish_reason": found.finish_reason, **seed}
        return self._generator.result(one.prompt, request.prompt, found, one.options) | end

    def _fail(self, line, result, error):
        message = f"{line.where}: {one_line(error)}"
        if self._skip_errors:
            self._results.add(line, result | {"error": message})
        elif self._failure is None:
            kind = type(error) if isinstance(error, NeoTFError) else EngineError
            self._failure = kind(message)
