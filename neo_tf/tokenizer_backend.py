"""Reading a tokenizer's files as transformers' AutoTokenizer reads them beside a GPT-Neo.

A setting may stand in tokenizer.json, tokenizer_config.json, special_tokens_map.json or added_tokens.json. This file
follows transformers 5 (its tokenization_utils_base.py, tokenization_utils_tokenizers.py and tokenization_gpt2.py) in
which of them counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neo_tf.errors import CheckpointError, first_line
from neo_tf.file_names import (
    ADDED_TOKENS_FILE,
    CHAT_TEMPLATE_FILE,
    CHAT_TEMPLATES_FOLDER,
    CONFIG_FILE,
    MERGES_FILE,
    SPECIAL_TOKENS_MAP_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    TOKENIZER_FILES,
    VOCAB_FILE,
)

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Under this key transformers keeps special tokens with names that it does not know itself.
_NAMES_OF_ONES_OWN = "model_specific_special_tokens"
# The class that takes a tokenizer.json as it is. transformers 5 calls it TokenizersBackend.
AS_IT_IS = "PreTrainedTokenizerFast"
GPT2_CLASS = "GPT2Tokenizer"
GPT_NEOX_CLASS = "GPTNeoXTokenizer"
_GPT_NEOX_PADDING = "<|padding|>"
# Classes that rebuild the tokenizer from its vocabulary. Others' are taken as they stand in tokenizer.json, which is
# what a class of transformers writes there.
_LIKE_GPT2 = (GPT2_CLASS, "CodeGenTokenizer", GPT_NEOX_CLASS)
_GPT2_END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class TokenizerBackend:
    """A tokenizer, and what its files say about it.

    Args:
        tokenizer: The tokenizer. It neither truncates nor pads.
        special_tokens: The tokens that have a name, {"eos_token": "<|endoftext|>", ...}.
        extra_special_tokens: Special tokens that have no name.
        cleans_up: Whether decoding removes the spaces before punctuation.
        may_clean_up: Whether it does so where a call asks for it. For BPE a setting must allow it.
        chat_template: A Jinja template, or several by name; None where there is none.
        settings: All settings of tokenizer_config.json.
    """

    tokenizer: Tokenizer
    special_tokens: dict[str, str]
    extra_special_tokens: tuple[str, ...]
    cleans_up: bool
    may_clean_up: bool
    chat_template: str | dict[str, str] | None
    settings: dict[str, Any]


def read_tokenizer_files(folder: Path) -> dict[str, bytes]:
    """The files of a folder that belong to a tokenizer, {name: content}. Links are followed.

    Raises:
        CheckpointError: A file cannot be read.
    """
    templates = (
        f"{CHAT_TEMPLATES_FOLDER}/{path.name}" for path in sorted((folder / CHAT_TEMPLATES_FOLDER).glob("*.jinja"))
    )
    files = {}
    for name in (*TOKENIZER_FILES, CONFIG_FILE, *templates):
        path = folder / name
        if path.is_file():
            try:
                files[name] = path.read_bytes()
            except OSError as error:
                raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    return _with_class(files)


def _with_class(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files without config.json. A tokenizer_class that stands there alone is put into tokenizer_config.json."""
    try:
        config = json.loads(files.pop(CONFIG_FILE, b"{}"))
    except ValueError:
        return files  # whoever needs the config says what is wrong with it
    declared = config.get("tokenizer_class") if isinstance(config, dict) else None
    if declared and has_tokenizer(files):
        settings = _json_object(files, TOKENIZER_CONFIG_FILE)
        if not settings.get("tokenizer_class"):
            files[TOKENIZER_CONFIG_FILE] = json.dumps(settings | {"tokenizer_class": declared}, indent=2).encode()
    return files


def has_tokenizer(files: Mapping[str, bytes]) -> bool:
    """Whether load_tokenizer can make a tokenizer of these files."""
    return TOKENIZER_FILE in files or (VOCAB_FILE in files and MERGES_FILE in files)


def load_tokenizer(files: Mapping[str, bytes], source: Path | str) -> TokenizerBackend:
    """Makes a tokenizer of its files.

    Without tokenizer_config.json, or where that names GPT-2's class, the tokenizer is GPT-2's kind of byte-level BPE
    with the vocabulary of tokenizer.json, whatever else stands there: so it is in transformers.

    Args:
        files: {name: content}, for which has_tokenizer is true.
        source: Where the files are from, for messages.

    Raises:
        CheckpointError: The files make no tokenizer.
    """
    try:
        return _load(files)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    except Exception as error:  # tokenizers raises plain Exception, and settings may have any type
        what = TOKENIZER_FILE if TOKENIZER_FILE in files else f"{VOCAB_FILE} and {MERGES_FILE}"
        raise CheckpointError(f"{source}: {what}: not a tokenizer: {first_line(error)}") from None


