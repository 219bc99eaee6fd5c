"""Models with random weights: a start for training, and a load for tests."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from neo_tf.checkpoints.checkpoint import Checkpoint, LazyTensor
from neo_tf.checkpoints.dtypes import DTYPES
from neo_tf.checkpoints.model_files import read_files
from neo_tf.checkpoints.save import save_checkpoint
from neo_tf.checkpoints.tokenizer_files import with_token_ids
from neo_tf.config import GPTNeoConfig
from neo_tf.config_values import GPT2_VOCAB_SIZE
from neo_tf.errors import RequestError
from neo_tf.progress import Progress
from neo_tf.variables import Variable, initial_value, model_variables


def _released(n_layer: int, n_head: int, n_embd: int) -> GPTNeoConfig:
    return GPTNeoConfig(
        n_vocab=GPT2_VOCAB_SIZE,
        n_ctx=2048,
        n_embd=n_embd,
        n_head=n_head,
        n_layer=n_layer,
        attention_types=("global", "local") * (n_layer // 2),
        eos_token_id=GPT2_VOCAB_SIZE - 1,
    )


# The released models' shapes, from the configs that lie beside their weights.
PRESETS = {
    "125M": _released(12, 12, 768),
    "350M": _released(24, 16, 1024),
    "1.3B": _released(24, 16, 2048),
    "2.7B": _released(32, 20, 2560),
}


def init_checkpoint(
    size: Path | str,
    dst: Path | str,
    to: str = "keras",
    *,
    seed: int = 0,
    tokenizer: Path | str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Checkpoint:
    """Writes a checkpoint with random weights, distributed as the original initialises them.

    Args:
        size: As in random_checkpoint; seed and tokenizer too.
        dst: The folder to write; to, force and progress are as in convert.

    Returns:
        The Checkpoint that was written.

    Raises:
        RequestError, ConfigError: See random_checkpoint.
        OutputError: See convert.
    """
    checkpoint = random_checkpoint(size, seed=seed, tokenizer=tokenizer)
    save_checkpoint(checkpoint, dst, to, force=force, progress=progress)
    return checkpoint


def random_checkpoint(size: Path | str, *, seed: int = 0, tokenizer: Path | str | None = None) -> Checkpoint:
    """Makes a Checkpoint whose tensors are drawn when they are read.

    Args:
        size: A key of PRESETS, or the path of a config in either format.
        seed: An integer that is not negative. The same seed gives the same weights on every machine.
        tokenizer: As in open_checkpoint.

    Raises:
        RequestError: `size` is neither a preset nor a file, or the seed is negative.
        ConfigError: The config cannot be used.
    """
    path = Path(size)
    folder: Path | None
    if str(size) in PRESETS:
        config = PRESETS[str(size)]
        folder = None
    elif path.is_file():
        config = with_token_ids(GPTNeoConfig.from_file(path), path.parent)
        folder = path.parent
    else:
        raise RequestError(f"{size}: neither a size ({', '.join(PRESETS)}) nor a config file")
    if seed < 0:
        raise RequestError(f"seed must not be negative, but it is {seed}")
    return drawn_checkpoint(path, config, seed, read_files("random", folder, config, tokenizer))


def drawn_checkpoint(path: Path, config: GPTNeoConfig, seed: int, files: Mapping[str, bytes]) -> Checkpoint:
    """A Checkpoint of a config, whose tensors are drawn when they are read.

    Args:
        path: Where the config comes from, for messages.
        config: The config.
        seed: As in random_checkpoint.
        files: The model's files, as in Checkpoint.
    """
    dtype = DTYPES[config.precision]
    tensors = {
        name: LazyTensor(variable.shape, dtype, partial(_draw, name, variable, seed, dtype))
        for name, variable in model_variables(config).items()
    }
    return Checkpoint(path, "random", config, tensors, files)


def _draw(name: str, variable: Variable, seed: int, dtype: np.dtype) -> np.ndarray:
    return initial_value(name, variable, seed).astype(dtype, copy=False)
