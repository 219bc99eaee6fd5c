"""Text that streams: pieces that are final, and the stop strings in them."""

from __future__ import annotations

from collections.abc import Sequence

from .text_pieces import TextPieces


class TextStream:
    """Turns token ids, one at a time, into pieces of text that are final.

    Call it with each new id, and with finish() at the end. A character may be spread over several tokens, and a piece
    never ends inside one. Where the text is to end before a stop string, a piece does not reach into a stop string that
    may have begun, either. The pieces together are the text; a piece is empty while nothing is final.

    Args:
        pieces: The pieces of the text that follows the prompt.
        stop_strings: Texts that end the text when they come.
        include_stop: Whether the text goes on to the end of the token that completes a stop string. Otherwise it ends
            before the stop string.

    Attributes:
        before: The text of the prompt, without a character that the prompt leaves unfinished.
        stopped: Whether a stop string has come.

    Example:
        >>> stream = tokenizer.stream(prompt)
        >>> "".join([*map(stream, token_ids), stream.finish()])
    """

    def __init__(self, pieces: TextPieces, stop_strings: Sequence[str] = (), include_stop: bool = True) -> None:
        self._pieces = pieces
        self._stops = tuple(stop_strings)
        self._include = include_stop
        self._longest = max(map(len, self._stops), default=1) - 1  # characters of a stop string before its last one
        self._recent = self._last(pieces.before)  # the end of the text so far, in which a stop string may have begun
        self._held = ""  # text that waits, because it may belong to a stop string
        self.before = pieces.before
        self.stopped = False

    def __call__(self, token_id: int) -> str:
        """Takes the next id and returns the text that is final with it."""
        return self._pass(self._pieces.add(token_id))

    def finish(self) -> str:
        """Ends the text and returns its rest: what was held back, and the mark of a character that stays unfinished."""
        if self.stopped and not self._include:
            return ""
        return self._pass(self._pieces.finish(), last=True)

    def _pass(self, new: str, last: bool = False) -> str:
        """The part that is final of the text that waits and of new text after it; the rest waits.

        Args:
            new: Whole characters.
            last: Whether no text comes after it.
        """
        if not self._stops:
            return new
        text = self._held + new
        begin = len(self._recent)
        searched = self._recent + new
        # The stop string that is complete first counts, as if characters came one by one; of several, the longest.
        places = [(searched.find(stop, max(0, begin - len(stop) + 1)), len(stop)) for stop in self._stops]
        found = [(place + size, place) for place, size in places if place >= 0]
        self._recent = self._last(searched)
        self._held = ""
        if found:
            self.stopped = True
            return text if self._include else text[: max(0, len(text) - len(new) + min(found)[1] - begin)]
        if not self._include and not last:
            keep = len(text) - min(len(text), self._open_stop(searched))
            self._held = text[keep:]
            text = text[:keep]
        return text

    def _open_stop(self, text: str) -> int:
        """The length of the longest end of a text that a stop string begins with."""
        longest = 0
        for stop in self._stops:
            place = text.find(stop[0], max(0, len(text) - len(stop) + 1))
            while place >= 0 and not stop.startswith(text[place:]):
                place = text.find(stop[0], place + 1)
            if place >= 0:
                longest = max(longest, len(text) - place)
        return longest

    def _last(self, text: str) -> str:
        """The end of a text, in which a stop string may have begun."""
        return text[len(text) - self._longest :] if self._longest < len(text) else text
