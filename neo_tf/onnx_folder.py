"""An ONNX folder's files and config: the contract between export and runtime."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum, auto
from pathlib import Path
from typing import Any

from neo_tf.config import GPTNeoConfig
from neo_tf.errors import ConfigError, RequestError
from neo_tf.file_names import CONFIG_FILE, TOKENIZER_FILE
from neo_tf.git_lfs import refuse_pointer
from neo_tf.json_files import read_json

FORMAT = 5  # changes whenever the runtime needs other graphs or files than before
DATA_FILE = "model.onnx_data"  # the weights of all graphs
# The kinds of graph: one for every runtime, one for our runtime, one that runs our runtime's prompts, and one that
# returns hidden states.
MODEL, DECODER, PREFILL, ENCODER = "model", "decoder", "prefill", "encoder"
DECODER_FILE = f"{DECODER}.onnx"
HIDDEN_STATES = "last_hidden_state"  # the output of encoder.onnx
TOP_TOKENS = 64  # the number of most likely tokens that decoder.onnx for CUDA returns for each row


# The weights of a checkpoint, which are not part of an exported folder.
_CHECKPOINT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.weights.h5",
)


class PrecisionName(StrEnum):
    """The precisions that a model can be exported in."""

    fp32 = auto()
    fp16 = auto()
    bf16 = auto()
    int8 = auto()
    int4 = auto()


class Target(StrEnum):
    """The devices that a folder can be exported for."""

    cpu = auto()
    cuda = auto()


class Ops(StrEnum):
    """The operators of a folder's graphs: with ONNX Runtime's own, or with the ONNX standard's alone."""

    fused = auto()
    standard = auto()


PRECISIONS = tuple(name.value for name in PrecisionName)
TARGETS = tuple(target.value for target in Target)
OPS = tuple(ops.value for ops in Ops)
# The targets that run a precision fast; the first one is its default. On CPUs fp16 and bf16 gain nothing; on CUDA,
# attention has no fp32 kernel.
PRECISION_TARGETS = {
    "fp32": ("cpu",),
    "fp16": ("cuda",),
    "bf16": ("cuda",),
    "int8": ("cpu", "cuda"),
    "int4": ("cpu", "cuda"),
}


def top_tokens(config: GPTNeoConfig) -> int:
    """The number of most likely tokens that decoder.onnx for CUDA returns: TOP_TOKENS, or a smaller vocabulary."""
    return min(TOP_TOKENS, config.n_vocab)


def graph_files(
    precisions: Iterable[str], kinds: Iterable[str] = (MODEL, DECODER, PREFILL, ENCODER)
) -> dict[tuple[str, str], str]:
    """The file names of a folder's graphs, as {(precision, kind): file name}.

    The graphs of the first precision are named after their kind alone, those of the others like model_int8.onnx.
    """
    kinds = tuple(kinds)
    files = {}
    for number, precision in enumerate(precisions):
        suffix = "" if number == 0 else f"_{precision}"
        for kind in kinds:
            files[precision, kind] = f"{kind}{suffix}.onnx"
    return files


def can_decode(folder: Path) -> bool:
    """Whether a folder is one that neo-tf exported and decodes with.

    A decoder.onnx of another program beside a checkpoint does not make it one.
    """
    if not (folder / DECODER_FILE).is_file():
        return False
    if not any((folder / name).is_file() for name in _CHECKPOINT_FILES):
        return True
    try:
        params = read_json(folder / CONFIG_FILE)
    except ConfigError:
        return True
    return isinstance(params, dict) and "precisions" in params


