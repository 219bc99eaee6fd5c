"""The bytes that each token adds to a text, for tokenizers of byte-level BPE."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neo_tf.errors import RequestError

from ..text_pieces import is_byte_level, special_ids

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def token_bytes(tokenizer: Tokenizer) -> list[bytes | None]:
    """The bytes of each token id, None for a special token and for an id that has no token.

    Raises:
        RequestError: The tokenizer is not byte-level: there a token's text depends on the tokens before it.
    """
    if not is_byte_level(tokenizer):
        raise RequestError("guided text needs a tokenizer of byte-level BPE, as GPT-Neo's is, and this one is not")
    byte_of = byte_alphabet()
    special = special_ids(tokenizer)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    found: list[bytes | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
    for token, index in vocabulary.items():
        if index in special:
            continue
        values = [byte_of.get(character) for character in token]
        # The decoder takes a token with any other character as a text: an added token may have one.
        found[index] = token.encode() if None in values else bytes(value for value in values if value is not None)
    return found


def byte_alphabet() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for (GPT-2's bytes_to_unicode, turned round)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in printable]
    return {chr(value): value for value in printable} | {chr(256 + n): value for n, value in enumerate(others)}
