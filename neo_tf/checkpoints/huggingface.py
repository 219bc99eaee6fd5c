"""Hugging Face's GPT-Neo folders. Only this file knows the names that transformers gives to tensors."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from neo_tf.checkpoints.checkpoint import Checkpoint, LazyTensor, narrowed
from neo_tf.checkpoints.dtypes import DTYPES, dtype_name
from neo_tf.checkpoints.model_files import read_files, write_files
from neo_tf.checkpoints.safetensors_file import read_safetensors, write_safetensors
from neo_tf.checkpoints.state_dict import is_beside_the_model, is_buffer, refuse_unmerged, without_wrappers
from neo_tf.checkpoints.torch_pickle import read_torch_file
from neo_tf.config import GPTNeoConfig
from neo_tf.errors import CheckpointError
from neo_tf.file_names import CONFIG_FILE
from neo_tf.json_files import read_json, write_json
from neo_tf.notes import note
from neo_tf.progress import Progress
from neo_tf.variables import ROOT

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
BIN_FILE = "pytorch_model.bin"
BIN_INDEX_FILE = "pytorch_model.bin.index.json"
_SHARD_BYTES = 5_000_000_000

# The original's name -> Hugging Face's name, and whether torch stores the matrix transposed. First inside a layer.
_LAYER_NAMES = {
    "norm_1/g": ("ln_1.weight", False),
    "norm_1/b": ("ln_1.bias", False),
    "attn/q": ("attn.attention.q_proj.weight", True),
    "attn/k": ("attn.attention.k_proj.weight", True),
    "attn/v": ("attn.attention.v_proj.weight", True),
    "attn/o": ("attn.attention.out_proj.weight", True),
    "attn/compute_output_bias/o_b": ("attn.attention.out_proj.bias", False),
    "norm_2/g": ("ln_2.weight", False),
    "norm_2/b": ("ln_2.bias", False),
    "mlp/conv1d_main/c_fc/kernel": ("mlp.c_fc.weight", True),
    "mlp/conv1d_main/c_fc/bias": ("mlp.c_fc.bias", False),
    "mlp/conv1d_main/c_proj/kernel": ("mlp.c_proj.weight", True),
    "mlp/conv1d_main/c_proj/bias": ("mlp.c_proj.bias", False),
}
_TOP_NAMES = {
    "wte": ("transformer.wte.weight", False),
    "wpe": ("transformer.wpe.weight", False),
    "ln_f/g": ("transformer.ln_f.weight", False),
    "ln_f/b": ("transformer.ln_f.bias", False),
    "lm_head": ("lm_head.weight", False),
}
_FROM_LAYER_NAMES = {theirs: (ours, transposed) for ours, (theirs, transposed) in _LAYER_NAMES.items()}
_FROM_TOP_NAMES = {theirs: (ours, transposed) for ours, (theirs, transposed) in _TOP_NAMES.items()}
_LM_HEAD = f"{ROOT}/lm_head"
_WTE = f"{ROOT}/wte"


def to_huggingface_name(name: str) -> tuple[str, bool]:
    """Translates a canonical name; also says whether torch stores the matrix transposed.

    "gpt2/h0/attn/q" becomes ("transformer.h.0.attn.attention.q_proj.weight", True).
    """
    name = name.removeprefix(f"{ROOT}/")
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    layer, _, rest = name.partition("/")
    theirs, transposed = _LAYER_NAMES[rest]
    return f"transformer.h.{layer[1:]}.{theirs}", transposed


def from_huggingface_name(name: str) -> tuple[str, bool]:
    """The inverse of to_huggingface_name. A name that GPT-Neo does not have is returned unchanged."""
    full = name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"
    if full in _FROM_TOP_NAMES:
        ours, transposed = _FROM_TOP_NAMES[full]
        return f"{ROOT}/{ours}", transposed
    found = re.fullmatch(r"transformer\.h\.(\d+)\.(.+)", full)
    if found and found[2] in _FROM_LAYER_NAMES:
        ours, transposed = _FROM_LAYER_NAMES[found[2]]
        return f"{ROOT}/h{found[1]}/{ours}", transposed
    return name, False


def is_huggingface(folder: Path | str) -> bool:
    """Whether a folder holds weights as transformers saves them."""
    return any((Path(folder) / name).is_file() for name in (WEIGHTS_FILE, INDEX_FILE, BIN_FILE, BIN_INDEX_FILE))


def read_huggingface(
    path: Path | str, tokenizer: Path | str | None = None, config: Path | str | None = None
) -> Checkpoint:
    """Opens a folder that transformers saved. Safetensors are preferred to pytorch_model.bin.

    An lm_head that equals the token embedding is tied to it; one that differs is a head of its own, as in
    transformers. Prefixes of wrappers are taken off the names; heads beside the language model's are left out.

    Args:
        path: The folder.
        tokenizer: As in read_files.
        config: The config, where it is not the folder's config.json.

    Raises:
        CheckpointError: A shard is missing or cut short, tensors do not fit the config, or a pickle asks for something
            that is not a tensor.
        ConfigError: config.json is missing, or it is not that of a GPT-Neo.
    """
    folder = Path(path)
    params = GPTNeoConfig.from_file(config or folder / CONFIG_FILE)
    tensors = _read_tensors(folder)
    untied = _resolve_head(tensors, params.untied_lm_head)
    params = params.replace(precision=_precision(tensors, params.precision), untied_lm_head=untied)
    return Checkpoint(folder, "huggingface", params, tensors, read_files("huggingface", folder, params, tokenizer))


def write_huggingface(checkpoint: Checkpoint, folder: Path, progress: Progress) -> None:
    """Writes a folder that transformers loads: config.json, safetensors in shards of at most 5 GB, the model's files.

    Args:
        checkpoint: The checkpoint.
        folder: The folder that the files go into.
        progress: Called as progress(bytes, name) after each tensor.

    Raises:
        ConfigError: The model uses an option that transformers cannot express.
    """
    write_json(folder / CONFIG_FILE, checkpoint.config.replace(precision=checkpoint.dtype).to_huggingface())
    write_files("huggingface", checkpoint, folder)

    def report(amount: float, what: str = "") -> None:
        progress(amount, from_huggingface_name(what)[0])

    shards = _shards(checkpoint.tensors)
    if len(shards) == 1:
        write_safetensors(shards[0], folder / WEIGHTS_FILE, report)
        return
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(tensors, folder / file, report)
        weight_map |= dict.fromkeys(tensors, file)
    write_json(folder / INDEX_FILE, {"metadata": {"total_size": checkpoint.nbytes}, "weight_map": weight_map})


def _read_tensors(folder: Path) -> dict[str, LazyTensor]:
    """The tensors of all weight files, under canonical names and in the original's orientation."""
    stored: dict[str, LazyTensor] = {}
    for file in _weight_files(folder):
        stored |= read_torch_file(file) if file.suffix == ".bin" else read_safetensors(file)
    names = without_wrappers(stored)
    refuse_unmerged(folder, names.values())
    tensors: dict[str, LazyTensor] = {}
    left_out = []
    for stored_name, name in names.items():
        if is_buffer(name):
            continue
        if is_beside_the_model(name):
            left_out.append(stored_name)
            continue
        ours, transposed = from_huggingface_name(name)
        tensor = stored[stored_name].transposed() if transposed else stored[stored_name]
        if ours in tensors and not is_equal(tensors[ours], tensor):
            raise CheckpointError(f"{folder}: holds {name} twice, with different values")
        tensors[ours] = tensor
    if left_out:
        note(f"{folder}: left out what is not the language model's: {', '.join(left_out)}")
    return narrowed(folder, tensors)


