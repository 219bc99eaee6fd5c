"""Checkpoint: a config, a tokenizer, and tensors under canonical names that are read when they are asked for."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import ml_dtypes
import numpy as np

from neo_tf.config import GPTNeoConfig
from neo_tf.errors import CheckpointError, ConfigError
from neo_tf.variables import ROOT, model_variables

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is not in memory yet: its shape, its dtype, and what reads it."""

    shape: tuple
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self):
        """Bytes that the tensor takes once read."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk, in any format.

    Args:
        path: where it lies; used in messages.
        format: "mesh-tf", "huggingface" or "keras".
        config: a GPTNeoConfig.
        tensors: {canonical name: LazyTensor}, exactly the model's variables.
        tokenizer: the text of a tokenizer.json, or None where none is known.
        verify: called once by whoever copies the checkpoint: reads what is not part of the model (optimizer slots)
            so that a damaged file is noticed. Takes a progress callback.

    Raises:
        CheckpointError: variables that the model does not know, or missing ones; both are listed.
        ConfigError: a tensor whose shape contradicts the config.
    """

    path: Path
    format: str
    config: GPTNeoConfig
    tensors: dict
    tokenizer: str | None = None
    verify: Callable = field(default=lambda: None, compare=False)

    def __post_init__(self):
        check_tensors(self.path, self.config, self.tensors)

    def read(self, name):
        """Reads one tensor, in the original's orientation and its stored precision."""
        return self.tensors[name].read()

    @property
    def nbytes(self):
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def dtype(self):
        """The precision that most of the weights have: a key of DTYPES."""
        dtype = self.tensors[f"{ROOT}/wte"].dtype
        return next(name for name, known in DTYPES.items() if known == dtype)

    def with_vocab(self, n_vocab):
        """The same checkpoint with the embedding trimmed to its first n_vocab rows.

        Raises:
            ConfigError: n_vocab is larger than the vocabulary, or cuts off ids that the tokenizer or the config uses.
        """
        if n_vocab == self.config.n_vocab:
            return self
        if not 0 < n_vocab < self.config.n_vocab:
            raise ConfigError(f"cannot trim a vocabulary of {self.config.n_vocab} to {n_vocab}")
        if self.tokenizer is not None:
            from tokenizers import Tokenizer

            used = Tokenizer.from_str(self.tokenizer).get_vocab_size()
            if used > n_vocab:
                raise ConfigError(f"cannot trim the vocabulary to {n_vocab}: the tokenizer uses {used} ids")
        config = self.config.replace(n_vocab=n_vocab)
        trimmed = {
            name: _trim(self.tensors[name], variable.shape)
            for name, variable in model_variables(config).items()
            if self.tensors[name].shape != variable.shape
        }
        return replace(self, config=config, tensors=self.tensors | trimmed)


def _trim(tensor, shape):
    """The leading part of a tensor, of that shape."""
    corner = tuple(slice(size) for size in shape)
    return LazyTensor(shape, tensor.dtype, lambda: tensor.read()[corner].copy())


def check_tensors(path, config, tensors):
    """Compares a checkpoint's tensors with the variables of its config; raises as Checkpoint does."""
    expected = model_variables(config)
    problems = []
    missing = [name for name in expected if name not in tensors]
    unknown = [name for name in tensors if name not in expected]
    if missing:
        problems.append(f"missing {_listed(missing)}")
    if unknown:
        problems.append(f"unknown to the model {_listed(unknown)}")
    if problems:
        raise CheckpointError(f"{path}: variables do not fit the config: {'; '.join(problems)}")
    for name, variable in expected.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != variable.shape:
            raise ConfigError(
                f"{path}: {name} has shape {list(tensor.shape)}, but the config asks for {list(variable.shape)}"
                f" ({_relevant_sizes(name, config)})"
            )
        if tensor.dtype not in DTYPES.values():
            raise CheckpointError(f"{path}: {name} is of type {tensor.dtype}, not one of {', '.join(DTYPES)}")


def _relevant_sizes(name, config):
    keys = ["n_embd"]
    if name.endswith("wte"):
        keys.append("n_vocab")
    elif name.endswith("wpe"):
        keys.append("n_ctx")
    elif "/attn/" in name:
        keys.append("n_head")
    elif "/mlp/" in name:
        keys.append("n_inner")
    return ", ".join(f"{key} {getattr(config, key)}" for key in keys)


def _listed(names, limit=8):
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{len(names)} ({', '.join(names[:limit])}{more})"