def _load(files: Mapping[str, bytes]) -> TokenizerBackend:
    settings = _json_object(files, TOKENIZER_CONFIG_FILE)
    name = str(settings.get("tokenizer_class") or GPT2_CLASS).removesuffix("Fast")
    added = _merge_special_tokens(files, settings)
    if name not in _LIKE_GPT2:
        if TOKENIZER_FILE not in files:
            raise CheckpointError(
                f"its tokenizer is a {settings['tokenizer_class']} without {TOKENIZER_FILE}, which only transformers"
                f" can read: load it there and save it, which writes {TOKENIZER_FILE}"
            )
        tokenizer = _from_text(files)
    else:
        tokenizer = _gpt2(files, bool(settings.get("add_prefix_space")), is_neox=name == GPT_NEOX_CLASS)
        for key in ("unk_token", "bos_token", "eos_token"):
            settings.setdefault(key, _GPT2_END_OF_TEXT)
        settings.setdefault("pad_token", _GPT_NEOX_PADDING if name == GPT_NEOX_CLASS else None)
    if tokenizer.padding is not None:
        settings.setdefault("pad_token", tokenizer.padding["pad_token"])
    if tokenizer.truncation is not None:
        settings.setdefault("truncation_side", tokenizer.truncation["direction"])
    tokenizer.no_truncation()
    tokenizer.no_padding()
    named, extra = _special_tokens(settings)
    _add_tokens(tokenizer, added, named, extra)
    special = {key: str(token) for key, token in named.items()}
    if tokenizer.post_processor is None or "add_bos_token" in settings or "add_eos_token" in settings:
        _add_ends(tokenizer, special, settings)
    tokenizer.encode_special_tokens = bool(settings.get("split_special_tokens", False))
    may_clean_up = type(tokenizer.model).__name__ != "BPE" or bool(
        settings.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output")
    )
    return TokenizerBackend(
        tokenizer,
        special,
        extra_special_tokens=tuple(dict.fromkeys(map(str, extra))),
        cleans_up=may_clean_up and bool(settings.get("clean_up_tokenization_spaces")),
        may_clean_up=may_clean_up,
        chat_template=_chat_template(files, settings),
        settings=settings,
    )


def _merge_special_tokens(files: Mapping[str, bytes], settings: dict[str, Any]) -> dict[int, AddedToken]:
    """Completes the settings by the special tokens that are declared in other files.

    Returns:
        The tokens that were added to the vocabulary, by their ids.
    """
    from tokenizers import AddedToken

    if TOKENIZER_FILE in files:  # its post-processor says it
        settings.pop("add_bos_token", None)
        settings.pop("add_eos_token", None)
    if "additional_special_tokens" in settings and not settings.get("extra_special_tokens"):
        settings["extra_special_tokens"] = settings.pop("additional_special_tokens")
    own = {key: settings.pop(key) for key in [*settings] if _is_name_of_ones_own(key, settings[key], str)}
    if isinstance(settings.get("extra_special_tokens"), dict):
        own |= settings.pop("extra_special_tokens")
    if own:
        settings[_NAMES_OF_ONES_OWN] = own
    added: dict[int, AddedToken] = {}
    if "added_tokens_decoder" in settings:
        added = {int(index): AddedToken(**_flags(token)) for index, token in settings["added_tokens_decoder"].items()}
    else:
        for key, value in _json_object(files, SPECIAL_TOKENS_MAP_FILE).items():
            if key == "extra_special_tokens" and isinstance(value, list):
                known = list(settings.get("extra_special_tokens") or [])
                settings[key] = known + [token for token in value if token not in known]
            elif isinstance(value, dict) and key != "extra_special_tokens":
                settings[key] = AddedToken(**_flags(value) | {"special": True})
            else:
                settings[key] = value
        if isinstance(settings.get("extra_special_tokens"), dict):
            settings[_NAMES_OF_ONES_OWN] = (settings.get(_NAMES_OF_ONES_OWN) or {}) | settings.pop(
                "extra_special_tokens"
            )
        # Tokens that are objects in tokenizer_config.json are not found here, as they are not in transformers.
        special = {str(settings[key]) for key in SPECIAL_TOKENS if settings.get(key)}
        special |= {str(token) for token in settings.get("extra_special_tokens") or []}
        for content, index in _json_object(files, ADDED_TOKENS_FILE).items():
            is_special = content in special
            added[index] = AddedToken(content, normalized=not is_special, special=is_special)
        if TOKENIZER_FILE in files:
            for token in json.loads(files[TOKENIZER_FILE]).get("added_tokens", ()):
                added[token["id"]] = AddedToken(**_flags(token))
    if "additional_special_tokens" in settings and "extra_special_tokens" not in settings:
        settings["extra_special_tokens"] = settings.pop("additional_special_tokens")
    by_content = {str(token): token for token in added.values()}
    for key in SPECIAL_TOKENS:
        if settings.get(key) is not None:
            settings[key] = by_content.get(_content(settings[key]), settings[key])
    return added


def _special_tokens(settings: Mapping[str, Any]) -> tuple[dict[str, AddedToken | str], list[AddedToken | str]]:
    """The special tokens with names, in transformers' order, and those without."""
    from tokenizers import AddedToken

    others = {
        key: value for key, value in settings.items() if _is_name_of_ones_own(key, value, str | dict | AddedToken)
    }
    named = {key: settings[key] for key in SPECIAL_TOKENS if settings.get(key) is not None}
    named |= others | (settings.get(_NAMES_OF_ONES_OWN) or {})
    extra = settings.get("extra_special_tokens") or []
    return {key: _token(value) for key, value in named.items()}, [_token(value) for value in extra]


