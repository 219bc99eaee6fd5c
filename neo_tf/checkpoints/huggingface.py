"""Hugging Face's GPT-Neo folders: safetensors or pytorch_model.bin. The only file that knows their names."""

import json
import re
import struct
from pathlib import Path

import numpy as np

from neo_tf.checkpoints.checkpoint import DTYPES, Checkpoint, LazyTensor
from neo_tf.checkpoints.tokenizer_files import find_tokenizer
from neo_tf.checkpoints.torch_pickle import read_torch_file
from neo_tf.config import GPTNeoConfig, read_json
from neo_tf.errors import CheckpointError
from neo_tf.variables import ROOT

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
BIN_FILE = "pytorch_model.bin"
BIN_INDEX_FILE = "pytorch_model.bin.index.json"
_SHARD_BYTES = 5_000_000_000

# Inside a layer: the original's name -> Hugging Face's, and whether torch keeps the matrix transposed.
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
_LM_HEAD, _WTE = f"{ROOT}/lm_head", f"{ROOT}/wte"
# Causal masks that older transformers versions saved with the weights.
_BUFFER = re.compile(r"\.attn\.attention\.(bias|masked_bias)$")
_SAFETENSORS_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def to_huggingface_name(name):
    """gpt2/h0/attn/q -> ("transformer.h.0.attn.attention.q_proj.weight", True): the name, and whether transposed."""
    name = name.removeprefix(f"{ROOT}/")
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    layer, _, rest = name.partition("/")
    theirs, transposed = _LAYER_NAMES[rest]
    return f"transformer.h.{layer[1:]}.{theirs}", transposed


def from_huggingface_name(name):
    """The inverse of to_huggingface_name; a name that GPT-Neo does not have comes back as it is."""
    full = name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"
    if full in _FROM_TOP_NAMES:
        ours, transposed = _FROM_TOP_NAMES[full]
        return f"{ROOT}/{ours}", transposed
    found = re.fullmatch(r"transformer\.h\.(\d+)\.(.+)", full)
    if found and found[2] in _FROM_LAYER_NAMES:
        ours, transposed = _FROM_LAYER_NAMES[found[2]]
        return f"{ROOT}/h{found[1]}/{ours}", transposed
    return name, False


def is_huggingface(folder):
    """Whether a folder holds weights as transformers saves them."""
    return any((Path(folder) / name).is_file() for name in (WEIGHTS_FILE, INDEX_FILE, BIN_FILE, BIN_INDEX_FILE))


def read_huggingface(path, tokenizer=None, config=None):
    """Opens a folder that transformers saved; safetensors are preferred to pytorch_model.bin.

    An lm_head that equals the embedding is tied; one that differs is the model's own head, as in transformers.

    Raises:
        CheckpointError: shards that are missing or cut short, tensors that do not fit, a pickle that wants more than
            tensors.
        ConfigError: config.json is missing, or is not a GPT-Neo's.
    """
    folder = Path(path)
    config = GPTNeoConfig.from_file(config or folder / CONFIG_FILE)
    tensors = {}
    for file in _weight_files(folder):
        found = read_torch_file(file) if file.suffix == ".bin" else _read_safetensors(file)
        for name, tensor in found.items():
            if not _BUFFER.search(name):
                ours, transposed = from_huggingface_name(name)
                tensors[ours] = _transpose(tensor) if transposed else tensor
    tied = not config.untied_lm_head
    if _LM_HEAD in tensors and _WTE in tensors:
        tied = np.array_equal(tensors[_LM_HEAD].read(), tensors[_WTE].read())
    if tied:
        tensors.pop(_LM_HEAD, None)
    config = config.replace(precision=_common_precision(tensors, config.precision), untied_lm_head=not tied)
    return Checkpoint(folder, "huggingface", config, tensors, find_tokenizer(folder, config.n_vocab, tokenizer))


