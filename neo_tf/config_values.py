"""The options that a model can have, by the names of the original's config keys."""

import json

from neo_tf.errors import ConfigError

ATTENTION_TYPES = ("global", "local", "linear", "none")
PRECISIONS = ("float32", "bfloat16", "float16")
GPT2_VOCAB_SIZE = 50257  # ids of GPT-2's tokenizer; the last one is end-of-text

# The activations of the original's models/activations.py that it can run.
ACTIVATIONS = (
    *("gelu", "relu", "sigmoid", "tanh", "selu", "elu", "abs", "sin", "cos", "sign", "silu", "softplus", "lrelu001"),
    *("lrelu020", "id", "triangle_relax", "square_relax", "softsign", "softmax", "logsoftmax", "bipolarsigmoid"),
    *("elish", "maxsig", "cosid", "minsin", "maxtanh", "mish", "tanhexp", "lisht", "softplusmone"),
)
_CRASHES = "the original itself crashes on it"
UNUSABLE_ACTIVATIONS = {
    "rrelu": "the original draws a new random slope whenever it builds the graph",
    "psoftplus": "the original gives its variables random names, so no checkpoint of it can be restored",
    **dict.fromkeys(("spike", "spike2", "tanhshrink", "arcsinh", "aria", "prelu", "parcsinh"), _CRASHES),
    **dict.fromkeys(("proottanh", "seagull", "snake", "roottanh"), _CRASHES),
}

# Keys of the original that change the mathematics and have no layer here yet. Refused when they are switched on.
UNSUPPORTED = ("mlm_training",)
# The original compares these with True: any other value leaves them off.
FLAGS = ("no_weight_tie", "rezero", "scalenorm", "macaron", "share_parameters", "mlp_glu")
# Options that Hugging Face's GPT-Neo has no key for.
OPTIONS = (*FLAGS, "rotary_emb", "axial_pos_emb", "num_mem_kv", "moe_layers", "moe_params")
# mesh_tensorflow's set_default_moe_hparams, as far as a forward pass reads it; moe_activation is a key of its own in
# the original's config, beside moe_params.
MOE_DEFAULTS = {
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
# mesh_tensorflow's functions by these names are the activations of the same name.
MOE_ACTIVATIONS = ("relu", "gelu", "sigmoid", "tanh", "selu", "elu", "softplus")
MOE_POLICIES = ("all", "none", "threshold", "random")


def expand_attention_types(attention_types):
    """[[["global", "local"], 2]] -> ("global", "local", "global", "local"): both formats' shorthand."""
    try:
        expanded = []
        for kinds, repeats in attention_types:
            if isinstance(kinds, str) or isinstance(repeats, bool) or not isinstance(repeats, int):
                raise TypeError
            expanded += list(kinds) * repeats
        return tuple(expanded)
    except (TypeError, ValueError):
        raise ConfigError(
            f'attention_types must look like [[["global", "local"], 12]], not {json.dumps(attention_types)}'
        ) from None


def collapse_attention_types(kinds):
    """The shortest shorthand for a sequence of kinds: the inverse of expand_attention_types."""
    kinds = list(kinds)
    for period in range(1, len(kinds) + 1):
        if len(kinds) % period == 0 and kinds == kinds[:period] * (len(kinds) // period):
            return [[kinds[:period], len(kinds) // period]]
    return []
