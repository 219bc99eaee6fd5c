"""Reading a tokenizer's files as transformers' AutoTokenizer reads them beside a GPT-Neo.

A setting may stand in tokenizer.json, tokenizer_config.json, special_tokens_map.json or added_tokens.json. This file
follows transformers 5 (its tokenization_utils_base.py, tokenization_utils_tokenizers.py and tokenization_gpt2.py) in
which of them counts.
"""

from __future__ import annotations

import json
import re
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
    VOCAB_TEXT_FILE,
)
from neo_tf.tokenizer_classes import CLASSES, UNKNOWN_HERE, TokenizerClass, Vocabulary

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Under this key transformers keeps special tokens with names that it does not know itself.
_NAMES_OF_ONES_OWN = "model_specific_special_tokens"
# The class that takes a tokenizer.json as it is. transformers 5 calls it TokenizersBackend.
AS_IT_IS = "PreTrainedTokenizerFast"
GPT2_CLASS = "GPT2Tokenizer"
GPT_NEOX_CLASS = "GPTNeoXTokenizer"
# The newest tokenizer.X.Y.json that fast_tokenizer_files can name is that of this version of transformers.
_TRANSFORMERS = (5, 24)


@dataclass(frozen=True)
class TokenizerBackend:
    """A tokenizer, and what its files say about it.

    Args:
        tokenizer: The tokenizer. It neither truncates nor pads.
        special_tokens: The tokens that have a name, {"eos_token": "<|endoftext|>", ...}.
        extra_special_tokens: Special tokens that have no name.
        can_clean: Whether decoding can remove the spaces before punctuation, where that is asked for.
        chat_template: A Jinja template, or several by name; None where there is none.
        settings: All settings of tokenizer_config.json.
    """

    tokenizer: Tokenizer
    special_tokens: dict[str, str]
    extra_special_tokens: tuple[str, ...]
    can_clean: bool
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
            files[name] = read_file(path)
    return _with_class(_with_named_file(folder, files))


def read_file(path: Path) -> bytes:
    """The bytes of a tokenizer's file.

    Raises:
        CheckpointError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None


def _with_named_file(folder: Path, files: dict[str, bytes]) -> dict[str, bytes]:
    """The files with the tokenizer.X.Y.json that fast_tokenizer_files names in the place of tokenizer.json.

    Raises:
        CheckpointError: The file that is named is missing.
    """
    try:
        settings = json.loads(files.get(TOKENIZER_CONFIG_FILE, b"{}"))
    except ValueError:
        return files  # load_tokenizer says what is wrong with it
    if not isinstance(settings, dict) or not isinstance(settings.get("fast_tokenizer_files"), list):
        return files
    chosen = TOKENIZER_FILE
    for version, name in sorted(_versions(settings.pop("fast_tokenizer_files"))):
        if tuple(map(int, version.split("."))) > _TRANSFORMERS:
            break
        chosen = name
    if chosen != TOKENIZER_FILE:
        path = folder / Path(chosen).name
        if not path.is_file():
            raise CheckpointError(f"{path}: missing, but {TOKENIZER_CONFIG_FILE} names it in fast_tokenizer_files")
        files[TOKENIZER_FILE] = read_file(path)
    files[TOKENIZER_CONFIG_FILE] = json.dumps(settings, indent=2).encode()
    return files


def _versions(names: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """The version in each name such as tokenizer.4.0.json, and the name."""
    for name in names:
        found = re.fullmatch(r"tokenizer\.(\d+(?:\.\d+)*)\.json", str(name))
        if found:
            yield found[1], str(name)


def _with_class(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files without config.json. A tokenizer_class that stands there alone is put into tokenizer_config.json."""
    try:
        config = json.loads(files.pop(CONFIG_FILE, b"{}"))
    except ValueError:
        return files  # whoever needs the config says what is wrong with it
    declared = config.get("tokenizer_class") if isinstance(config, dict) else None
    if declared and (has_tokenizer(files) or VOCAB_TEXT_FILE in files):
        settings = _json_object(files, TOKENIZER_CONFIG_FILE)
        if not settings.get("tokenizer_class"):
            files[TOKENIZER_CONFIG_FILE] = json.dumps(settings | {"tokenizer_class": declared}, indent=2).encode()
    return files


def has_tokenizer(files: Mapping[str, bytes]) -> bool:
    """Whether load_tokenizer can make a tokenizer of these files, or say what is wrong with them."""
    if TOKENIZER_FILE in files or (VOCAB_FILE in files and MERGES_FILE in files):
        return True
    if VOCAB_TEXT_FILE not in files:
        return False
    try:
        found = CLASSES.get(_class_name(_json_object(files, TOKENIZER_CONFIG_FILE)))
    except CheckpointError:
        return True
    return found is not None and found.model == "WordPiece"


