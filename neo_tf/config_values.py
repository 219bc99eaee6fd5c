"""Values that a model's config may have, by the names of the original's config keys."""

import json
from collections.abc import Sequence
from typing import Any

from neo_tf.errors import ConfigError

ATTENTION_TYPES = ("global", "local", "linear", "none")
DTYPE_NAMES = ("float32", "bfloat16", "float16")  # the types that variables are stored in
GPT2_VOCAB_SIZE = 50257  # the number of ids of GPT-2's tokenizer; the last id is end-of-text

# The activations of the original's models/activations.py that it can run.
ACTIVATIONS = (
    "gelu",
    "relu",
    "sigmoid",
    "tanh",
    "selu",
    "elu",
    "abs",
    "sin",
    "cos",
    "sign",
    "silu",
    "softplus",
    "lrelu001",
    "lrelu020",
    "id",
    "triangle_relax",
    "square_relax",
    "softsign",
    "softmax",
    "logsoftmax",
    "bipolarsigmoid",
    "elish",
    "maxsig",
    "cosid",
    "minsin",
    "maxtanh",
    "mish",
    "tanhexp",
    "lisht",
    "softplusmone",
)
# Activations of transformers' that the original does not have: gelu with erf.
OTHER_ACTIVATIONS = ("gelu_erf",)
_CRASHES = "the original itself crashes on it"
# The other activations of the original, and why a model cannot have them.
UNUSABLE_ACTIVATIONS = {
    "rrelu": "the original draws a new random slope whenever it builds the graph",
    "psoftplus": "the original gives its variables random names, so no checkpoint of it can be restored",
    "spike": _CRASHES,
    "spike2": _CRASHES,
    "tanhshrink": _CRASHES,
    "arcsinh": _CRASHES,
    "aria": _CRASHES,
    "prelu": _CRASHES,
    "parcsinh": _CRASHES,
    "proottanh": _CRASHES,
    "seagull": _CRASHES,
    "snake": _CRASHES,
    "roottanh": _CRASHES,
}

# Keys of the original that change the mathematics and are not implemented. A config that switches one on is refused.
UNSUPPORTED = ("mlm_training",)
# The original compares the values of these keys with True: any other value leaves them off.
FLAGS = ("no_weight_tie", "rezero", "scalenorm", "macaron", "share_parameters", "mlp_glu")
# Keys of the original that Hugging Face's GPT-Neo does not have.
ORIGINAL_ONLY_KEYS = (*FLAGS, "rotary_emb", "axial_pos_emb", "num_mem_kv", "moe_layers", "moe_params")
# The parameters in mesh_tensorflow's set_default_moe_hparams that a forward pass reads. moe_activation is a key of its
# own in the original's config, beside moe_params.
MOE_DEFAULTS: dict[str, Any] = {
    "moe_gating": "top_2",
    "moe_num_experts": 16,
    "moe_hidden_size": 4096,
    "moe_group_size": 1024,
    "moe_loss_coef": 1e-2,
    "moe_capacity_factor_train": 1.25,
    "moe_capacity_factor_eval": 2.0,
    "moe_use_second_place_loss": 0,
    "moe_second_policy_train": "random",
    "moe_second_policy_eval": "random",
    "moe_second_threshold_train": 0.2,
    "moe_second_threshold_eval": 0.2,
    "moe_min_expert_capacity": 1,
    "moe_activation": "relu",
}
# The activations that mesh_tensorflow has a function for, under the same name.
MOE_ACTIVATIONS = ("relu", "gelu", "sigmoid", "tanh", "selu", "elu", "softplus")
MOE_POLICIES = ("all", "none", "threshold", "random")


def expand_attention_types(attention_types: Any) -> tuple[str, ...]:
    """Expands the shorthand that both config formats use.

    [[["global", "local"], 2]] becomes ("global", "local", "global", "local").

    Raises:
        ConfigError: The value is not such a shorthand.
    """
    try:
        expanded: list[str] = []
        for kinds, repeats in attention_types:
            if isinstance(kinds, str) or isinstance(repeats, bool) or not isinstance(repeats, int):
                raise TypeError
            expanded += list(kinds) * repeats
        return tuple(expanded)
    except (TypeError, ValueError):
        raise ConfigError(
            f'attention_types must look like [[["global", "local"], 12]], not {json.dumps(attention_types)}'
        ) from None


def collapse_attention_types(kinds: Sequence[str]) -> list[list[Any]]:
    """Finds the shortest shorthand for the layers' attention types; the inverse of expand_attention_types."""
    kinds = list(kinds)
    for period in range(1, len(kinds) + 1):
        if len(kinds) % period == 0 and kinds == kinds[:period] * (len(kinds) // period):
            return [[kinds[:period], len(kinds) // period]]
    return []