@dataclass(frozen=True)
class OnnxFolder:
    """A folder that export_onnx wrote. Its config.json is read once, and this value is passed on.

    Args:
        path: The folder.
        config: The model's config.
        precisions: The names of the precisions that the folder holds; the first one is its default.
        target: The device that the folder was exported for: "cpu" or "cuda".
        ops: The operators of its graphs: "fused", or "standard" for other runtimes (model.onnx alone).
        windowed_caches: Whether decoder.onnx caches only the window of a local layer, as it does for the CPU. For CUDA
            its caches have full length.
    """

    path: Path
    config: GPTNeoConfig
    precisions: tuple[str, ...] = ("fp32",)
    target: str = "cpu"
    ops: str = "fused"
    windowed_caches: bool = True

    @classmethod
    def read(cls, folder: OnnxFolder | Path | str) -> OnnxFolder:
        """Reads a folder's config.json. An OnnxFolder is returned unchanged.

        Raises:
            ConfigError: config.json cannot be read or used.
            CheckpointError: A file is a Git LFS pointer.
        """
        if isinstance(folder, OnnxFolder):
            return folder
        folder = Path(folder)
        return cls._from_params(folder, read_json(folder / CONFIG_FILE))

    @classmethod
    def find(cls, path: Path | str) -> OnnxFolder | None:
        """Reads the ONNX folder at a path; returns None where something else is there, or nothing.

        Raises:
            ConfigError: see read.
        """
        folder = Path(path)
        if can_decode(folder):
            return cls.read(folder)
        if not (folder / f"{MODEL}.onnx").is_file() or not (folder / CONFIG_FILE).is_file():
            return None
        params = read_json(folder / CONFIG_FILE)  # a model.onnx of someone else lies beside another config.json
        is_ours = isinstance(params, dict) and params.get("ops") == "standard"
        return cls._from_params(folder, params) if is_ours else None

    @classmethod
    def _from_params(cls, folder: Path, params: dict[str, Any]) -> OnnxFolder:
        path = folder / CONFIG_FILE
        try:
            config = GPTNeoConfig.from_dict(params)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
        precisions = params.get("precisions", ["fp32"])
        if not isinstance(precisions, list) or not precisions or not set(map(str, precisions)) <= set(PRECISIONS):
            raise ConfigError(f"{path}: precisions must be a list of {', '.join(PRECISIONS)}, not {precisions!r}")
        target = params.get("target", "cpu")
        if target not in TARGETS:
            raise ConfigError(f"{path}: target must be {' or '.join(TARGETS)}, not {target!r}")
        windowed = params.get("windowed_caches", True)
        if not isinstance(windowed, bool):
            raise ConfigError(f"{path}: windowed_caches must be true or false, not {windowed!r}")
        if target == "cuda" and windowed:
            raise ConfigError(
                f"{path}: the folder was exported for CUDA with windowed caches, as older versions did:"
                " export it again with this neo-tf"
            )
        ops = "standard" if params.get("ops") == "standard" else "fused"
        for file in (*sorted(folder.glob("*.onnx")), folder / DATA_FILE, folder / TOKENIZER_FILE):
            refuse_pointer(file)
        return cls(folder, config, tuple(precisions), target, ops, windowed)

    @property
    def is_standard(self) -> bool:
        """Whether its operators are the ONNX standard's alone: a folder for other runtimes, without decoder.onnx."""
        return self.ops == "standard"

    @property
    def data_path(self) -> Path:
        """The file that holds the weights of all its graphs."""
        return self.path / DATA_FILE

    @property
    def chooses(self) -> bool:
        """Whether decoder.onnx takes inverse_temperature, and returns top_ids and top_logprobs beside the logits."""
        return self.target == "cuda"

    @property
    def needs_cudnn(self) -> bool:
        """Whether decoder.onnx has reductions, which ONNX Runtime computes by cuDNN on CUDA."""
        return bool(self.config.moe_layers) or "linear" in self.config.attention_types

    def why_not_captured(self) -> list[str]:
        """The model's options with which a decode step cannot be captured as a CUDA graph, each with the reason.

        The run that captures computes a step three times, a replay computes on the host nothing at all.

        Returns:
            Texts such as "num_mem_kv: the host computes shapes in each step"; none where a step can be captured.
        """
        reasons = []
        if "linear" in self.config.attention_types:
            reasons.append("attention type linear: a repeated step would add to its sums again")
        if "global" in self.config.attention_types and self.config.num_mem_kv:
            reasons.append("num_mem_kv: the host computes shapes in each step")
        if self.config.moe_layers:
            reasons.append("moe_layers: the reductions of the gates are computed by cuDNN")
        return reasons

    def find_precision(self, name: str | None = None) -> str:
        """The precision of a name; the folder's first one where it is None.

        Raises:
            RequestError: the folder does not hold this precision.
        """
        if name is not None and name not in self.precisions:
            raise RequestError(f"{self.path}: exported in {' and '.join(self.precisions)}, not in {name}")
        return name or self.precisions[0]

    def graph_path(self, precision: str, kind: str) -> Path:
        """The path of a graph; a folder need not have one of every kind.

        Args:
            precision: One of the folder's precisions.
            kind: MODEL, DECODER, PREFILL or ENCODER.
        """
        return self.path / graph_files(self.precisions)[precision, kind]
