"""Runs the lines of a job in an engine of this process."""

from typing import Any

from ..pipeline import TextGenerationPipeline
from .open_line import OpenLine, Outcome
from .prompts import Line


class EngineRunner:
    """Steps an engine for the lines of a job; LineRunner.

    Args:
        generator: What continues the prompts. Nobody else may use it meanwhile.
        arguments: The generation arguments of all prompts, without a seed. A line of JSON may override them.
        seed: The seed of the first prompt's sampling. Each next sequence has the next seed.
    """

    def __init__(self, generator: TextGenerationPipeline, arguments: dict[str, Any], seed: int) -> None:
        self._generator = generator
        self._engine = generator.engine
        self._arguments = arguments
        self._seed = seed
        self._open: dict[int, OpenLine] = {}  # by the line's index
        self._of_generation: dict[int, OpenLine] = {}  # by the Generation's id
        self._tokens = 0  # of lines that have ended

    @property
    def window(self) -> int:
        """As many requests wait as run, so that no slot is idle."""
        return 2 * self._generator.session.slots

    @property
    def has_room(self) -> bool:
        """Whether fewer requests run or wait than the window has."""
        return len(self._of_generation) < self.window

    @property
    def tokens(self) -> int:
        """The number of new tokens so far."""
        return self._tokens + sum(one.tokens for one in self._open.values())

    def start(self, line: Line) -> Outcome | None:
        """Submits a line's requests; see LineRunner."""
        one = OpenLine.read(line, self._generator, self._arguments, self._seed, self._engine.check)
        if isinstance(one, Outcome):
            return one
        self._open[line.index] = one
        for request in one.requests:
            generation = self._engine.submit(request)
            one.generations.append(generation)
            self._of_generation[id(generation)] = one
        return None

    def step(self) -> list[Outcome]:
        """Steps the engine; see LineRunner."""
        self._engine.step()
        outcomes = []
        for generation in self._engine.ended:
            one = self._of_generation.pop(id(generation), None)
            if one is None:  # of an earlier job, which was interrupted
                continue
            if all(each.finish_reason for each in one.generations):
                del self._open[one.line.index]
                self._tokens += one.tokens
                outcomes.append(one.outcome(self._generator))
        return outcomes

    def cancel(self) -> None:
        """Ends what runs; see LineRunner."""
        for one in self._open.values():
            for generation in one.generations:
                self._engine.cancel(generation)