def write_huggingface(checkpoint, folder, progress):
    """Writes a folder that transformers loads: config.json, safetensors in shards of at most 5 GB, the tokenizer.

    Args:
        checkpoint: a Checkpoint.
        folder: an existing Path.
        progress: called as progress(name, bytes) after each tensor.

    Raises:
        ConfigError: an option that transformers cannot express.
    """
    params = checkpoint.config.replace(precision=checkpoint.dtype).to_huggingface()
    (folder / CONFIG_FILE).write_text(json.dumps(params, indent=2) + "\n", encoding="utf-8")
    write_tokenizer(checkpoint, folder)

    shards = [[]]
    for name, tensor in checkpoint.tensors.items():
        if shards[-1] and sum(checkpoint.tensors[other].nbytes for other in shards[-1]) + tensor.nbytes > _SHARD_BYTES:
            shards.append([])
        shards[-1].append(name)
    if len(shards) == 1:
        _write_safetensors(checkpoint, shards[0], folder / WEIGHTS_FILE, progress)
        return
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_safetensors(checkpoint, names, folder / file, progress)
        weight_map |= {to_huggingface_name(name)[0]: file for name in names}
    index = {"metadata": {"total_size": checkpoint.nbytes}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_tokenizer(checkpoint, folder):
    """Writes tokenizer.json, tokenizer_config.json and generation_config.json as transformers reads them."""
    config = checkpoint.config
    ids = {"bos_token_id": config.eos_token_id, "eos_token_id": config.eos_token_id}
    if config.pad_token_id is not None and config.pad_token_id < config.n_vocab:
        ids["pad_token_id"] = config.pad_token_id
    generation = {key: value for key, value in ids.items() if value is not None}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    if checkpoint.tokenizer is None:
        return
    (folder / "tokenizer.json").write_text(checkpoint.tokenizer, encoding="utf-8")
    from tokenizers import Tokenizer

    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.n_ctx}
    settings["clean_up_tokenization_spaces"] = False
    if config.eos_token_id is not None:
        end = Tokenizer.from_str(checkpoint.tokenizer).id_to_token(config.eos_token_id)
        if end is not None:
            settings |= {"bos_token": end, "eos_token": end, "unk_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _weight_files(folder):
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


def _transpose(tensor):
    return LazyTensor(tensor.shape[::-1], tensor.dtype, lambda: np.ascontiguousarray(tensor.read().T))


def _read_safetensors(file):
    """The tensors of a safetensors file; the library checks that the file is whole."""
    with _open(file) as handle:
        tensors = {}
        for name in handle.keys():  # noqa: SIM118  (not a dict)
            view = handle.get_slice(name)
            dtype = _SAFETENSORS_DTYPES.get(view.get_dtype())
            tensors[name] = LazyTensor(
                tuple(view.get_shape()),
                DTYPES[dtype] if dtype else np.dtype(np.void),
                lambda name=name: _read(file, name),
            )
        return tensors


def _read(file, name):
    # Opened anew for each tensor: an open file stays mapped, and would count as resident memory to its last byte.
    with _open(file) as handle:
        try:
            return handle.get_tensor(name)
        except Exception as error:
            raise CheckpointError(f"{file}: {name} cannot be read: {error}") from None


def _open(file):
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: not a whole safetensors file: {error}") from None


def _write_safetensors(checkpoint, names, file, progress):
    # The library's writer wants all tensors in memory; the format is a length, a JSON header, and the bytes.
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    kinds = {name: kind for kind, name in _SAFETENSORS_DTYPES.items()}
    for name in names:
        tensor = checkpoint.tensors[name]
        theirs, transposed = to_huggingface_name(name)
        dtype = next(key for key, known in DTYPES.items() if known == tensor.dtype)
        header[theirs] = {
            "dtype": kinds[dtype],
            "shape": list(tensor.shape[::-1] if transposed else tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as out:
        out.write(struct.pack("<Q", len(text)))
        out.write(text)
        for name in names:
            tensor = checkpoint.read(name)
            if to_huggingface_name(name)[1]:
                tensor = np.ascontiguousarray(tensor.T)
            out.write(memoryview(tensor.reshape(-1).view(np.uint8)))
            progress(name, tensor.nbytes)
            del tensor


def _common_precision(tensors, stated):
    if _WTE not in tensors:
        return stated
    return next((key for key, known in DTYPES.items() if known == tensors[_WTE].dtype), stated)