def is_equal(first: LazyTensor, second: LazyTensor) -> bool:
    """Whether two tensors have the same shape and the same numbers."""
    return first.shape == second.shape and np.array_equal(first.read(), second.read())


def _resolve_head(tensors: dict[str, LazyTensor], stated_untied: bool) -> bool:
    """Whether the model has an output embedding of its own; one that is tied is removed from the tensors.

    Tied tensors may be stored under either name. As in transformers, two that differ are not tied, whatever the config
    says.
    """
    if _LM_HEAD not in tensors:
        return stated_untied
    if _WTE in tensors:
        if not is_equal(tensors[_LM_HEAD], tensors[_WTE]):
            return True
        del tensors[_LM_HEAD]
        return False
    if not stated_untied:
        tensors[_WTE] = tensors.pop(_LM_HEAD)
    return stated_untied


def _shards(tensors: Mapping[str, LazyTensor]) -> list[dict[str, LazyTensor]]:
    """The tensors under Hugging Face's names and in torch's orientation, divided into shards."""
    shards: list[dict[str, LazyTensor]] = [{}]
    for name, tensor in tensors.items():
        size = sum(other.nbytes for other in shards[-1].values())
        if shards[-1] and size + tensor.nbytes > _SHARD_BYTES:
            shards.append({})
        theirs, transposed = to_huggingface_name(name)
        shards[-1][theirs] = tensor.transposed() if transposed else tensor
    return shards


def _weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights.

    Raises:
        CheckpointError: The index of a sharded checkpoint cannot be used, or a shard is missing.
    """
    for single, index_name in ((WEIGHTS_FILE, INDEX_FILE), (BIN_FILE, BIN_INDEX_FILE)):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index_name).is_file():
            break
    index = read_json(folder / index_name)
    try:
        names = sorted({str(Path(name)) for name in index["weight_map"].values()})
    except (TypeError, KeyError, AttributeError):
        raise CheckpointError(f"{folder / index_name}: has no usable weight_map") from None
    for name in names:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: shard {name} is missing")
    return [folder / name for name in names]


def _precision(tensors: Mapping[str, LazyTensor], stated: str) -> str:
    """The type of the token embedding; what the config states where that is not known."""
    if _WTE not in tensors or tensors[_WTE].dtype not in DTYPES.values():
        return stated
    return dtype_name(tensors[_WTE].dtype)
