"""Text to token ids and back; text that streams comes out as whole characters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from neo_tf.errors import CheckpointError, RequestError
from neo_tf.file_names import TOKENIZER_FILE

_OPEN = "\ufffd"  # the mark that the first bytes of an unfinished character decode to


class TokenizerLike(Protocol):
    """What the runtime needs of a tokenizer. Tokenizer is one."""

    def encode(self, text: str) -> list[int]:
        """The token ids of a text.

        Raises:
            RequestError: The text cannot be encoded.
        """
        ...

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of token ids, without special tokens."""
        ...

    def stream(self, prompt: Sequence[int], stop_strings: Sequence[str] = (), include_stop: bool = True) -> TextStream:
        """A TextStream of the text that follows a prompt."""
        ...


class Tokenizer:
    """A byte-level BPE tokenizer from a tokenizer.json.

    Args:
        path: The file, or a folder that holds it.

    Raises:
        CheckpointError: The file does not exist or cannot be read.
    """

    def __init__(self, path: Path | str) -> None:
        import tokenizers

        path = Path(path)
        if path.is_dir():
            path = path / TOKENIZER_FILE
        if not path.is_file():
            raise CheckpointError(
                f"{path}: no tokenizer here: name one with --tokenizer (tokenizer=), or prompt with ids"
            )
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises plain Exception
            raise CheckpointError(f"{path}: not a tokenizer: {error}") from None

    def encode(self, text: str) -> list[int]:
        """The token ids of a text. Special tokens that are written in it are recognised.

        Raises:
            RequestError: The text is not valid UTF-8.
        """
        try:
            return self._tokenizer.encode(text).ids
        except TypeError:  # lone surrogates, which stand for bytes of the command line that are not UTF-8
            raise RequestError("the prompt is not valid UTF-8 text") from None

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of token ids, without special tokens."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def stream(self, prompt: Sequence[int], stop_strings: Sequence[str] = (), include_stop: bool = True) -> TextStream:
        """A TextStream of the text that follows a prompt."""
        return TextStream(self, prompt, stop_strings, include_stop)


class TextStream:
    """Turns token ids, one at a time, into pieces of text that are final.

    Call it with each new id, and with finish() at the end. A character may be spread over several tokens, and a piece
    never ends inside one. Where the text is to end before a stop string, a piece does not reach into a stop string that
    may have begun, either. The pieces together are the text; a piece is empty while nothing is final.

    Args:
        tokenizer: The tokenizer that the ids are from.
        prompt: The ids before the first new one. A stop string may begin in their text.
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

    def __init__(
        self,
        tokenizer: TokenizerLike,
        prompt: Sequence[int],
        stop_strings: Sequence[str] = (),
        include_stop: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(stop_strings)
        self._include = include_stop
        # Ids whose text is not final to its end, and the beginning of their text that was returned.
        self._ids: list[int] = []
        self._shown = ""
        text = tokenizer.decode(prompt)
        if text.endswith(_OPEN):
            mark = tokenizer.encode(_OPEN)
            if list(prompt[-len(mark) :]) != mark:  # otherwise the prompt's author wrote this character
                text = text.removesuffix(_OPEN)
                self._ids = list(prompt)
                self._shown = text
        self._longest = max(map(len, self._stops), default=1) - 1  # characters of a stop string before its last one
        self._recent = self._last(text)  # the end of the text so far, in which a stop string may have begun
        self._held = ""  # text that waits, because it may belong to a stop string
        self.before = text
        self.stopped = False

    def __call__(self, token_id: int) -> str:
        """Takes the next id and returns the text that is final with it."""
        self._ids.append(token_id)
        text = self._tokenizer.decode(self._ids)
        whole = text.removesuffix(_OPEN)  # only the last mark may be of an unfinished character
        new = whole[len(self._shown) :]
        if text == whole:
            self._ids = []
            self._shown = ""
        else:
            self._shown = whole
        return self._pass(new)

    def finish(self) -> str:
        """Ends the text and returns its rest: what was held back, and the mark of a character that stays unfinished."""
        if self.stopped and not self._include:
            return ""
        new = self._tokenizer.decode(self._ids)[len(self._shown) :]
        self._ids = []
        self._shown = ""
        return self._pass(new, last=True)

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
