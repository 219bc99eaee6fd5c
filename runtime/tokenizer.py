"""Text to token ids and back; text that streams comes out as whole characters."""

from pathlib import Path

from neo_tf.errors import CheckpointError

TOKENIZER_FILE = "tokenizer.json"


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
        return self._tokenizer.encode(text).ids

    def decode(self, token_ids):
        """Text of token ids, special tokens left out."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def stream(self, prompt):
        """A function from the next token id to the text that it completes, "" while a character is still open.

        Args:
            prompt: ids before the first streamed one.
        """
        from tokenizers.decoders import DecodeStream

        decoder = DecodeStream(ids=list(prompt), skip_special_tokens=True)
        return lambda token_id: decoder.step(self._tokenizer, token_id) or ""
