"""Text to token ids and back; text that streams comes out as whole characters."""

from pathlib import Path

from neo_tf.errors import CheckpointError, RequestError

TOKENIZER_FILE = "tokenizer.json"


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

    def stream(self, prompt):
        """A TextStream of what follows the ids of a prompt."""
        return TextStream(self, prompt)


class TextStream:
    """Turns token ids into pieces of text, none of which ends inside a character.

    Call it with each new id: it returns the text that the id completes, "" while a character is still open.
    """

    def __init__(self, tokenizer, prompt):
        self._tokenizer, self._ids = tokenizer, list(prompt)
        # The text of the ids from _start on, as far as it was shown.
        self._start, self._shown = 0, tokenizer.decode(prompt).rstrip(_OPEN)

    def __call__(self, token_id):
        """The text that this id completes."""
        self._ids.append(token_id)
        text = self._tokenizer.decode(self._ids[self._start :])
        return "" if text.endswith(_OPEN) else self._show(text)

    def finish(self):
        """What is left at the end: the marks of bytes that never became a character."""
        return self._show(self._tokenizer.decode(self._ids[self._start :]))

    def _show(self, text):
        new = text[len(self._shown) :]
        self._start, self._shown = len(self._ids), ""
        return new
