"""Text to token ids and back; text that streams comes out as whole characters."""

from pathlib import Path

from neo_tf.errors import CheckpointError, RequestError
from neo_tf.file_names import TOKENIZER_FILE

_OPEN = "\ufffd"  # what bytes of an unfinished character decode to


class Tokenizer:
    """A byte-level BPE, from a tokenizer.json.

    Args:
        path: the file, or a folder that holds one.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """

    def __init__(self, path):
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

    def encode(self, text):
        """Token ids of a text; special tokens in it are recognised."""
        try:
            return self._tokenizer.encode(text).ids
        except TypeError:  # lone surrogates: bytes of the command line that are no UTF-8
            raise RequestError("the prompt is not valid UTF-8 text") from None

    def decode(self, token_ids):
        """Text of token ids, special tokens left out."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def stream(self, prompt, stop_strings=(), include_stop=True):
        """A TextStream of what follows the ids of a prompt."""
        return TextStream(self, prompt, stop_strings, include_stop)


class TextStream:
    """Turns token ids into pieces of text that are final: none ends inside a character, or where a stop string may be.

    Call it with each new id: it returns the text that the id completes, "" while that is still open.

    Args:
        tokenizer: a Tokenizer.
        prompt: the ids before; a stop string may begin in their text.
        stop_strings: texts that end the text.
        include_stop: whether the text goes on to the end of the token that completes a stop string; otherwise it ends
            before the stop string.

    Attributes:
        before: the prompt's text, which the pieces go on from.
        stopped: whether a stop string has come.
    """

    def __init__(self, tokenizer, prompt, stop_strings=(), include_stop=True):
        self._tokenizer, self._stops, self._include = tokenizer, tuple(stop_strings), include_stop
        # Ids whose text was not shown to its end, and how much of it was.
        self._ids, self._shown = [], ""
        text = tokenizer.decode(prompt)
        if text.endswith(_OPEN):
            mark = tokenizer.encode(_OPEN)
            if list(prompt[-len(mark) :]) != mark:  # else it is the text's own character
                text = text.removesuffix(_OPEN)
                self._ids, self._shown = list(prompt), text
        self._longest = max(map(len, self._stops), default=1) - 1
        self._recent, self._held = self._last(text), ""
        self.before, self.stopped = text, False

    def __call__(self, token_id):
        """The text that this id completes."""
        self._ids.append(token_id)
        text = self._tokenizer.decode(self._ids)
        whole = text.removesuffix(_OPEN)  # of an open character's mark alone: those before it are final
        new = whole[len(self._shown) :]
        if text == whole:
            self._ids, self._shown = [], ""
        else:
            self._shown = whole
        return self._pass(new)

    def finish(self):
        """What is left at the end: what was held back, and the mark of bytes that never became a character."""
        if self.stopped and not self._include:
            return ""
        new = self._tokenizer.decode(self._ids)[len(self._shown) :]
        self._ids, self._shown = [], ""
        return self._pass(new, last=True)

    def _pass(self, new, last=False):
        """What of the text held back so far, and of new text, is final."""
        if not self._stops:
            return new
        text, begin = self._held + new, len(self._recent)
        searched = self._recent + new
        # The first to be complete, as if characters came one by one; of several then, the longest.
        places = [(searched.find(stop, max(0, begin - len(stop) + 1)), len(stop)) for stop in self._stops]
        found = [(place + size, place) for place, size in places if place >= 0]
        self._recent, self._held = self._last(searched), ""
        if found:
            self.stopped = True
            return text if self._include else text[: max(0, len(text) - len(new) + min(found)[1] - begin)]
        if not self._include and not last:
            keep = len(text) - min(len(text), self._open_stop(searched))
            text, self._held = text[:keep], text[keep:]
        return text

    def _open_stop(self, text):
        """Length of the longest end of text that a stop string begins with."""
        longest = 0
        for stop in self._stops:
            place = text.find(stop[0], max(0, len(text) - len(stop) + 1))
            while place >= 0 and not stop.startswith(text[place:]):
                place = text.find(stop[0], place + 1)
            longest = max(longest, len(text) - place if place >= 0 else 0)
        return longest

    def _last(self, text):
        """The end of a text, in which a stop string may have begun."""
        return text[len(text) - self._longest :] if self._longest < len(text) else text
