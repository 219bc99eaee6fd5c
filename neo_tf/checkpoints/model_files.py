"""The files that lie beside a model's weights and belong to it: its tokenizer's, and generation_config.json.

A Checkpoint carries them as they are, and every writer writes them. Where a format says something without a file, the
file is made when the checkpoint is opened, so that it keeps its meaning in another format, and left out again when it
is written in the same one.
"""

import json
from pathlib import Path
from typing import Any, Literal

from neo_tf.checkpoints.checkpoint import Checkpoint
from neo_tf.checkpoints.tokenizer_files import find_tokenizer, is_named
from neo_tf.config import GPTNeoConfig
from neo_tf.config_formats import IDS_LEFT_OUT
from neo_tf.errors import CheckpointError
from neo_tf.file_names import GENERATION_CONFIG_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE
from neo_tf.json_files import read_json
from neo_tf.tokenizer_backend import AS_IT_IS, GPT2_CLASS, GPT_NEOX_CLASS, has_tokenizer, load_tokenizer

Format = Literal["mesh-tf", "huggingface", "keras", "random", "onnx"]

# Older folders have settings of generation in config.json. transformers reads these of them, if there is no
# generation_config.json.
_GENERATION_KEYS = (
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_new_tokens",
    "early_stopping",
    "max_time",
    "stop_strings",
    "do_sample",
    "num_beams",
    "num_beam_groups",
    "penalty_alpha",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "top_h",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "diversity_penalty",
    "repetition_penalty",
    "length_penalty",
    "encoder_repetition_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "renormalize_logits",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "remove_invalid_values",
    "exponential_decay_length_penalty",
    "suppress_tokens",
    "begin_suppress_tokens",
    "sequence_bias",
    "guidance_scale",
    "num_return_sequences",
    "decoder_start_token_id",
)


def read_files(
    form: Format,
    folder: Path | None,
    config: GPTNeoConfig,
    tokenizer: Path | str | None = None,
    needs_tokenizer: bool = True,
) -> dict[str, bytes]:
    """The files of a model, {name: content}.

    Args:
        form: The format of the folder.
        folder: The folder of the weights, or None where the weights lie nowhere.
        config: The model's config.
        tokenizer: As in find_tokenizer.
        needs_tokenizer: The argument `needed` of find_tokenizer.

    Raises:
        CheckpointError: See find_tokenizer; or generation_config.json is not a JSON object.
        ConfigError: generation_config.json cannot be read, or is not JSON.
    """
    files = find_tokenizer(folder, config.n_vocab, tokenizer, config.training.get("datasets"), needs_tokenizer)
    path = None if folder is None else Path(folder) / GENERATION_CONFIG_FILE
    if path is not None and path.is_file():
        if not isinstance(read_json(path), dict):
            raise CheckpointError(f"{path}: the settings of generation must be a JSON object")
        files[GENERATION_CONFIG_FILE] = path.read_bytes()
    # A tokenizer that is not the folder's own is taken as it is.
    own = form if folder is not None and tokenizer is None and is_named(Path(folder)) else "random"
    return _implied(own, config, files) | _implied_generation(form, config) | files


def write_files(form: Format, checkpoint: Checkpoint, folder: Path) -> None:
    """Writes the files of a model into a folder of a format.

    An ONNX folder gets a tokenizer.json in any case, because other runtimes read nothing else.

    Raises:
        OSError: A file cannot be written.
    """
    files = dict(checkpoint.files)
    if not files:  # a Checkpoint that was made by hand
        files = _implied_generation("random", checkpoint.config)
    if form == "onnx" and has_tokenizer(files) and TOKENIZER_FILE not in files:
        files |= _with_tokenizer_file(files, checkpoint.path)
    implied = _implied(form, checkpoint.config, files) | _implied_generation(form, checkpoint.config)
    for name, content in files.items():
        if form == "onnx" or content != implied.get(name):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)


def _with_tokenizer_file(files: dict[str, bytes], source: Path) -> dict[str, bytes]:
    """The tokenizer.json that vocab.json and merges.txt mean, and a tokenizer_config.json that lets it count."""
    backend = load_tokenizer(files, source)
    made = {TOKENIZER_FILE: backend.tokenizer.to_str().encode()}
    settings = backend.settings
    puts_ends = settings.get("add_bos_token") or settings.get("add_eos_token")
    if puts_ends and GPT_NEOX_CLASS in str(settings.get("tokenizer_class")):
        # This class takes from a tokenizer.json nothing that is put around a text.
        own = json.loads(files[TOKENIZER_CONFIG_FILE])
        made[TOKENIZER_CONFIG_FILE] = _json(own | backend.special_tokens | {"tokenizer_class": AS_IT_IS})
    return made


def _implied(form: str, config: GPTNeoConfig, files: dict[str, bytes]) -> dict[str, bytes]:
    """What a tokenizer without tokenizer_config.json means in a format, as such a file."""
    if not has_tokenizer(files):
        return {}
    if form == "huggingface" or TOKENIZER_FILE not in files:
        return {TOKENIZER_CONFIG_FILE: _json({"tokenizer_class": GPT2_CLASS})}
    settings: dict[str, Any] = {
        "tokenizer_class": AS_IT_IS,
        "model_max_length": config.n_ctx,
        "clean_up_tokenization_spaces": False,
    }
    if config.eos_token_id is not None:
        own = {name: content for name, content in files.items() if name != TOKENIZER_CONFIG_FILE}
        as_it_is = _json({"tokenizer_class": AS_IT_IS})
        tokenizer = load_tokenizer(own | {TOKENIZER_CONFIG_FILE: as_it_is}, TOKENIZER_FILE).tokenizer
        end = tokenizer.id_to_token(config.eos_token_id)
        if end is not None:
            settings |= {"bos_token": end, "eos_token": end, "unk_token": end}
    return {TOKENIZER_CONFIG_FILE: _json(settings)}


def _implied_generation(form: str, config: GPTNeoConfig) -> dict[str, bytes]:
    """What a model without generation_config.json means in a format, as such a file."""
    ids = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.huggingface_keys.get("eos_token_id", config.eos_token_id),
        "pad_token_id": config.pad_token_id_in_vocab,
    }
    values = {key: value for key, value in ids.items() if value is not None}
    if form == "huggingface":
        if "eos_token_id" in config.huggingface_keys.get(IDS_LEFT_OUT, ()):
            values.pop("eos_token_id", None)
        older = {key: config.huggingface_keys.get(key) for key in _GENERATION_KEYS}
        values = (
            {"_from_model_config": True} | values | {key: value for key, value in older.items() if value is not None}
        )
    return {GENERATION_CONFIG_FILE: _json(values)}


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
