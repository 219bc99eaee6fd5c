"""ConfigFields: what the forward pass of a GPT-Neo reads, checked."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from neo_tf.config_values import (
    ACTIVATIONS,
    ATTENTION_TYPES,
    DTYPE_NAMES,
    MOE_ACTIVATIONS,
    MOE_DEFAULTS,
    MOE_POLICIES,
    OTHER_ACTIVATIONS,
    UNUSABLE_ACTIVATIONS,
)
from neo_tf.errors import ConfigError

_MOE_NUMBERS = (
    "moe_loss_coef",
    "moe_min_expert_capacity",
    "moe_capacity_factor_train",
    "moe_capacity_factor_eval",
    "moe_second_threshold_train",
    "moe_second_threshold_eval",
)


@dataclass(frozen=True)
class ConfigFields:
    """A GPT-Neo model's shape and options, under the original's names.

    Args:
        n_vocab: The number of rows of the token embedding. It may be larger than the tokenizer's vocabulary.
        n_ctx: The number of positions, which is the length of the longest sequence in tokens.
        n_embd: The hidden size.
        n_head: The number of attention heads. It divides n_embd.
        n_layer: The number of layers. With 0 the logits come from the embeddings alone, as the original allows it.
        attention_types: The attention type of each layer, one of ATTENTION_TYPES.
        local_attention_radius: The number of positions that a query of a local layer sees, its own included.
        activation_fn: One of ACTIVATIONS or OTHER_ACTIVATIONS. The original reads this key and ignores
            `activation_function`.
        n_inner: The hidden size of the mlp (Hugging Face's `intermediate_size`). The default is 4 * n_embd.
        layer_norm_epsilon: The number that is added to the variance. The original's constant is 1e-5.
        precision: The type of the stored variables, one of DTYPE_NAMES.
        rotary_emb: Queries and keys are rotated by their position; there is no position embedding.
        axial_pos_emb: The sizes (rows, columns) of two tables whose sums are the position embedding. With None the
            position embedding is one table.
        no_weight_tie: The logits come from a linear layer with a bias, without ln_f before it. By default they come
            from wte, the token embedding.
        untied_lm_head: The logits come from an output embedding after ln_f (Hugging Face's lm_head where it differs
            from the token embedding).
        rezero: The outputs of the sublayers are multiplied by scalar gains; there are no norms in front of them.
        scalenorm: The norms inside the layers have one scalar gain and no bias.
        macaron: Each layer has a second mlp before its attention, and both mlps count half.
        share_parameters: All layers have the same variables.
        num_mem_kv: The number of learned keys and values that every query of a global layer sees.
        mlp_glu: The first matrix of the mlp is twice as wide, and its second half is a gate.
        moe_layers: The layers whose mlp is a mixture of experts.
        moe_params: The parameters of the mixture of experts, under mesh_tensorflow's names. The defaults are
            MOE_DEFAULTS.
        embed_dropout: The dropout rate of the embeddings, in [0, 1). Dropout is used in training alone.
        attn_dropout: The dropout rate of the attention weights.
        res_dropout: The dropout rate of the sublayers' outputs.
        eos_token_id: The tokenizer's end-of-text id. The forward pass does not read it.
        pad_token_id: The tokenizer's padding id. The forward pass does not read it. It may lie outside the
            vocabulary, as the original's does.
        training: The other keys of the source, which are kept so that writing the config back loses nothing.

    Raises:
        ConfigError: A value is missing or malformed, or two values contradict each other. The message names them.
    """

    n_vocab: int
    n_ctx: int
    n_embd: int
    n_head: int
    n_layer: int
    attention_types: tuple[str, ...] = ()
    local_attention_radius: int = 256
    activation_fn: str = "gelu"
    n_inner: int = None  # type: ignore[assignment]  # __post_init__ replaces None, so that a reader always finds an int
    layer_norm_epsilon: float = 1e-5
    precision: str = "float32"
    rotary_emb: bool = False
    axial_pos_emb: tuple[int, int] | None = None
    no_weight_tie: bool = False
    untied_lm_head: bool = False
    rezero: bool = False
    scalenorm: bool = False
    macaron: bool = False
    share_parameters: bool = False
    num_mem_kv: int = 0
    mlp_glu: bool = False
    moe_layers: tuple[int, ...] = ()
    moe_params: dict[str, Any] = field(default_factory=dict)
    embed_dropout: float = 0.0
    attn_dropout: float = 0.0
    res_dropout: float = 0.0
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    training: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for name in ("n_vocab", "n_ctx", "n_embd", "n_head", "local_attention_radius"):
            _require_positive_int(name, getattr(self, name))
        if not _is_int(self.n_layer) or self.n_layer < 0:
            raise ConfigError(f"n_layer must be an integer that is not negative, not {self.n_layer!r}")
        stated: Any = self.n_inner
        if stated is None:
            self._set("n_inner", 4 * self.n_embd)
        _require_positive_int("n_inner", self.n_inner)
        if self.n_embd % self.n_head:
            raise ConfigError(f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}")
        self._check_attention_types()
        self._check_activation()
        self._check_head_and_positions()
        self._check_mixture_of_experts()
        self._check_numbers()
        self._check_token_ids()

    def _set(self, name: str, value: object) -> None:
        """Normalises a field while the frozen object is made."""
        object.__setattr__(self, name, value)

    def _check_attention_types(self) -> None:
        self._set("attention_types", tuple(self.attention_types))
        if len(self.attention_types) != self.n_layer:
            raise ConfigError(
                f"attention_types describes {len(self.attention_types)} layers, but n_layer is {self.n_layer}"
            )
        for layer, kind in enumerate(self.attention_types):
            if not isinstance(kind, str) or kind not in ATTENTION_TYPES:
                known = ", ".join(ATTENTION_TYPES)
                raise ConfigError(f"attention type {kind!r} of layer {layer} is not supported (known: {known})")

    def _check_activation(self) -> None:
        if not isinstance(self.activation_fn, str):
            raise ConfigError(f"activation_fn must be a name, not {self.activation_fn!r}")
        if self.activation_fn in UNUSABLE_ACTIVATIONS:
            raise ConfigError(f"activation_fn {self.activation_fn!r}: {UNUSABLE_ACTIVATIONS[self.activation_fn]}")
        if self.activation_fn not in (*ACTIVATIONS, *OTHER_ACTIVATIONS):
            known = ", ".join(ACTIVATIONS)
            raise ConfigError(f"activation_fn {self.activation_fn!r} is not supported (known: {known})")

    def _check_head_and_positions(self) -> None:
        if self.untied_lm_head and self.no_weight_tie:
            raise ConfigError("untied_lm_head and no_weight_tie are both on, but a model has one head")
        if self.rotary_emb:
            self._set("axial_pos_emb", None)  # the original looks for rotary_emb first
            if self.head_size % 2:
                raise ConfigError(f"rotary_emb halves the heads, but their size is {self.head_size}")
        if self.axial_pos_emb is not None:
            sizes = self.axial_pos_emb
            if not isinstance(sizes, list | tuple) or len(sizes) != 2 or not all(_is_positive_int(n) for n in sizes):
                raise ConfigError(f"axial_pos_emb must be two positive integers, not {json.dumps(sizes)}")
            self._set("axial_pos_emb", tuple(sizes))
        if not _is_int(self.num_mem_kv) or self.num_mem_kv < 0:
            raise ConfigError(f"num_mem_kv must be an integer that is not negative, not {self.num_mem_kv!r}")

    def _check_mixture_of_experts(self) -> None:
        if not isinstance(self.moe_layers or (), list | tuple):
            raise ConfigError(f"moe_layers must be a list of layers, not {self.moe_layers!r}")
        if not isinstance(self.moe_params or {}, dict):
            raise ConfigError(f"moe_params must be an object, not {self.moe_params!r}")
        self._set("moe_layers", tuple(self.moe_layers or ()))
        if not self.moe_layers:
            self._set("moe_params", {})
            return
        for layer in self.moe_layers:
            if not _is_int(layer) or not 0 <= layer < self.n_layer:
                raise ConfigError(f"moe_layers names layer {layer!r}, but n_layer is {self.n_layer}")
        self._set("moe_params", MOE_DEFAULTS | (self.moe_params or {}))
        _check_moe_values(self.moe_params)
        if self.precision == "bfloat16":
            raise ConfigError("moe_layers with precision bfloat16: the original itself crashes on it")
        _check_moe_policies(self.moe_params)
        if self.res_dropout:
            raise ConfigError(
                f"res_dropout {self.res_dropout} with moe_layers: the original drops in inference too; set it to 0"
            )

    def _check_numbers(self) -> None:
        if self.precision not in DTYPE_NAMES:
            raise ConfigError(f"precision {self.precision!r} is not one of {', '.join(DTYPE_NAMES)}")
        if not _is_number(self.layer_norm_epsilon) or not 0 < self.layer_norm_epsilon < 1:
            raise ConfigError(f"layer_norm_epsilon must be a small positive number, not {self.layer_norm_epsilon!r}")
        for name in ("embed_dropout", "attn_dropout", "res_dropout"):
            rate = getattr(self, name)
            if not _is_number(rate) or not 0 <= rate < 1:
                raise ConfigError(f"{name} must be a rate in [0, 1), not {rate!r}")

    def _check_token_ids(self) -> None:
        for name in ("eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            if value is not None and not _is_int(value):
                raise ConfigError(f"{name} must be a token id, not {value!r}")
        if self.pad_token_id is not None and self.pad_token_id < 0:
            raise ConfigError(f"pad_token_id must not be negative, but it is {self.pad_token_id}")
        if self.eos_token_id is not None and not 0 <= self.eos_token_id < self.n_vocab:
            raise ConfigError(f"eos_token_id {self.eos_token_id} is outside the vocabulary of {self.n_vocab}")

    @property
    def head_size(self) -> int:
        """The number of features of one attention head."""
        return self.n_embd // self.n_head

    @property
    def pad_token_id_in_vocab(self) -> int | None:
        """The padding id where the token embedding has a row for it, or None.

        The original's padding id is often n_vocab itself. Other code would look it up in the embedding and crash.
        """
        if self.pad_token_id is None or self.pad_token_id >= self.n_vocab:
            return None
        return self.pad_token_id

    @property
    def huggingface_keys(self) -> dict[str, Any]:
        """The keys of Hugging Face's config.json that say nothing of the model's mathematics."""
        others = self.training.get("huggingface")
        return others if isinstance(others, dict) else {}

    @property
    def bos_token_id(self) -> int | None:
        """The id that a text begins with where nothing is before it: the end-of-text id, unless the config says so."""
        return self.huggingface_keys.get("bos_token_id", self.eos_token_id)

    def window(self, layer: int) -> int:
        """The number of positions that a query of a layer sees, its own included.

        It is local_attention_radius for a local layer, but at most n_ctx, and n_ctx for any other layer.
        """
        if self.attention_types[layer] == "local":
            return min(self.local_attention_radius, self.n_ctx)
        return self.n_ctx

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed. The copy is checked too."""
        return dataclasses.replace(self, **changes)


def _check_moe_values(params: Mapping[str, Any]) -> None:
    for name in ("moe_num_experts", "moe_hidden_size", "moe_group_size"):
        _require_positive_int(name, params[name])
    for name in _MOE_NUMBERS:
        if not _is_number(params[name]) or params[name] < 0:
            raise ConfigError(f"{name} must be a number that is not negative, not {params[name]!r}")
    for name, known in (("moe_gating", ("top_2",)), ("moe_activation", MOE_ACTIVATIONS)):
        if params[name] not in known:
            raise ConfigError(f"{name} {params[name]!r} is not supported (known: {', '.join(known)})")


def _check_moe_policies(params: Mapping[str, Any]) -> None:
    for name in ("moe_second_policy_train", "moe_second_policy_eval"):
        if params[name] not in MOE_POLICIES:
            raise ConfigError(f"{name} {params[name]!r} is not one of {', '.join(MOE_POLICIES)}")
    if params["moe_second_policy_eval"] == "random":
        raise ConfigError(
            "moe_second_policy_eval is 'random' (the default): the original draws experts at random in inference;"
            " choose 'all', 'none' or 'threshold' (--moe-policy)"
        )


def _require_positive_int(name: str, value: object) -> None:
    if not _is_positive_int(value):
        raise ConfigError(f"{name} must be a positive integer, not {value!r}")


def _is_positive_int(value: Any) -> bool:
    return _is_int(value) and value >= 1


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