def _class_name(settings: Mapping[str, Any]) -> str:
    return str(settings.get("tokenizer_class") or GPT2_CLASS).removesuffix("Fast")


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
    added = _merge_special_tokens(files, settings)
    kind = _class_of(files, settings)
    if kind is None:
        tokenizer = _from_text(files)
    else:
        for key, token in kind.special_tokens.items():
            settings.setdefault(key, token)
        tokenizer = _built(kind, files, settings)
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
    if kind is not None:
        _finish(kind, tokenizer, special, extra)
    tokenizer.encode_special_tokens = bool(settings.get("split_special_tokens", False))
    can_clean = type(tokenizer.model).__name__ != "BPE" or bool(
        settings.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output")
    )
    extras = tuple(dict.fromkeys(map(str, extra)))
    return TokenizerBackend(tokenizer, special, extras, can_clean, _chat_template(files, settings), settings)


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


def _class_of(files: Mapping[str, bytes], settings: Mapping[str, Any]) -> TokenizerClass | None:
    """The class that builds the tokenizer; None where tokenizer.json is taken as it is.

    Raises:
        CheckpointError: The class is one that transformers knows and neo-tf does not, or it needs a tokenizer.json.
    """
    name = _class_name(settings)
    if name in UNKNOWN_HERE:
        raise CheckpointError(
            f"its tokenizer is a {settings['tokenizer_class']}, which neo-tf does not build: load it with transformers,"
            f" save its backend_tokenizer as {TOKENIZER_FILE}, and name the tokenizer_class {AS_IT_IS}"
        )
    is_bytes = TOKENIZER_FILE in files and b'"ByteLevel"' in files[TOKENIZER_FILE]
    kind = None if name == "LlamaTokenizer" and is_bytes else CLASSES.get(name)
    is_whole = TOKENIZER_FILE in files
    has_pairs = kind is not None and kind.reads_merges and VOCAB_FILE in files and MERGES_FILE in files
    has_words = kind is not None and kind.model == "WordPiece" and VOCAB_TEXT_FILE in files
    if not (is_whole or has_pairs or has_words):
        raise CheckpointError(
            f"its tokenizer is a {settings['tokenizer_class']} without {TOKENIZER_FILE}, which only transformers"
            f" can read: load it there and save it, which writes {TOKENIZER_FILE}"
        )
    return kind


def _built(kind: TokenizerClass, files: Mapping[str, bytes], settings: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a class builds of the files' vocabulary. Padding and truncation are tokenizer.json's."""
    if TOKENIZER_FILE not in files:
        return kind.build(_vocabulary_of_files(files, kind), settings)
    whole = _from_text(files)
    tokenizer = kind.build(_vocabulary(json.loads(files[TOKENIZER_FILE]), kind), settings)
    if whole.post_processor is not None and kind.keeps_processor:
        tokenizer.post_processor = whole.post_processor
    if whole.padding is not None:
        tokenizer.enable_padding(**whole.padding)
    if whole.truncation is not None:
        tokenizer.enable_truncation(**whole.truncation)
    return tokenizer


def _vocabulary(content: Mapping[str, Any], kind: TokenizerClass) -> Vocabulary:
    """What a class takes of a tokenizer.json."""
    model = content["model"]
    tokens = model["vocab"]
    if kind.model == "Unigram":
        tokens = [tuple(entry) for entry in tokens]
    elif isinstance(tokens, list):
        tokens = {(entry[0] if isinstance(entry, list) else entry): index for index, entry in enumerate(tokens)}
    merges = list(_pairs(model.get("merges", []))) if kind.model == "BPE" else []
    normalizer = content.get("normalizer") or {}
    parts = normalizer["normalizers"] if normalizer.get("type") == "Sequence" else [normalizer]
    charsmap = next((part["precompiled_charsmap"] for part in parts if part.get("type") == "Precompiled"), None)
    return Vocabulary(tokens, merges, charsmap)


def _vocabulary_of_files(files: Mapping[str, bytes], kind: TokenizerClass) -> Vocabulary:
    """The vocabulary of vocab.json and merges.txt, or of vocab.txt."""
    if kind.model == "WordPiece":
        lines = files[VOCAB_TEXT_FILE].decode("utf-8").removesuffix("\n").split("\n")
        return Vocabulary({line.rstrip(): index for index, line in enumerate(lines)})
    lines = _text(files[MERGES_FILE]).split("\n")
    merges = list(_pairs(line for line in lines if line and not line.startswith("#version")))
    return Vocabulary(_json_object(files, VOCAB_FILE), merges)


def _finish(
    kind: TokenizerClass, tokenizer: Tokenizer, special: Mapping[str, str], extra: Iterable[AddedToken | str]
) -> None:
    """What a class does at last: it adds all special tokens, or puts its own around each text."""
    from tokenizers import AddedToken

    if kind.names_all:
        names = dict.fromkeys([*special.values(), *map(str, extra)])
        tokenizer.add_tokens([AddedToken(name, special=True) for name in names])
    if kind.around is not None:
        tokenizer.post_processor = kind.around(special, tokenizer.token_to_id)


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
