"""genai_config.json: the file that tells onnxruntime-genai what is in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from neo_tf.cache_layout import padded_head_size
from neo_tf.onnx_folder import MODEL

if TYPE_CHECKING:
    from neo_tf.config import GPTNeoConfig


def genai_can_run(config: GPTNeoConfig) -> bool:
    """Whether onnxruntime-genai can run a model: each layer must have a cache of exactly the sequence's length.

    Linear attention's sums and learned keys are no such caches, and attention type "none" has none.
    """
    return {*config.attention_types} <= {"global", "local"} and not config.num_mem_kv


def genai_config(config: GPTNeoConfig, standard: bool, generation: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of genai_config.json.

    onnxruntime-genai does not know the model type `gpt_neo`; its plain `decoder` describes model.onnx.

    Args:
        config: The model's config.
        standard: Whether the graph consists of operators of the ONNX standard alone.
        generation: The content of generation_config.json, whose token ids come before the config's.
    """
    # An id that ends a text is required. A model without one gets its last id, which a padded vocabulary never yields.
    eos = _first(generation.get("eos_token_id"), config.eos_token_id, config.n_vocab - 1)
    end = eos[0] if isinstance(eos, list) and eos else eos
    return {
        "model": {
            "type": "decoder",
            "vocab_size": config.n_vocab,
            "context_length": config.n_ctx,
            "bos_token_id": _first(generation.get("bos_token_id"), config.bos_token_id, end),
            "eos_token_id": eos,
            "pad_token_id": _first(generation.get("pad_token_id"), config.pad_token_id_in_vocab, end),
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
            # GroupQueryAttention appends in place; the standard operators return caches that are longer.
            "past_present_share_buffer": padded_head_size(config) == config.head_size and not standard,
        },
    }


def _first(*values: Any) -> Any:
    """The first value that is not None."""
    return next((value for value in values if value is not None), None)
