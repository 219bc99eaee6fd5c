"""What a single token is written as, where log-probabilities name tokens."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from ..guided.token_bytes import byte_alphabet

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer


class TokenTexts:
    """Texts and bytes of single tokens. Two tokens with different bytes have different texts.

    Args:
        tokenizer: The model's tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._alphabet = byte_alphabet()
        self._is_byte_level = tokenizer.is_byte_level
        self.text = functools.lru_cache(maxsize=200_000)(self._text)

    def bytes(self, token: int) -> bytes:
        """The UTF-8 bytes that a token stands for, which may be a part of a character alone."""
        written = self._written(token)
        if not self._is_byte_level or token in self._tokenizer.added_ids:
            return written.encode("utf-8", "surrogatepass")
        return bytes(self._alphabet[character] for character in written)

    def _text(self, token: int) -> str:
        """A token's text. One that is no whole character is written as OpenAI writes it: `bytes:\\xe2\\x80`."""
        found = self.bytes(token)
        try:
            return found.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in found)

    def _written(self, token: int) -> str:
        """A token as the vocabulary writes it; an id of a padded vocabulary has no token."""
        written = self._tokenizer.convert_ids_to_tokens(token)
        if written is None:
            return ""
        return written if self._is_byte_level else written.replace("\u2581", " ")