def _is_name_of_ones_own(key: str, value: object, kinds: Any) -> bool:
    """Whether a setting names a special token that transformers has no name for, such as image_token."""
    return key.endswith("_token") and key not in SPECIAL_TOKENS and isinstance(value, kinds)


def _add_tokens(
    tokenizer: Tokenizer,
    added: Mapping[int, AddedToken],
    named: Mapping[str, AddedToken | str],
    extra: list[AddedToken | str],
) -> None:
    """Adds tokens to the vocabulary where they are not in it, and says which of them are special."""
    from tokenizers import AddedToken

    tokens: list[AddedToken | str] = [token for _, token in sorted(added.items())]
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()} | {
        str(token) for token in tokens
    }
    for token in (*named.values(), *extra):
        if str(token) not in known and token not in tokens:
            tokens.append(token)
    names = {str(token) for token in named.values()}
    made = [AddedToken(token, special=True) if isinstance(token, str) else token for token in tokens]
    for token in made:
        if str(token) in names:
            token.special = True
    if made:
        tokenizer.add_tokens(made)


def _add_ends(tokenizer: Tokenizer, special: Mapping[str, str], settings: Mapping[str, Any]) -> None:
    """Puts the bos token before and the eos token after each text, where the settings ask for it."""
    from tokenizers import processors

    begin = special.get("bos_token") if settings.get("add_bos_token") else None
    end = special.get("eos_token") if settings.get("add_eos_token") else None
    used = [token for token in (begin, end) if token is not None]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join([*([f"{begin}:0"] if begin else []), "$A:0", *([f"{end}:0"] if end else [])]),
        pair=None,
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in dict.fromkeys(used)],
    )


def _gpt2(files: Mapping[str, bytes], prefix_space: bool, is_neox: bool) -> Tokenizer:
    """GPT-2's kind of tokenizer, with the vocabulary of the files.

    That of GPT-NeoX normalises the text, and puts nothing around it, whatever tokenizer.json says.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    whole = None
    if TOKENIZER_FILE in files:
        whole = _from_text(files)
        model = json.loads(files[TOKENIZER_FILE])["model"]
        vocab = model["vocab"]
        if isinstance(vocab, list):
            vocab = {(entry[0] if isinstance(entry, list) else entry): index for index, entry in enumerate(vocab)}
        merges = list(_pairs(model.get("merges", [])))
    else:
        vocab = _json_object(files, VOCAB_FILE)
        lines = _text(files[MERGES_FILE]).split("\n")
        merges = list(_pairs(line for line in lines if line and not line.startswith("#version")))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    if is_neox:
        tokenizer.normalizer = normalizers.NFC()
    if whole is not None:
        if whole.post_processor is not None and not is_neox:
            tokenizer.post_processor = whole.post_processor
        if whole.padding is not None:
            tokenizer.enable_padding(**whole.padding)
        if whole.truncation is not None:
            tokenizer.enable_truncation(**whole.truncation)
    return tokenizer


def _pairs(merges: Iterable[str | list[str]]) -> Iterator[tuple[str, str]]:
    """The two parts of each merge, which is a line of merges.txt or a list."""
    for merge in merges:
        first, second = merge.split(" ") if isinstance(merge, str) else merge
        yield first, second


def _from_text(files: Mapping[str, bytes]) -> Tokenizer:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(files[TOKENIZER_FILE].decode("utf-8"))


def _chat_template(files: Mapping[str, bytes], settings: Mapping[str, Any]) -> str | dict[str, str] | None:
    """The template of a file of its own; without one, that of the settings."""
    prefix = f"{CHAT_TEMPLATES_FOLDER}/"
    templates = {"default": _text(files[CHAT_TEMPLATE_FILE])} if CHAT_TEMPLATE_FILE in files else {}
    for name, content in files.items():
        if name.startswith(prefix):
            templates[name.removeprefix(prefix).removesuffix(".jinja")] = _text(content)
    if [*templates] == ["default"]:
        return templates["default"]
    template = templates or settings.get("chat_template")
    if isinstance(template, list):
        return {entry["name"]: entry["template"] for entry in template}
    return template


def _text(content: bytes) -> str:
    """The text of a file, whose lines end with \\n whatever they end with in the file."""
    return content.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")


def _json_object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """A JSON file that holds an object; {} where there is no such file."""
    if name not in files:
        return {}
    try:
        value = json.loads(files[name].decode("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{name}: not JSON: {first_line(error)}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{name}: must hold a JSON object")
    return value


def _token(value: Any) -> AddedToken | str:
    from tokenizers import AddedToken

    return AddedToken(**_flags(value)) if isinstance(value, dict) else value


def _flags(token: Mapping[str, Any]) -> dict[str, Any]:
    """A token's content and flags, without its id and the name of its class."""
    return {key: value for key, value in token.items() if key not in ("id", "__type")}


def _content(token: Any) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token)
