"""The one name space: every variable of a model under the original's name, with its shape and initial distribution."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from neo_tf.config import GPTNeoConfig

ROOT = "gpt2"


@dataclass(frozen=True)
class Variable:
    """The shape of a variable, and the distribution that the original initialises it with.

    Args:
        shape: The variable's shape.
        mean: The mean of the initial values.
        stddev: Their standard deviation; with 0 all of them are the mean.
    """

    shape: tuple[int, ...]
    mean: float = 0.0
    stddev: float = 0.0

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


def model_variables(config: GPTNeoConfig) -> dict[str, Variable]:
    """Returns all variables of a model, {canonical name: Variable}, in the order of the forward pass.

    Initial values are the original's: gpt-neo's models/layers.py, models/gpt2/gpt2.py, and mesh_tensorflow's
    attention_params_simple for q, k, v and o.
    """
    variables = _embeddings(config)
    for layer in range(config.n_layer):
        variables |= _layer(config, layer)
    variables |= _head(config)
    return {f"{ROOT}/{name}": variable for name, variable in variables.items()}


def _embeddings(config: GPTNeoConfig) -> dict[str, Variable]:
    variables = {"wte": Variable((config.n_vocab, config.n_embd), stddev=0.02)}
    if config.axial_pos_emb:
        for number, rows in enumerate(config.axial_pos_emb, start=1):
            variables[f"axial_wpe_{number}"] = Variable((rows, config.n_embd), stddev=0.01)
    elif not config.rotary_emb:
        variables["wpe"] = Variable((config.n_ctx, config.n_embd), stddev=0.01)
    return variables


def _layer(config: GPTNeoConfig, layer: int) -> dict[str, Variable]:
    scope, kind = layer_scope(config, layer), config.attention_types[layer]
    variables: dict[str, Variable] = {}
    if config.macaron:
        variables |= _mlp(config, f"{scope}/mlp_macaron")
    if config.rezero:
        variables |= {f"{scope}/norm_rezero_{number}/g": Variable(()) for number in (1, 2)}
    if kind != "none":
        if not config.rezero:
            variables |= _norm(config, f"{scope}/norm_1", config.scalenorm)
        variables |= _attn(config, f"{scope}/attn", kind)
    if not config.rezero:
        variables |= _norm(config, f"{scope}/norm_2", config.scalenorm)
    variables |= _moe(config, scope) if layer in config.moe_layers else _mlp(config, f"{scope}/mlp")
    return variables


def _attn(config: GPTNeoConfig, scope: str, kind: str) -> dict[str, Variable]:
    embd, heads = config.n_embd, config.n_head * config.head_size
    variables = {
        f"{scope}/q": Variable((embd, heads), stddev=(embd * config.head_size) ** -0.5),
        f"{scope}/k": Variable((embd, heads), stddev=embd**-0.5),
        f"{scope}/v": Variable((embd, heads), stddev=embd**-0.5),
        f"{scope}/o": Variable((heads, embd), stddev=heads**-0.5),
        f"{scope}/compute_output_bias/o_b": Variable((embd,)),
    }
    if kind == "global" and config.num_mem_kv:
        memory = Variable((config.num_mem_kv, config.n_head, config.head_size), stddev=config.head_size**-0.5)
        variables |= {f"{scope}/attention/mem_k": memory, f"{scope}/attention/mem_v": memory}
    return variables


def _mlp(config: GPTNeoConfig, scope: str) -> dict[str, Variable]:
    embd = config.n_embd
    inner = config.n_inner
    width = 2 * inner if config.mlp_glu else inner
    return {
        f"{scope}/conv1d_main/c_fc/kernel": _kernel(config, embd, width),
        f"{scope}/conv1d_main/c_fc/bias": Variable((width,)),
        f"{scope}/conv1d_main/c_proj/kernel": _kernel(config, inner, embd, residual=True),
        f"{scope}/conv1d_main/c_proj/bias": Variable((embd,)),
    }


def _moe(config: GPTNeoConfig, scope: str) -> dict[str, Variable]:
    embd = config.n_embd
    experts, hidden = config.moe_params["moe_num_experts"], config.moe_params["moe_hidden_size"]
    return {
        f"{scope}/top_2_gating/kernel": Variable((embd, experts), stddev=embd**-0.5),
        f"{scope}/wi/kernel": Variable((experts, embd, hidden), stddev=embd**-0.5),
        f"{scope}/wo/kernel": Variable((experts, hidden, embd), stddev=hidden**-0.5),
    }


def _head(config: GPTNeoConfig) -> dict[str, Variable]:
    if config.no_weight_tie:
        scope = "wte_final_linear/conv1d_main/linear_out"
        kernel = _kernel(config, config.n_embd, config.n_vocab)
        return {f"{scope}/kernel": kernel, f"{scope}/bias": Variable((config.n_vocab,))}
    variables = _norm(config, "ln_f")
    if config.untied_lm_head:
        variables["lm_head"] = Variable((config.n_vocab, config.n_embd), stddev=0.02)
    return variables


def _norm(config: GPTNeoConfig, scope: str, scalar: bool = False) -> dict[str, Variable]:
    """A norm with a gain and a bias for each feature, or with one scalar gain."""
    if scalar:
        return {f"{scope}/g": Variable((), mean=1.0)}
    return {f"{scope}/g": Variable((config.n_embd,), mean=1.0), f"{scope}/b": Variable((config.n_embd,))}


def _kernel(config: GPTNeoConfig, rows: int, columns: int, residual: bool = False) -> Variable:
    """The matrix of a linear layer; `residual` where its outputs go to the residual stream."""
    stddev = 0.02
    if residual and config.training.get("scale_by_depth", True):
        stddev /= math.sqrt(config.n_layer)
    if config.training.get("scale_by_in"):
        stddev /= math.sqrt(rows)
    return Variable((rows, columns), stddev=stddev)


def storage_name(name: str) -> str:
    """The path of a variable in an HDF5 file, which would collapse the double slash of shared layers."""
    return name.replace("//", "/shared/")


def canonical_name(path: str) -> str:
    """The canonical name of a variable in an HDF5 file: the inverse of storage_name."""
    return path.replace(f"{ROOT}/shared/", f"{ROOT}//")


def layer_scope(config: GPTNeoConfig, layer: int) -> str:
    """A layer's scope below the root: h0, h1, ..., or the empty scope where all layers share their variables."""
    return "" if config.share_parameters else f"h{layer}"


def initial_value(name: str, variable: Variable, seed: int) -> np.ndarray:
    """Draws a variable's initial value, float32; it depends on the name and the seed, not on the machine.

    Args:
        name: The variable's canonical name.
        variable: Its shape and distribution.
        seed: An integer from 0 on.
    """
    if not variable.stddev:
        return np.full(variable.shape, variable.mean, np.float32)
    generator = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    value = generator.standard_normal(variable.shape, np.float32)
    value *= variable.stddev
    return value


def count_parameters(config: GPTNeoConfig) -> int:
    """The number of a model's parameters; the tied embedding counts once."""
    return sum(variable.size for variable in model_variables(config).values())
