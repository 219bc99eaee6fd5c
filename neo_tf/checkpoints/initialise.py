"""Models with random weights: a start for training, a load for tests."""

from pathlib import Path

from neo_tf.checkpoints.checkpoint import DTYPES, Checkpoint, LazyTensor
from neo_tf.checkpoints.save import save_checkpoint
from neo_tf.checkpoints.tokenizer_files import find_tokenizer, with_token_ids
from neo_tf.config import GPTNeoConfig
from neo_tf.config_values import GPT2_VOCAB_SIZE
from neo_tf.errors import RequestError
from neo_tf.variables import initial_value, model_variables


def _released(n_layer, n_head, n_embd):
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


def init_checkpoint(size, dst, to="keras", *, seed=0, tokenizer=None, force=False, progress=None):
    """Writes a checkpoint with random weights, distributed as the original initialises them.

    Args:
        size, seed, tokenizer: see random_checkpoint.
        dst, to, force, progress: see convert.

    Returns:
        The Checkpoint that was written.

    Raises:
        RequestError, ConfigError: see random_checkpoint.
        OutputError: see convert.
    """
    checkpoint = random_checkpoint(size, seed=seed, tokenizer=tokenizer)
    save_checkpoint(checkpoint, dst, to, force=force, progress=progress)
    return checkpoint


def random_checkpoint(size, *, seed=0, tokenizer=None):
    """A Checkpoint whose tensors are drawn when they are read.

    Args:
        size: a key of PRESETS, or the path of a config in either format.
        seed: a non-negative integer; the same seed gives the same weights on every machine.
        tokenizer: see open_checkpoint.

    Raises:
        RequestError: `size` is neither a preset nor a file, or the seed is negative.
        ConfigError: the config cannot be used.
    """
    path = Path(size)
    if str(size) in PRESETS:
        config, folder = PRESETS[str(size)], None
    elif path.is_file():
        config, folder = with_token_ids(GPTNeoConfig.from_file(path), path.parent), path.parent
    else:
        raise RequestError(f"{size}: neither a size ({', '.join(PRESETS)}) nor a config file")
    if seed < 0:
        raise RequestError(f"seed must not be negative, not {seed}")
    dtype = DTYPES[config.precision]
    tensors = {
        name: LazyTensor(
            variable.shape,
            dtype,
            lambda name=name, variable=variable: initial_value(name, variable, seed).astype(dtype, copy=False),
        )
        for name, variable in model_variables(config).items()
    }
    return Checkpoint(path, "random", config, tensors, find_tokenizer(folder, config.n_vocab, tokenizer))
