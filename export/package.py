"""Writing the model folder: two graphs, one data file, and the configs beside them."""

import json

from export.builder import WeightFile
from export.graph import build_decoder, build_model
from export.precision import PRECISIONS
from neo_tf.cache_layout import padded_head_size
from neo_tf.checkpoints import Checkpoint, open_checkpoint
from neo_tf.checkpoints.huggingface import CONFIG_FILE, write_tokenizer
from neo_tf.errors import RequestError
from neo_tf.output import new_folder

MODEL_FILE, DECODER_FILE, DATA_FILE = "model.onnx", "decoder.onnx", "model.onnx_data"


def export_onnx(src, dst, precision="fp32", *, n_vocab=None, force=False, progress=None, **opening):
    """Exports a checkpoint as an ONNX folder; the weights are written one by one.

    Args:
        src: a Checkpoint, or what open_checkpoint opens.
        dst: the folder to write; appears whole or not at all.
        precision: of the matrices: "fp32"; "int8" or "int4", in blocks, for the CPU (int4 keeps 8 bits at the ends).
        n_vocab, force: see neo_tf.convert.
        progress: called as progress(name, bytes) after each tensor.
        opening: tokenizer, config, revision, moe_policy: see open_checkpoint.

    Returns:
        The source as a Checkpoint.

    Raises:
        CheckpointError, ConfigError, OutputError: see neo_tf.convert.
        RequestError: an unknown precision.
    """
    if precision not in PRECISIONS:
        raise RequestError(f"unknown precision {precision!r} (known: {', '.join(PRECISIONS)})")
    checkpoint = src if isinstance(src, Checkpoint) else open_checkpoint(src, **opening)
    if n_vocab is not None:
        checkpoint = checkpoint.with_vocab(n_vocab)
    weights, bits = WeightFile(DATA_FILE), PRECISIONS[precision]
    graphs = {
        MODEL_FILE: build_model(checkpoint, weights, bits),
        DECODER_FILE: build_decoder(checkpoint, weights, bits),
    }
    with new_folder(dst, force=force, needs=weights.nbytes, source=checkpoint.path) as folder:
        checkpoint.verify()
        for name, model in graphs.items():
            (folder / name).write_bytes(model.SerializeToString())
        weights.write(folder / DATA_FILE, progress or (lambda name, size: None))
        _write_configs(checkpoint, folder, precision)
    return checkpoint


def _write_configs(checkpoint, folder, precision):
    config = checkpoint.config.replace(precision="float32")
    params = config.to_onnx() | {"weight_precision": precision}
    (folder / CONFIG_FILE).write_text(json.dumps(params, indent=2) + "\n", encoding="utf-8")
    write_tokenizer(checkpoint, folder)
    if _genai_can_run(config):
        text = json.dumps(_genai_config(config), indent=2) + "\n"
        (folder / "genai_config.json").write_text(text, encoding="utf-8")


def _genai_can_run(config):
    """It wants one cache for every layer, all of the sequence's length: no sums, no learned keys, no layer without."""
    return {*config.attention_types} <= {"global", "local"} and not config.num_mem_kv


def _genai_config(config):
    """What onnxruntime-genai reads; it knows no `gpt_neo`, and a plain `decoder` is what the graph is."""
    # It must have an id that ends a text. Where a model has none: the last one, which a padded vocabulary never gives.
    eos = config.eos_token_id if config.eos_token_id is not None else config.n_vocab - 1
    padded = config.pad_token_id is not None and config.pad_token_id < config.n_vocab
    return {
        "model": {
            "type": "decoder",
            "vocab_size": config.n_vocab,
            "context_length": config.n_ctx,
            "bos_token_id": eos,
            "eos_token_id": eos,
            "pad_token_id": config.pad_token_id if padded else eos,
            "decoder": {
                "session_options": {"provider_options": []},
                "filename": MODEL_FILE,
                "hidden_size": config.n_embd,
                "num_hidden_layers": config.n_layer,
                "num_attention_heads": config.n_head,
                "num_key_value_heads": config.n_head,
                "head_size": config.head_size,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "position_ids": "position_ids",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "max_length": config.n_ctx,
            "do_sample": False,
            # GroupQueryAttention appends in place; the standard operators that replace it make longer caches.
            "past_present_share_buffer": padded_head_size(config) == config.head_size,
        },
    }
