"""`neo-tf info`: what a model is."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from neo_tf.cli.console import results, summary_table
from neo_tf.config import GPTNeoConfig
from neo_tf.config_values import ORIGINAL_ONLY_KEYS
from neo_tf.errors import CheckpointError
from neo_tf.onnx_folder import OnnxFolder
from neo_tf.sizes import readable_bytes
from neo_tf.tokenizer_backend import has_tokenizer, load_tokenizer, read_tokenizer_files
from neo_tf.variables import count_parameters

_FORMATS = {"mesh-tf": "Mesh-TensorFlow checkpoint", "huggingface": "Hugging Face folder", "keras": "Keras folder"}


def info(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="The model: a checkpoint in any format, or an ONNX folder.")
    ],
) -> None:
    """Show what a model is: its format, sizes, layers, options, precision and tokenizer."""
    table = summary_table("", "", header=False)
    for name, value in describe(path).items():
        table.add_row(name, value)
    results.print(table)


def describe(path: Path | str) -> dict[str, str]:
    """Describes a checkpoint in any format, or an ONNX folder, as {label: text}.

    Raises:
        CheckpointError, ConfigError: See open_checkpoint.
    """
    folder = OnnxFolder.find(path)
    if folder is not None:
        return _describe_onnx(folder)
    from neo_tf.checkpoints import open_checkpoint

    checkpoint = open_checkpoint(path)
    rows = {"path": str(checkpoint.path), "format": _FORMATS[checkpoint.format]}
    rows |= _describe_model(checkpoint.config, checkpoint.dtype, checkpoint.nbytes, "fp32")
    if "global_step" in checkpoint.config.training:
        rows["trained for"] = f"{checkpoint.config.training['global_step']:,} steps"
    rows["tokenizer"] = _describe_tokenizer(checkpoint.files, checkpoint.path)
    return rows


def _describe_onnx(folder: OnnxFolder) -> dict[str, str]:
    place = "other runtimes, in standard operators" if folder.is_standard else folder.target.upper()
    if folder.target == "cpu":
        cache = "fp32"
    elif folder.precisions[0] == "bf16":
        cache = "bf16"
    else:
        cache = "fp16"
    weights = folder.data_path.stat().st_size
    rows = {"format": f"ONNX folder for {place}"}
    rows |= _describe_model(folder.config, ", ".join(folder.precisions), weights, cache, folder.windowed_caches)
    rows["tokenizer"] = _describe_tokenizer(read_tokenizer_files(folder.path), folder.path)
    return rows


def _describe_model(
    config: GPTNeoConfig, precision: str, nbytes: int, cache: str, windowed: bool = True
) -> dict[str, str]:
    """The rows that every model has.

    Args:
        config: The model's config.
        precision: The weights' precision, or several.
        nbytes: The weights' size.
        cache: The KV cache's precision.
        windowed: Whether local layers cache their window only.
    """
    from neo_tf.runtime.device.kv_cache import KVCache

    kinds = Counter(config.attention_types)
    layers = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    window = f", radius {config.local_attention_radius}" if kinds["local"] else ""
    ids = f"end-of-text {config.eos_token_id}" if config.eos_token_id is not None else "no end-of-text id"
    dtype = np.float32 if cache == "fp32" else np.float16  # bf16 has the size of fp16
    cache_bytes = KVCache.bytes_per_slot(config, dtype, windowed=windowed)
    return {
        "parameters": f"{count_parameters(config):,}",
        "weights": f"{readable_bytes(nbytes)} in {precision}",
        "layers": f"{config.n_layer} ({layers}{window})",
        "hidden size": f"{config.n_embd}, mlp {config.n_inner}, {config.activation_fn}",
        "options": _describe_options(config),
        "heads": f"{config.n_head} of size {config.head_size}",
        "context": f"{config.n_ctx} tokens",
        "vocabulary": f"{config.n_vocab} ({ids})",
        "KV cache": f"{readable_bytes(cache_bytes)} a sequence in {cache}",
    }


def _describe_options(config: GPTNeoConfig) -> str:
    """The original's options that are on, by their keys."""
    found = []
    for key in (*ORIGINAL_ONLY_KEYS, "untied_lm_head"):
        value = getattr(config, key)
        if value and key != "moe_params":
            found.append(key if value is True else f"{key} {value}")
    if config.moe_layers:
        found.append(f"{config.moe_params['moe_num_experts']} experts")
    return ", ".join(found) or "none"


def _describe_tokenizer(files: Mapping[str, bytes], source: Path) -> str:
    """Describes a tokenizer by its files."""
    if not has_tokenizer(files):
        return "none found"
    try:
        return f"{load_tokenizer(files, source).tokenizer.get_vocab_size()} ids"
    except CheckpointError:
        return "damaged"
