"""`neo-tf info`: what a model is."""

from collections import Counter
from typing import Annotated

import numpy as np
import typer

from neo_tf.cli.console import results, summary_table
from neo_tf.config_values import ORIGINAL_ONLY_KEYS
from neo_tf.file_names import TOKENIZER_FILE
from neo_tf.onnx_folder import OnnxFolder
from neo_tf.sizes import readable_bytes
from neo_tf.variables import count_parameters


def info(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A checkpoint in any format, or an ONNX folder.")],
):
    """Show what a model is: format, sizes, layers, options, precision and tokenizer."""
    table = summary_table("", "", header=False)
    for name, value in describe(path).items():
        table.add_row(name, value)
    results.print(table)


def describe(path):
    """{label: text} of a checkpoint in any format, or of an ONNX folder.

    Raises:
        CheckpointError, ConfigError: see open_checkpoint.
    """
    if folder := OnnxFolder.find(path):
        text = _text_of(folder.path / TOKENIZER_FILE)
        weights = folder.data_path.stat().st_size
        cache = "fp32" if folder.target == "cpu" else "bf16" if folder.precisions[0] == "bf16" else "fp16"
        model = _model(folder.config, ", ".join(folder.precisions), weights, cache)
        place = "other runtimes, in standard operators" if folder.is_standard else folder.target.upper()
        return {"format": f"ONNX folder for {place}", **model, "tokenizer": _tokenizer(text)}
    from neo_tf.checkpoints import open_checkpoint

    checkpoint = open_checkpoint(path)
    names = {"mesh-tf": "Mesh-TensorFlow checkpoint", "huggingface": "Hugging Face folder", "keras": "Keras folder"}
    rows = {"format": names[checkpoint.format], **_model(checkpoint.config, checkpoint.dtype, checkpoint.nbytes)}
    if "global_step" in checkpoint.config.training:
        rows["trained for"] = f"{checkpoint.config.training['global_step']:,} steps"
    return {"path": str(checkpoint.path), **rows, "tokenizer": _tokenizer(checkpoint.tokenizer)}


def _model(config, precision, nbytes, cache="fp32"):
    from neo_tf.runtime.device.kv_cache import KVCache

    kinds, dtype = Counter(config.attention_types), np.float32 if cache == "fp32" else np.float16  # bf16 is as wide
    layers = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    window = f", radius {config.local_attention_radius}" if kinds["local"] else ""
    ids = f"end-of-text {config.eos_token_id}" if config.eos_token_id is not None else "no end-of-text id"
    return {
        "parameters": f"{count_parameters(config):,}",
        "weights": f"{readable_bytes(nbytes)} in {precision}",
        "layers": f"{config.n_layer} ({layers}{window})",
        "hidden size": f"{config.n_embd}, mlp {config.n_inner}, {config.activation_fn}",
        "options": _options(config),
        "heads": f"{config.n_head} of size {config.head_size}",
        "context": f"{config.n_ctx} tokens",
        "vocabulary": f"{config.n_vocab} ({ids})",
        "KV cache": f"{readable_bytes(KVCache.bytes_per_slot(config, dtype))} a sequence in {cache}",
    }


def _options(config):
    """The original's options that are on, by their keys."""
    on = {key: getattr(config, key) for key in (*ORIGINAL_ONLY_KEYS, "untied_lm_head") if key != "moe_params"}
    told = [key if value is True else f"{key} {value}" for key, value in on.items() if value]
    if config.moe_layers:
        told.append(f"{config.moe_params['moe_num_experts']} experts")
    return ", ".join(told) or "none"


def _text_of(path):
    return path.read_text("utf-8", errors="replace") if path.is_file() else None


def _tokenizer(text):
    if text is None:
        return "none found"
    from tokenizers import Tokenizer

    try:
        return f"{Tokenizer.from_str(text).get_vocab_size()} ids"
    except Exception:  # tokenizers raises plain Exception
        return "damaged"
