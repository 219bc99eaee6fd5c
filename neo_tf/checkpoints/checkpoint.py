"""Checkpoint: a config, a tokenizer, and tensors under canonical names that are read one at a time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neo_tf.checkpoints.dtypes import DTYPES, dtype_name
from neo_tf.config import GPTNeoConfig
from neo_tf.errors import CheckpointError, ConfigError
from neo_tf.notes import note
from neo_tf.tokenizer_backend import has_tokenizer, load_tokenizer
from neo_tf.variables import ROOT, model_variables

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BLOCK = 1 << 22  # the numbers of a tensor that are looked at together


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is not in memory.

    Args:
        shape: The tensor's shape.
        dtype: The tensor's type.
        read: Reads the tensor; called without arguments. It reads anew with each call.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """The number of bytes that the tensor takes once it is read."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def transposed(self) -> "LazyTensor":
        """The transposed tensor."""
        return LazyTensor(self.shape[::-1], self.dtype, lambda: np.ascontiguousarray(self.read().T))


def _nothing_else_to_verify() -> None:
    pass


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk, in any format.

    Args:
        path: Where the checkpoint lies. It is used in messages.
        format: "mesh-tf", "huggingface" or "keras"; "random" where the tensors are drawn and not stored.
        config: The model's config.
        tensors: {canonical name: LazyTensor}, which must be exactly the model's variables.
        files: {name: content} of what lies beside the weights and belongs to the model: its tokenizer,
            generation_config.json. The names and contents are those that transformers reads. Every writer writes them.
        verify: Reads the stored values that are not part of the model, such as optimizer slots, so that a damaged
            file is noticed. Code that copies the checkpoint calls it once.

    Raises:
        CheckpointError: The checkpoint has variables that the model does not know, or lacks some; both are listed.
            Or a tensor's type is not one of DTYPES.
        ConfigError: A tensor's shape contradicts the config.

    Example:
        checkpoint = open_checkpoint("models/keras")
        checkpoint.read("gpt2/h0/attn/q").shape  # (n_embd, n_embd)
    """

    path: Path
    format: str
    config: GPTNeoConfig
    tensors: dict[str, LazyTensor]
    files: Mapping[str, bytes] = field(default_factory=dict)
    verify: Callable[[], None] = field(default=_nothing_else_to_verify, compare=False)

    def __post_init__(self) -> None:
        check_tensors(self.path, self.config, self.tensors)

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor by its canonical name, in the original's orientation and in its stored type."""
        return self.tensors[name].read()

    @cached_property
    def tokenizer(self) -> "Tokenizer | None":
        """The tokenizer as transformers makes it of the files; None where the checkpoint has none."""
        return load_tokenizer(self.files, self.path).tokenizer if has_tokenizer(self.files) else None

    def refusing_nan(self) -> "Checkpoint":
        """The same checkpoint, whose tensors raise a CheckpointError when they are read and hold NaN or Inf."""
        checked = {
            name: replace(tensor, read=partial(_read_finite, self.path, name, tensor))
            for name, tensor in self.tensors.items()
        }
        return replace(self, tensors=checked)

    @property
    def nbytes(self) -> int:
        """The number of bytes of all tensors together."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def dtype(self) -> str:
        """The type of the token embedding, which most of the weights have: a key of DTYPES."""
        return dtype_name(self.tensors[f"{ROOT}/wte"].dtype)

    def with_vocab(self, n_vocab: int) -> "Checkpoint":
        """The same checkpoint with the token embedding trimmed to its first n_vocab rows.

        Raises:
            ConfigError: n_vocab is larger than the vocabulary, or cuts off ids that the tokenizer or the config uses.
        """
        if n_vocab == self.config.n_vocab:
            return self
        if not 0 < n_vocab < self.config.n_vocab:
            raise ConfigError(f"cannot trim a vocabulary of {self.config.n_vocab} to {n_vocab}")
        if self.tokenizer is not None:
            used = self.tokenizer.get_vocab_size()
            if used > n_vocab:
                raise ConfigError(f"cannot trim the vocabulary to {n_vocab}: the tokenizer uses {used} ids")
        eos = self.config.huggingface_keys.get("eos_token_id")
        named = [self.config.bos_token_id, *(eos if isinstance(eos, list) else [])]
        lost = [token for token in named if isinstance(token, int) and n_vocab <= token < self.config.n_vocab]
        if lost:
            raise ConfigError(f"cannot trim the vocabulary to {n_vocab}: the config uses the id {lost[0]}")
        config = self.config.replace(n_vocab=n_vocab)
        trimmed = {
            name: _trim(self.tensors[name], variable.shape)
            for name, variable in model_variables(config).items()
            if self.tensors[name].shape != variable.shape
        }
        return replace(self, config=config, tensors=self.tensors | trimmed)


def _trim(tensor: LazyTensor, shape: tuple[int, ...]) -> LazyTensor:
    """The leading part of a tensor, in the given shape."""
    corner = tuple(slice(size) for size in shape)
    return LazyTensor(shape, tensor.dtype, lambda: tensor.read()[corner].copy())


def _read_finite(path: Path, name: str, tensor: LazyTensor) -> np.ndarray:
    """Reads a tensor whose numbers must all be finite."""
    value = tensor.read()
    nan = 0
    infinite = 0
    flat = value.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        if not np.isfinite(block).all():
            nan += int(np.isnan(block).sum())
            infinite += int(np.isinf(block).sum())
    if nan or infinite:
        found = " and ".join(f"{count:,} {kind}" for count, kind in ((nan, "NaN"), (infinite, "Inf")) if count)
        raise CheckpointError(
            f"{path}: {name} holds {found} among {value.size:,} numbers: the weights are damaged "
            "(--allow-nan takes them as they are)"
        )
    return value


def narrowed(path: Path, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The tensors, those of float64 as float32, which is the widest type here. A note says so."""
    wide = [name for name, tensor in tensors.items() if tensor.dtype == np.float64]
    if wide:
        note(f"{path}: {len(wide)} tensors in float64 are rounded to float32")
    narrow = {
        name: replace(tensors[name], dtype=DTYPES["float32"], read=partial(_read_narrowed, path, name, tensors[name]))
        for name in wide
    }
    return {**tensors, **narrow}


def _read_narrowed(path: Path, name: str, tensor: LazyTensor) -> np.ndarray:
    value = tensor.read()
    with np.errstate(over="ignore"):
        rounded = value.astype(np.float32)
    lost = np.isinf(rounded) & np.isfinite(value)
    if lost.any():
        raise CheckpointError(f"{path}: {name} holds {np.abs(value[lost]).max():g}, which is too large for float32")
    return rounded


def check_tensors(path: Path | str, config: GPTNeoConfig, tensors: Mapping[str, LazyTensor]) -> None:
    """Compares a checkpoint's tensors with the variables of its config.

    Raises:
        CheckpointError, ConfigError: See Checkpoint.
    """
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


def _relevant_sizes(name: str, config: GPTNeoConfig) -> str:
    """The config's values that a variable's shape depends on, for a message."""
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


def _listed(names: Sequence[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{len(names)} ({', '.join(names[:limit])}{more})"
