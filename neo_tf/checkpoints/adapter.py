"""LoRA adapters as PEFT saves them: adapter_config.json and adapter_model.safetensors, merged into their base."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from neo_tf.checkpoints.checkpoint import Checkpoint, LazyTensor
from neo_tf.checkpoints.huggingface import from_huggingface_name, is_equal
from neo_tf.checkpoints.safetensors_file import read_safetensors
from neo_tf.checkpoints.state_dict import is_beside_the_model, without_wrappers
from neo_tf.checkpoints.tokenizer_files import find_tokenizer, is_named
from neo_tf.checkpoints.torch_pickle import read_torch_file
from neo_tf.errors import CheckpointError
from neo_tf.file_names import TOKENIZER_FILES
from neo_tf.json_files import read_json
from neo_tf.notes import note
from neo_tf.variables import ROOT

ADAPTER_CONFIG_FILE = "adapter_config.json"
SAFETENSORS_FILE = "adapter_model.safetensors"
BIN_FILE = "adapter_model.bin"
# Options of LoRA that compute something else than weight + scale * B A, and are not implemented.
_UNSUPPORTED = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "ensure_weight_tying",
)
# Ways to begin the training that leave the base as it is. The others, such as PiSSA, train against a changed base.
_PLAIN_BEGINNINGS = (None, True, False, "gaussian", "eva", "orthogonal")
_MATRIX = re.compile(r"(.+)\.lora_(A|B)(?:\.default)?\.weight")
# PEFT keeps a trained copy of a whole module beside the base's own, and stores both where tokens were added.
_COPY = re.compile(r"\.(base_layer|modules_to_save(\.default)?)(?=\.)")
_ORIGINAL = ".original_module."
_EMBEDDING_MATRIX = re.compile(r"(.+)\.lora_embedding_(A|B)(?:\.default)?")
_WTE = f"{ROOT}/wte"
_LM_HEAD = f"{ROOT}/lm_head"
_EMBEDDINGS = (_WTE, f"{ROOT}/wpe")  # their B A is the transpose of what is added


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter.

    Args:
        path: Its folder.
        base: The name of its base, a hub id or a path; None where the adapter does not say.
        revision: The base's revision; None for the main branch.
        options: The contents of adapter_config.json.
        pairs: {module: (A, B)}, A [rank, inputs] and B [outputs, rank] in torch's orientation.
        whole: {canonical name: tensor} of weights that replace the base's, in the original's orientation.
    """

    path: Path
    base: str | None
    revision: str | None
    options: Mapping[str, Any] = field(repr=False)
    pairs: Mapping[str, tuple[LazyTensor, LazyTensor]] = field(repr=False)
    whole: Mapping[str, LazyTensor] = field(repr=False)

    def scale(self, module: str, rank: int) -> float:
        """The number that B A is multiplied with: alpha / rank, or alpha / sqrt(rank) in rank-stabilised LoRA."""
        stated = _matching(self.options.get("rank_pattern"), module, self.options.get("r", 8))
        if stated != rank:
            raise CheckpointError(f"{self.path}: {module} has rank {rank}, but {ADAPTER_CONFIG_FILE} says {stated}")
        alpha = _matching(self.options.get("alpha_pattern"), module, self.options.get("lora_alpha", 8))
        if isinstance(alpha, bool) or not isinstance(alpha, int | float):
            raise CheckpointError(f"{self.path}: lora_alpha must be a number, not {alpha!r}")
        return alpha / rank**0.5 if self.options.get("use_rslora") else alpha / rank


def is_adapter(folder: Path | str) -> bool:
    """Whether a folder holds an adapter, beside whatever else."""
    weights = any((Path(folder) / name).is_file() for name in (SAFETENSORS_FILE, BIN_FILE))
    return weights and (Path(folder) / ADAPTER_CONFIG_FILE).is_file()


def base_of(folder: Path | str) -> tuple[str | None, str | None]:
    """The name and the revision of the base that an adapter was trained for; None for what it does not say."""
    options = _read_options(Path(folder))
    return options.get("base_model_name_or_path") or None, options.get("revision") or None


def read_adapter(folder: Path | str) -> Adapter:
    """Opens an adapter. Its tensors are read later.

    Raises:
        CheckpointError: It is no LoRA adapter, uses an option that is not implemented, or is damaged.
        ConfigError: adapter_config.json is missing or not JSON.
    """
    path = Path(folder)
    options = _read_options(path)
    kind = options.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{path}: an adapter of the kind {kind}, of which only LORA can be merged")
    for key in _UNSUPPORTED:
        if options.get(key):
            raise CheckpointError(f"{path}: a LoRA adapter with {key}: not implemented, merge it with PEFT")
    if options.get("init_lora_weights") not in _PLAIN_BEGINNINGS:
        raise CheckpointError(
            f"{path}: a LoRA adapter with init_lora_weights {options['init_lora_weights']!r}, which changes the base: "
            "not implemented, merge it with PEFT"
        )
    if (path / SAFETENSORS_FILE).is_file():
        stored = read_safetensors(path / SAFETENSORS_FILE)
    else:
        stored = read_torch_file(path / BIN_FILE)
    pairs, whole = _sorted_tensors(path, stored)
    return Adapter(path, *base_of(path), options, pairs, whole)


