"""What the streams of OpenAI's completions and chats have in common."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .errors import ServerError, openai_form

if TYPE_CHECKING:
    from ..engine.generation import Generation
    from .call import Update
    from .serving import Serving


class OpenAIStream:
    """Writes chunks of one answer; an EventWriter. A subclass writes the choices.

    Args:
        serving: The model.
        kind: What `object` says.
        id: The answer's id.
        include_usage: Whether the numbers of tokens follow in the end.
    """

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
            yield _json({**self._head, "choices": [], "usage": self.usage(generations)})
        yield "[DONE]"

    def fail(self, error: ServerError) -> Iterator[str]:
        """See EventWriter."""
        yield _json(openai_form(error))
        yield "[DONE]"

    def _chunk(self, choices: Sequence[Mapping[str, Any]]) -> str:
        chunk = {**self._head, "choices": choices}
        return _json({**chunk, "usage": None} if self._include_usage else chunk)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
