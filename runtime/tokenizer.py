"""Text to token ids and back, as transformers' AutoTokenizer does it for the same files."""

from __future__ import annotations

import copy
import functools
import json
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, cast

from neo_tf.errors import CheckpointError, RequestError, first_line
from neo_tf.file_names import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE
from neo_tf.tokenizer_backend import (
    AS_IT_IS,
    SPECIAL_TOKENS,
    has_tokenizer,
    load_tokenizer,
    read_tokenizer_files,
)

from .chat_template import render_chat
from .guided.grammars import Grammar, Grammars
from .guided.guide import Guide
from .text_pieces import clean_up, is_byte_level, longest_token, pieces_of
from .text_stream import TextStream

if TYPE_CHECKING:
    import tokenizers

_NO_LIMIT = int(1e30)  # transformers' model_max_length where the files name none


class TokenizerLike(Protocol):
    """What the runtime needs of a tokenizer. Tokenizer is one."""

    def encode(self, text: str) -> list[int]:
        """The token ids of a text.

        Raises:
            RequestError: The text cannot be encoded.
        """
        ...

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids."""
        ...

    def stream(
        self,
        prompt: Sequence[int],
        stop_strings: Sequence[str] = (),
        include_stop: bool = True,
        *,
        skip_special_tokens: bool = True,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> TextStream:
        """A TextStream of the text that follows a prompt."""
        ...

    def grammar(self, guide: Guide) -> Grammar:
        """A grammar over its tokens, that a text must keep to.

        Raises:
            RequestError: The guide or the tokenizer cannot be served.
            MissingExtraError: The extra `guided` is not installed.
        """
        ...


class Encoding(dict[str, Any]):
    """What a call of a tokenizer returns: input_ids and attention_mask, as keys and as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Tokenizer:
    """A tokenizer, with the attributes and calls of transformers' that scripts use.

    The special tokens can be read and set: bos_token, eos_token, unk_token, sep_token, pad_token, cls_token and
    mask_token, and with `_id` behind the name their ids. They are None where the tokenizer has none.

    Args:
        path: A folder that holds a tokenizer, or a tokenizer.json alone, which is taken as it is.

    Raises:
        CheckpointError: There is no tokenizer, or it cannot be read.

    Attributes:
        model_max_length: The number of tokens that truncation=True cuts a text to.
        padding_side, truncation_side: "left" or "right". transformers' pipeline pads at the left, too.
        chat_template: A Jinja template, several by name, or None.
    """

    def __init__(self, path: Path | str) -> None:
        self._set_up(_files_at(Path(path)), path)

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], source: Path | str) -> Self:
        """A tokenizer from the contents of its files, {name: content}.

        Raises:
            CheckpointError: They make no tokenizer. The message names the source.
        """
        tokenizer = cls.__new__(cls)
        tokenizer._set_up(files, source)
        return tokenizer

    @classmethod
    def from_object(cls, tokenizer: Any) -> Self:
        """A tokenizer from one of transformers' tokenizers, with what was set on it, or from one of `tokenizers`.

        Raises:
            CheckpointError: It is neither, or it has no tokenizer.json.
        """
        name = type(tokenizer).__name__
        if hasattr(tokenizer, "to_str"):
            return cls.from_files(_as_it_is(tokenizer.to_str().encode()), name)
        if not hasattr(tokenizer, "save_pretrained"):
            raise CheckpointError(f"a tokenizer must be a path, or an object of transformers, not {name}")
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            files = read_tokenizer_files(Path(folder))
        if TOKENIZER_FILE not in files:
            raise CheckpointError(f"{name}: saves no tokenizer.json, which is needed here")
        # tokenizer.json holds what the object is, whatever its class would make of a folder.
        settings = json.loads(files[TOKENIZER_CONFIG_FILE]) | {"tokenizer_class": AS_IT_IS}
        return cls.from_files(files | {TOKENIZER_CONFIG_FILE: json.dumps(settings).encode()}, name)

    def _set_up(self, files: Mapping[str, bytes], source: Path | str) -> None:
        backend = load_tokenizer(files, source)
        self._tokenizer: tokenizers.Tokenizer = backend.tokenizer
        self._special: dict[str, str | None] = dict.fromkeys(SPECIAL_TOKENS) | backend.special_tokens
        self._cleans_up = bool(backend.settings.get("clean_up_tokenization_spaces"))
        self._can_clean = backend.can_clean
        self.is_code = backend.settings.get("auto_map") is not None
        self.has_response_template = backend.settings.get("response_template") is not None
        self._padding = threading.Lock()
        self._grammars = Grammars(self._tokenizer)
        self.extra_special_tokens = list(backend.extra_special_tokens)
        self.chat_template = backend.chat_template
        self.model_max_length: int = backend.settings.get("model_max_length") or _NO_LIMIT
        self.truncation_side: str = backend.settings.get("truncation_side") or "right"
        self.padding_side = "left"
        self.name_or_path = str(source)

    # ---- special tokens

    def __getattr__(self, name: str) -> Any:
        """A special token, or its id."""
        special = self.__dict__.get("_special", {})
        token_name = name.removesuffix("_id")
        if token_name not in special:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        token = special[token_name]
        return self.convert_tokens_to_ids(token) if token is not None and name != token_name else token

    def __setattr__(self, name: str, value: Any) -> None:
        """Names another token as a special one. The vocabulary stays as it is."""
        token_name = name.removesuffix("_id")
        if token_name not in self.__dict__.get("_special", {}):
            super().__setattr__(name, value)
        elif name != token_name and value is not None:
            self._special[token_name] = self._tokenizer.id_to_token(value)
        else:
            self._special[token_name] = value

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The special tokens that have a name."""
        return {name: token for name, token in self._special.items() if token is not None}

    @property
    def all_special_tokens(self) -> list[str]:
        """All special tokens, those with a name first."""
        return list(dict.fromkeys([*self.special_tokens_map.values(), *self.extra_special_tokens]))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of all_special_tokens."""
        return [self.convert_tokens_to_ids(token) for token in self.all_special_tokens]

    # ---- vocabulary

    @property
    def vocab_size(self) -> int:
        """The number of tokens without those that were added later."""
        return self._tokenizer.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    def __bool__(self) -> bool:
        return True

    @functools.cached_property
    def longest_token(self) -> int | None:
        """The most bytes of a text that one token stands for; None where a token may stand for any number of them."""
        return longest_token(self._tokenizer)

    is_fast = True  # as transformers calls a tokenizer of the package tokenizers

    def get_added_vocab(self) -> dict[str, int]:
        """The ids of the tokens that were added later, and of the special tokens."""
        return {token.content: index for index, token in sorted(self._tokenizer.get_added_tokens_decoder().items())}

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """The text of tokens."""
        decoder = self._tokenizer.decoder
        return decoder.decode(list(tokens)) if decoder is not None else " ".join(tokens)

    def get_vocab(self) -> dict[str, int]:
        """The ids of all tokens."""
        return self._tokenizer.get_vocab()

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> Any:
        """The id of a token, or the ids of several. An unknown token has the id of unk_token."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        found = self._tokenizer.token_to_id(tokens)
        if found is None and self._special["unk_token"] not in (None, tokens):
            return self.convert_tokens_to_ids(self._special["unk_token"] or "")
        return found

    def convert_ids_to_tokens(self, ids: int | Iterable[int], skip_special_tokens: bool = False) -> Any:
        """The token of an id, or the tokens of several."""
        if isinstance(ids, int):
            return self._tokenizer.id_to_token(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self._tokenizer.id_to_token(int(index)) for index in ids if int(index) not in skipped]

    @functools.cached_property
    def added_ids(self) -> frozenset[int]:
        """The ids of tokens that were added to the vocabulary; their text is what they are called."""
        return frozenset(self._tokenizer.get_added_tokens_decoder())

    @functools.cached_property
    def is_byte_level(self) -> bool:
        """Whether a token is bytes, so that a character may be spread over several tokens."""
        return is_byte_level(self._tokenizer)

    # ---- text to ids

    def encode(self, text: str, add_special_tokens: bool = True, **arguments: Any) -> list[int]:
        """The token ids of a text. Special tokens that are written in it are recognised.

        Args:
            text: The text.
            add_special_tokens: Whether tokens that the tokenizer puts around each text are added.
            arguments: Those of a call.

        Raises:
            RequestError: The text is not valid UTF-8.
        """
        if arguments:
            return self(text, add_special_tokens=add_special_tokens, **arguments)["input_ids"]
        return self._encode(self._tokenizer, text, add_special_tokens)

    def tokenize(self, text: str, add_special_tokens: bool = False) -> list[str]:
        """The tokens of a text."""
        return self.convert_ids_to_tokens(self.encode(text, add_special_tokens))

    def __call__(
        self,
        text: str | Sequence[str],
        text_pair: str | None = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        return_attention_mask: bool = True,
        return_tensors: str | None = None,
    ) -> Encoding:
        """The token ids of a text or of several, with the names and meanings of transformers.

        Args:
            text: A text, or a list of texts.
            text_pair: It is refused: a language model continues one text.
            add_special_tokens: As in encode.
            padding: True or "longest" pads to the longest text, "max_length" to max_length.
            truncation: Whether longer texts are cut to max_length tokens.
            max_length: The number of tokens. By default it is model_max_length.
            return_attention_mask: Whether attention_mask is returned, which is 0 for padding.
            return_tensors: "np" for numpy arrays; by default lists are returned.

        Raises:
            RequestError: A text or an argument cannot be served.
        """
        if text_pair is not None:
            raise RequestError("text_pair is not served: join the two texts")
        if return_tensors not in (None, "np"):
            raise RequestError(f'return_tensors must be "np" or None here, not {return_tensors!r}')
        if padding not in (False, True, "longest", "max_length", "do_not_pad"):
            raise RequestError(f"padding must be True, False, 'longest' or 'max_length', not {padding!r}")
        if max_length is not None and padding is False and truncation is None:
            truncation = True
        cut = None
        if truncation not in (None, False, "do_not_truncate"):
            cut = max_length if max_length is not None else self.model_max_length
        texts = [text] if isinstance(text, str) else list(text)
        ids = [self._encode_cut(each, add_special_tokens, cut) for each in texts]
        masks = [[1] * len(each) for each in ids]
        if padding not in (False, "do_not_pad"):
            self._pad(ids, masks, max_length or self.model_max_length if padding == "max_length" else None)
        found = Encoding(input_ids=ids, attention_mask=masks)
        if not return_attention_mask:
            del found["attention_mask"]
        if return_tensors == "np":
            return Encoding({name: _array(rows) for name, rows in found.items()})
        return Encoding({name: rows[0] for name, rows in found.items()}) if isinstance(text, str) else found

    def _encode_cut(self, text: str, add_special_tokens: bool, length: int | None) -> list[int]:
        ids = self._encode(self._tokenizer, text, add_special_tokens)
        if length is None or len(ids) <= length:
            return ids
        with self._padding:  # tokens around the text stay: the tokenizer itself must cut, and keeps the length in it
            self._cutter.enable_truncation(length, direction=self.truncation_side)
            return self._encode(self._cutter, text, add_special_tokens)

    @functools.cached_property
    def _cutter(self) -> tokenizers.Tokenizer:
        """A copy of the tokenizer, whose setting of truncation disturbs nobody."""
        return copy.deepcopy(self._tokenizer)

    @staticmethod
    def _encode(tokenizer: tokenizers.Tokenizer, text: str, add_special_tokens: bool) -> list[int]:
        try:
            return tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        except TypeError:  # lone surrogates, which stand for bytes of the command line that are not UTF-8
            raise RequestError("the prompt is not valid UTF-8 text") from None
        except Exception as error:  # tokenizers raises plain Exception, such as for a vocabulary without unk_token
            raise RequestError(f"the tokenizer cannot encode the prompt: {first_line(error)}") from None

    def _pad(self, ids: list[list[int]], masks: list[list[int]], length: int | None) -> None:
        """Pads rows of ids, and their masks with 0, to one length: by default that of the longest row."""
        pad = self.pad_token_id
        if pad is None:
            raise RequestError("padding needs a pad_token: set one, such as tokenizer.pad_token = tokenizer.eos_token")
        if length == _NO_LIMIT:
            return
        length = length or max(map(len, ids), default=0)
        for rows, value in ((ids, pad), (masks, 0)):
            for number, row in enumerate(rows):
                more = [value] * (length - len(row))
                rows[number] = row + more if self.padding_side == "right" else more + row

    # ---- ids to text

    def decode(
        self, token_ids: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> Any:
        """The text of token ids; of a list of such lists, a list of texts.

        Args:
            token_ids: An id, a list or an array of ids, or several of them.
            skip_special_tokens: Whether special tokens are left out.
            clean_up_tokenization_spaces: Whether spaces before punctuation are removed, which BPE does only where
                the tokenizer's own settings allow it; by default the tokenizer's own setting counts.
        """
        values = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        ids = [values] if isinstance(values, int) else list(values)
        if ids and not isinstance(ids[0], int) and not hasattr(ids[0], "__index__"):
            return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in ids]
        text = self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        return clean_up(text) if self._is_cleaned(clean_up_tokenization_spaces) else text

    def _is_cleaned(self, asked: bool | None) -> bool:
        """Whether text is cleaned up: as was asked, or else as the settings say. That of BPE seldom can be."""
        return self._can_clean and (self._cleans_up if asked is None else asked)

    def batch_decode(
        self,
        sequences: Iterable[Any],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """The texts of several lists of token ids. For the arguments see decode."""
        return [self.decode(ids, skip_special_tokens, clean_up_tokenization_spaces) for ids in sequences]

    def stream(
        self,
        prompt: Sequence[int],
        stop_strings: Sequence[str] = (),
        include_stop: bool = True,
        skip_special_tokens: bool = True,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> TextStream:
        """A TextStream of the text that follows a prompt.

        Args:
            prompt: The ids of the prompt.
            stop_strings, include_stop: See TextStream.
            skip_special_tokens: Whether special tokens are left out.
            clean_up_tokenization_spaces: As in decode.
        """
        tokenizer = self._tokenizer

        def decode(ids: Sequence[int]) -> str:
            return tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

        cleans_up = self._is_cleaned(clean_up_tokenization_spaces)
        pieces = pieces_of(tokenizer, decode, list(prompt), cleans_up, skip_special_tokens)
        return TextStream(pieces, stop_strings, include_stop)

    def grammar(self, guide: Guide) -> Grammar:
        """A grammar over its tokens, that a text must keep to. The last ones are kept.

        Raises:
            RequestError: The guide or the tokenizer cannot be served.
            MissingExtraError: The extra `guided` is not installed.
        """
        if self._cleans_up:
            raise RequestError(f"{guide.name}: the tokenizer changes texts: it has clean_up_tokenization_spaces")
        return self._grammars.compile(guide)

    # ---- chats

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        return_dict: bool = True,
        truncation: bool = False,
        max_length: int | None = None,
        **variables: Any,
    ) -> Any:
        """The prompt of a chat.

        Args:
            conversation: A list of messages, which are dicts with role and content; or a list of such lists.
            chat_template: A Jinja template, or the name of one of the model's; by default the model's own.
            add_generation_prompt: Whether the prompt ends with the beginning of the assistant's answer.
            continue_final_message: Whether the prompt ends with the last message, which is to be continued.
            tokenize: Whether token ids are returned, not the text.
            truncation: Whether a longer prompt is cut to max_length tokens.
            max_length: The number of tokens. By default it is model_max_length.
            return_dict: Whether ids are returned as a call returns them, not as a list.
            variables: What else the template sees, such as tools.

        Raises:
            RequestError: There is no chat template, or it refuses the messages.
        """
        template = self._chat_template(chat_template, variables.get("tools") is not None)
        many = bool(conversation) and isinstance(conversation[0], list | tuple)
        chats = conversation if many else [conversation]
        texts = [
            render_chat(
                template,
                chat,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **(self.special_tokens_map | variables),
            )
            for chat in chats
        ]
        shown = texts if many else texts[0]
        if not tokenize:
            return shown
        found = self(shown, add_special_tokens=False, truncation=truncation, max_length=max_length)
        return found if return_dict else found["input_ids"]

    def _chat_template(self, name: str | None, has_tools: bool) -> str:
        own = self.chat_template
        if isinstance(own, dict):
            if name is not None:
                return own.get(name, name)
            for key in ("tool_use", "default"):
                if key in own and (key == "default" or has_tools):
                    return own[key]
            raise RequestError(f"the model has several chat templates: name one of {', '.join(sorted(own))}")
        if name is None and own is None:
            raise RequestError("the model has no chat template: give it a text, or name one with chat_template=")
        return cast(str, name if name is not None else own)


def as_tokenizer(tokenizer: Any) -> Tokenizer:
    """A Tokenizer of an object: one already, transformers' own, or one of the package tokenizers.

    Raises:
        RequestError: It is something else.
        CheckpointError: It cannot be read.
    """
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    if not hasattr(tokenizer, "save_pretrained") and not hasattr(tokenizer, "to_str"):
        name = type(tokenizer).__name__
        raise RequestError(f"tokenizer must be a folder, a tokenizer.json, a hub id or a tokenizer, not a {name}")
    return Tokenizer.from_object(tokenizer)


def _files_at(path: Path) -> Mapping[str, bytes]:
    """The files of a tokenizer: those of a folder, or a tokenizer.json alone."""
    if path.is_dir():
        files: Mapping[str, bytes] = read_tokenizer_files(path)
    elif path.is_file():
        files = _as_it_is(path.read_bytes())
    else:
        files = {}
    if not has_tokenizer(files):
        raise CheckpointError(f"{path}: no tokenizer here: name one with --tokenizer (tokenizer=), or prompt with ids")
    return files


def _as_it_is(content: bytes) -> Mapping[str, bytes]:
    """The files of a tokenizer.json alone. Nothing can say that it is to be taken in another way than as it is."""
    return {TOKENIZER_FILE: content, TOKENIZER_CONFIG_FILE: f'{{"tokenizer_class": "{AS_IT_IS}"}}'.encode()}


def _array(rows: list[list[int]]) -> Any:
    import numpy as np

    try:
        return np.array(rows, np.int64)
    except ValueError:
        raise RequestError("the texts have different numbers of tokens: pad them with padding=True") from None