def merge_adapter(checkpoint: Checkpoint, adapter: Adapter, keep_tokenizer: bool = False) -> Checkpoint:
    """The checkpoint with the adapter merged into its weights, which keep their types.

    A token embedding or output embedding that the adapter changes is untied from the other, as they are while PEFT
    runs an adapter that is not merged.

    Args:
        checkpoint: The base.
        adapter: The adapter.
        keep_tokenizer: Whether the base's tokenizer stays where the adapter's folder holds one, too.

    Raises:
        CheckpointError: The adapter does not fit the model.
    """
    tensors, untied = _with_whole_tensors(checkpoint, adapter)
    config = checkpoint.config.replace(n_vocab=tensors[_WTE].shape[0], untied_lm_head=untied)
    for module, (a, b) in adapter.pairs.items():
        name, transposed = from_huggingface_name(f"{module}.weight")
        if name not in tensors:
            raise CheckpointError(f"{adapter.path}: changes {module}, which {checkpoint.path} does not have")
        turned = transposed or name in _EMBEDDINGS
        tensors[name] = _merged(checkpoint, adapter, module, tensors[name], a, b, turned)
    files = dict(checkpoint.files)
    if not keep_tokenizer and is_named(adapter.path):
        others = {name: content for name, content in files.items() if name not in TOKENIZER_FILES}
        files = others | find_tokenizer(None, config.n_vocab, adapter.path)
    note(f"{adapter.path}: a LoRA adapter, merged into {checkpoint.path}")
    return replace(checkpoint, config=config, tensors=tensors, files=files)


def _with_whole_tensors(checkpoint: Checkpoint, adapter: Adapter) -> tuple[dict[str, LazyTensor], bool]:
    """The checkpoint's tensors with those that the adapter stores whole, and whether there is an output embedding."""
    tensors = {**checkpoint.tensors, **adapter.whole}
    if checkpoint.config.untied_lm_head:
        return tensors, True
    changed = {from_huggingface_name(f"{module}.weight")[0] for module in adapter.pairs}
    if _LM_HEAD in adapter.whole:  # stored with the token embedding where tokens were added
        if changed.isdisjoint((_WTE, _LM_HEAD)) and is_equal(tensors[_WTE], tensors[_LM_HEAD]):
            del tensors[_LM_HEAD]
            return tensors, False
        return tensors, True
    if changed.isdisjoint((_WTE, _LM_HEAD)) and _WTE not in adapter.whole:
        return tensors, False
    tensors[_LM_HEAD] = checkpoint.tensors[_WTE]
    return tensors, True


def _merged(
    checkpoint: Checkpoint,
    adapter: Adapter,
    module: str,
    weight: LazyTensor,
    a: LazyTensor,
    b: LazyTensor,
    turned: bool,
) -> LazyTensor:
    """A weight with its pair of matrices merged into it; for `turned` see _read_merged."""
    if not len(a.shape) == len(b.shape) == 2 or a.shape[0] != b.shape[1]:
        raise CheckpointError(f"{adapter.path}: the matrices of {module} have the shapes {a.shape} and {b.shape}")
    shape = (b.shape[0], a.shape[1])
    if (shape[::-1] if turned else shape) != weight.shape:
        stored = weight.shape[::-1] if turned else weight.shape
        raise CheckpointError(
            f"{adapter.path}: changes {module} by {list(shape)}, but its weight in {checkpoint.path} is "
            f"{list(stored)}: it is an adapter of another model"
        )
    return replace(weight, read=partial(_read_merged, weight, a, b, adapter.scale(module, a.shape[0]), turned))


def _read_merged(weight: LazyTensor, a: LazyTensor, b: LazyTensor, scale: float, turned: bool) -> np.ndarray:
    """weight + scale * B A, computed in float32 and rounded once; `turned` where the weight is [inputs, outputs]."""
    change = b.read().astype(np.float32) @ a.read().astype(np.float32)
    change *= np.float32(scale)
    value = weight.read().astype(np.float32)
    value += change.T if turned else change
    return value.astype(weight.dtype, copy=False)


def _sorted_tensors(
    path: Path, stored: Mapping[str, LazyTensor]
) -> tuple[dict[str, tuple[LazyTensor, LazyTensor]], dict[str, LazyTensor]]:
    """The tensors of an adapter's file as (pairs, whole); see Adapter."""
    halves: dict[str, dict[str, LazyTensor]] = defaultdict(dict)
    whole: dict[str, LazyTensor] = {}
    left_out = []
    for stored_name, name in without_wrappers(stored).items():
        if _ORIGINAL in name:
            continue
        found = _MATRIX.fullmatch(name) or _EMBEDDING_MATRIX.fullmatch(name)
        if found:
            halves[found[1]][found[2]] = stored[stored_name]
            continue
        ours, transposed = from_huggingface_name(_COPY.sub("", name))
        if ours.startswith(f"{ROOT}/"):
            tensor = stored[stored_name].transposed() if transposed else stored[stored_name]
            if ours in whole and not is_equal(whole[ours], tensor):
                raise CheckpointError(f"{path}: holds {stored_name} twice, with different values")
            whole[ours] = tensor
        elif is_beside_the_model(name):
            left_out.append(stored_name)
        else:
            raise CheckpointError(f"{path}: {stored_name} is not a part of a LoRA adapter that can be merged")
    for module, both in halves.items():
        if set(both) != {"A", "B"}:
            raise CheckpointError(f"{path}: {module} has lora_{min(both)} alone")
    if left_out:
        note(f"{path}: left out what is not the language model's: {', '.join(left_out)}")
    return {module: (both["A"], both["B"]) for module, both in halves.items()}, whole


def _matching(patterns: object, module: str, default: Any) -> Any:
    """The value of the first pattern that a module's name ends with, as PEFT looks it up."""
    if isinstance(patterns, dict):
        for pattern, value in patterns.items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
    return default


def _read_options(folder: Path) -> dict[str, Any]:
    options = read_json(folder / ADAPTER_CONFIG_FILE)
    if not isinstance(options, dict):
        raise CheckpointError(f"{folder / ADAPTER_CONFIG_FILE}: must hold an object")
    return options
