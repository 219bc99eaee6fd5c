"""genai_config.json: what onnxruntime-genai reads of a folder."""

from neo_tf.cache_layout import padded_head_size
from neo_tf.onnx_folder import MODEL


def genai_can_run(config):
    """It wants one cache for every layer, all of the sequence's length: no sums, no learned keys, no layer without."""
    return {*config.attention_types} <= {"global", "local"} and not config.num_mem_kv


def genai_config(config, standard):
    """What onnxruntime-genai reads; it knows no `gpt_neo`, and a plain `decoder` is what the graph is."""
    # It must have an id that ends a text. Where a model has none: the last one, which a padded vocabulary never gives.
    eos = config.eos_token_id if config.eos_token_id is not None else config.n_vocab - 1
    pad = config.pad_token_id_in_vocab
    return {
        "model": {
            "type": "decoder",
            "vocab_size": config.n_vocab,
            "context_length": config.n_ctx,
            "bos_token_id": eos,
            "eos_token_id": eos,
            "pad_token_id": eos if pad is None else pad,
            "decoder": {
                "session_options": {"provider_options": []},
                "filename": f"{MODEL}.onnx",
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
            "past_present_share_buffer": padded_head_size(config) == config.head_size and not standard,
        },
    }
