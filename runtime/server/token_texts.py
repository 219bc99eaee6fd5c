"""What a single token is written as, where log-probabilities name tokens."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..text_stream import TextStream
    from ..tokenizer import Tokenizer


class TokenTexts:
    """Texts and bytes of single tokens. Two tokens with different bytes have different texts.

    Args:
        tokenizer: The model's tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._alphabet = _byte_alphabet()
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


class WithSpecialTokens:
    """A tokenizer that writes special tokens into the text; a TokenizerLike.

    Args:
        tokenizer: The tokenizer that it changes.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        """The token ids of a text."""
        return self._tokenizer.encode(text)

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids."""
        return self._tokenizer.decode(token_ids, skip_special_tokens)

    def stream(self, prompt: Sequence[int], stop_strings: Sequence[str] = (), include_stop: bool = True) -> TextStream:
        """A TextStream of the text that follows a prompt."""
        return self._tokenizer.stream(prompt, stop_strings, include_stop, skip_special_tokens=False)


def _byte_alphabet() -> dict[str, int]:
    """The characters that a byte-level vocabulary writes bytes with (GPT-2's bytes_to_unicode, turned round)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    for number, byte in enumerate(others):
        alphabet[chr(256 + number)] = byte
    return alphabet
