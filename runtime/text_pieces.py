"""Turning token ids, one at a time, into pieces of text that no later token changes.

How far a text is final depends on the tokenizer's decoder. A byte-level one may leave a character unfinished; others
join words with spaces. The pieces together are always the text that the ids decode to as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Decode = Callable[[Sequence[int]], str]  # the text of token ids

OPEN = "\ufffd"  # the mark that the first bytes of an unfinished character decode to
_BYTES_OF_OPEN = "ï¿½"  # its own bytes, as a byte-level vocabulary writes them

# Decoders that turn each token into text on its own, but for the first one, which may lose a space.
_TOKEN_BY_TOKEN = frozenset(("WordPiece", "Metaspace", "BPEDecoder", "Replace", "ByteFallback"))


class TextPieces(Protocol):
    """Takes token ids and returns text that is final."""

    before: str
    """The text of the prompt, without a character that the prompt leaves unfinished."""

    def add(self, token_id: int) -> str:
        """Takes the next id and returns the text that is final with it."""
        ...

    def finish(self) -> str:
        """Returns the rest of the text. No id comes after it."""
        ...


class BytePieces:
    """The pieces of a byte-level tokenizer: a character may be spread over several tokens.

    Args:
        decode: Decodes ids, without special tokens.
        prompt: The ids before the first new one. Their last character may be unfinished.
        is_open: Tells, for a prompt whose text ends with the mark of an unfinished character, whether further ids may
            finish it.
    """

    def __init__(self, decode: Decode, prompt: Sequence[int] = (), is_open: Callable[[], bool] = lambda: True) -> None:
        self._decode = decode
        # Ids whose text is not final to its end, and the beginning of their text that was returned.
        self._ids: list[int] = []
        self._shown = ""
        self.before = decode(prompt)
        if self.before.endswith(OPEN) and is_open():
            self.before = self.before.removesuffix(OPEN)
            self._ids = list(prompt)
            self._shown = self.before

    def add(self, token_id: int) -> str:
        """Takes the next id and returns the whole characters that are final with it."""
        self._ids.append(token_id)
        text = self._decode(self._ids)
        whole = text.removesuffix(OPEN)  # only the last mark may be of an unfinished character
        new = whole[len(self._shown) :]
        if text == whole:
            self._ids = []
            self._shown = ""
        else:
            self._shown = whole
        return new

    def finish(self) -> str:
        """Returns the mark of a character that stays unfinished, if there is one."""
        new = self._decode(self._ids)[len(self._shown) :]
        self._ids = []
        self._shown = ""
        return new


class TokenPieces:
    """The pieces of a tokenizer whose decoder turns each token into text on its own.

    The first token's text may differ, by a space. So a new id is decoded after the one before it. Bytes of a character
    (`<0xF0>`) wait for the token after the last of them: an invalid one changes what those before it mean.

    Args:
        decode: Decodes ids, without special tokens.
        token_of: The token of an id; None where no text is written for it.
        waits_for_bytes: Whether the decoder joins tokens such as <0xF0> into characters.
        before: The prompt's text.
    """

    def __init__(
        self, decode: Decode, token_of: Callable[[int], str | None], waits_for_bytes: bool, before: str
    ) -> None:
        self._decode = decode
        self._token_of = token_of
        self._waits_for_bytes = waits_for_bytes
        self._ids: list[int] = []  # the last id that has a text of its own, and those after it
        self._shown = ""  # the beginning of their text that was returned
        self.before = before

    def add(self, token_id: int) -> str:
        """Takes the next id and returns its text, unless it waits."""
        token = self._token_of(token_id)
        if token is None:
            return ""
        self._ids.append(token_id)
        if self._waits_for_bytes and token.startswith("<0x"):
            return ""
        text = self._decode(self._ids)
        new = text[len(self._shown) :]
        self._shown = self._decode([token_id])
        if self._shown:
            self._ids = [token_id]
        else:  # a space that is lost at the beginning: it is no beginning for the next one
            self._shown = text
        return new

    def finish(self) -> str:
        """Returns the text that waited."""
        new = self._decode(self._ids)[len(self._shown) :]
        self._ids = []
        self._shown = ""
        return new


class WholePieces:
    """One piece at the end, for a decoder of which neo-tf does not know what a later token may change."""

    def __init__(self, decode: Decode, before: str) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self.before = before

    def add(self, token_id: int) -> str:
        """Takes the next id. Its text waits for the end."""
        self._ids.append(token_id)
        return ""

    def finish(self) -> str:
        """Returns the text."""
        text = self._decode(self._ids)
        self._ids = []
        return text


class CleanedPieces:
    """Other pieces, without the spaces before punctuation (transformers' clean_up_tokenization_spaces)."""

    def __init__(self, pieces: TextPieces) -> None:
        self._pieces = pieces
        self._raw = ""  # text that is not cleaned yet
        self.before = pieces.before

    def add(self, token_id: int) -> str:
        """Takes the next id and returns what cleaning does not change any more."""
        self._raw += self._pieces.add(token_id)
        end = _clean_boundary(self._raw)
        done = self._raw[:end]
        self._raw = self._raw[end:]
        return clean_up(done)

    def finish(self) -> str:
        """Returns the rest of the text."""
        rest = self._raw + self._pieces.finish()
        self._raw = ""
        return clean_up(rest)


def clean_up(text: str) -> str:
    """Removes spaces before punctuation and inside contractions, in transformers' order."""
    for spaced in (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(spaced, spaced.strip())
    return text


def _clean_boundary(text: str) -> int:
    """The last place where a text can be cut in two that are cleaned one by one.

    It lies before a space. What clean_up replaces begins with a space, and only " ' " has another one, so that the
    first part must not end with a space, with "'", or with " n" (which becomes " n't" when "'t" comes nearer).
    """
    end = text.rfind(" ")
    while end > 0 and (text[end - 1] in " '" or text[:end] == "n" or text[:end].endswith(" n")):
        end = text.rfind(" ", 0, end)
    return max(end, 0)


def is_byte_level(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer's decoder takes each character of a token for a byte, and does nothing else."""
    return _decoder_kinds(tokenizer) == ["ByteLevel"]


def longest_token(tokenizer: Tokenizer) -> int | None:
    """The most bytes of a text that one token stands for; None where a token may stand for any number of them.

    A text of more bytes than this times a number has more tokens than that number.
    """
    from tokenizers import pre_tokenizers

    added = tokenizer.get_added_tokens_decoder().values()
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    state = json.loads(tokenizer.to_str())
    keeps_all = (
        is_byte_level(tokenizer)
        and state["model"]["type"] == "BPE"
        and state["normalizer"] is state["truncation"] is None
        and (state["pre_tokenizer"] or {}).get("type") == "ByteLevel"
        and all(character in vocabulary for character in pre_tokenizers.ByteLevel.alphabet())
        and not any(token.lstrip or token.rstrip for token in added)  # such a token takes all white space beside it
    )
    if not keeps_all:
        return None
    return max(*map(len, vocabulary), *(len(token.content.encode()) for token in added))


def special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """The ids of the special tokens."""
    return frozenset(index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special)


def pieces_of(
    tokenizer: Tokenizer, decode: Decode, prompt: Sequence[int], cleans_up: bool, skip_special_tokens: bool = True
) -> TextPieces:
    """The pieces of the text that follows a prompt.

    Args:
        tokenizer: The tokenizer that the ids are from.
        decode: Decodes ids, without cleaning up.
        prompt: The ids of the prompt.
        cleans_up: Whether the text is cleaned up.
        skip_special_tokens: Whether decode leaves special tokens out.
    """
    kinds = _decoder_kinds(tokenizer)
    pieces: TextPieces
    if kinds == ["ByteLevel"]:
        pieces = BytePieces(decode, prompt, is_open=lambda: _is_unfinished(tokenizer, prompt))
    elif kinds is not None:
        # By its content: a normalizer may have changed an added token's, which then is written.
        special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
        hidden = special if skip_special_tokens else frozenset()

        def token_of(index: int) -> str | None:
            token = tokenizer.id_to_token(index)
            return None if token in hidden else token

        pieces = TokenPieces(decode, token_of, "ByteFallback" in kinds, decode(prompt))
    else:
        pieces = WholePieces(decode, decode(prompt))
    return CleanedPieces(pieces) if cleans_up else pieces


def _is_unfinished(tokenizer: Tokenizer, ids: Sequence[int]) -> bool:
    """Whether the mark at the end of the text of ids is that of a character which further ids may finish."""
    from tokenizers import pre_tokenizers

    special = special_ids(tokenizer)
    visible = [index for index in ids if index not in special]
    end = "".join(tokenizer.id_to_token(index) or "" for index in visible[-len(_BYTES_OF_OPEN) :])
    if end.endswith((_BYTES_OF_OPEN, OPEN)):  # somebody wrote the mark
        return False
    # Where a text is not divided into bytes, or bytes are dropped that the vocabulary lacks, it stays unfinished.
    divides = tokenizer.pre_tokenizer is not None and b"ByteLevel" in tokenizer.pre_tokenizer.__getstate__()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return divides and all(tokenizer.token_to_id(byte) is not None for byte in alphabet)


def _decoder_kinds(tokenizer: Tokenizer) -> list[str] | None:
    """The kinds of a tokenizer's decoders, in order; None where they do not work token by token."""
    if tokenizer.decoder is None:  # tokens are joined with spaces
        return []
    state: dict[str, Any] = json.loads(tokenizer.decoder.__getstate__())
    decoders = state["decoders"] if state["type"] == "Sequence" else [state]
    kinds = [decoder["type"] for decoder in decoders]
    if kinds == ["ByteLevel"]:
        return kinds
    # What stands behind Fuse works on the whole text: of that, only a loss of its first spaces is known to be final.
    first = kinds[: kinds.index("Fuse")] if "Fuse" in kinds else kinds
    behind = decoders[len(first) + 1 :]
    if set(first) <= _TOKEN_BY_TOKEN and all(each["type"] == "Strip" and each["stop"] == 0 for each in behind):
        return kinds
    return None
