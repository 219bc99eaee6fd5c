"""What the answers of OpenAI's completions and chats have in common, whole or as a stream."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .errors import ServerError, openai_form
from .streaming import event_json

if TYPE_CHECKING:
    from ..engine.generation import Generation
    from ..engine.request import Request
    from .call import Update
    from .serving import Serving


class OpenAIAnswer:
    """Writes one answer, whole or in chunks; an Answer. A subclass makes the requests and writes the choices.

    Args:
        serving: The model.
        kind: What `object` says.
        id: The answer's id.
        include_usage: Whether the numbers of tokens follow in the end.

    Attributes:
        requests: What is run for it.
    """

    requests: list[Request]

    def __init__(self, serving: Serving, kind: str, id: str, include_usage: bool) -> None:
        self._serving = serving
        self._head = {"id": id, "object": kind, "created": int(time.time()), "model": serving.name}
        self._include_usage = include_usage
        self._told: dict[int, int] = {}  # {sequence: its tokens that were written}

    def choice(self, update: Update, generation: Generation, begin: int, is_first: bool) -> Mapping[str, Any] | None:
        """A chunk's choice.

        Args:
            update: What came.
            generation: The sequence's.
            begin: The number of its tokens that were written before.
            is_first: Whether nothing of the sequence was written before.

        Returns:
            None where there is nothing to write yet.
        """
        raise NotImplementedError

    def whole(self, generations: list[Generation]) -> dict[str, Any]:
        """The answer that does not stream."""
        raise NotImplementedError

    def usage(self, generations: Sequence[Generation]) -> Mapping[str, int]:
        """The numbers of tokens."""
        raise NotImplementedError

    def head(self) -> dict[str, Any]:
        """What every answer and every chunk begins with."""
        return dict(self._head)

    def begin(self) -> Iterator[str]:
        """See EventWriter."""
        yield from ()

    def write(self, update: Update, generation: Generation) -> Iterator[str]:
        """See EventWriter."""
        begin = self._told.get(update.index)
        choice = self.choice(update, generation, begin or 0, begin is None)
        if choice is not None:
            self._told[update.index] = update.tokens
            yield self._chunk([choice])

    def end(self, generations: Sequence[Generation]) -> Iterator[str]:
        """See EventWriter."""
        if self._include_usage:
            yield event_json({**self._head, "choices": [], "usage": self.usage(generations)})
        yield "[DONE]"

    def fail(self, error: ServerError) -> Iterator[str]:
        """See EventWriter."""
        yield event_json(openai_form(error))
        yield "[DONE]"

    def _chunk(self, choices: Sequence[Mapping[str, Any]]) -> str:
        chunk = {**self._head, "choices": choices}
        return event_json({**chunk, "usage": None} if self._include_usage else chunk)
