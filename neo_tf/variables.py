"""The one name space: every variable of a model under the original's name, with its shape and initial distribution."""

import math
import zlib
from dataclasses import dataclass

import numpy as np

ROOT = "gpt2"


@dataclass(frozen=True)
class Variable:
    """A variable's shape, and how the original initialises it: normal(mean, stddev); stddev 0 means constant."""

    shape: tuple
    mean: float = 0.0
    stddev: float = 0.0

    @property
    def size(self):
        """Elements."""
        return math.prod(self.shape)


def model_variables(config):
    """All variables of a model, {canonical name: Variable}, in the order of the forward pass.

    Initial values are the original's: gpt-neo's models/layers.py, models/gpt2/gpt2.py, and mesh_tensorflow's
    attention_params_simple for q, k, v and o.
    """
    embd, heads, inner = config.n_embd, config.n_head * config.head_size, config.n_inner
    scale_by_in = config.training.get("scale_by_in")

    def kernel(rows, columns, residual=False):
        stddev = 0.02
        if residual and config.training.get("scale_by_depth", True):
            stddev /= math.sqrt(config.n_layer)
        if scale_by_in:
            stddev /= math.sqrt(rows)
        return Variable((rows, columns), stddev=stddev)

    def norm(scope, scalar=False):
        if scalar:
            return {f"{scope}/g": Variable((), mean=1.0)}
        return {f"{scope}/g": Variable((embd,), mean=1.0), f"{scope}/b": Variable((embd,))}

    def mlp(scope):
        width = 2 * inner if config.mlp_glu else inner
        return {
            f"{scope}/conv1d_main/c_fc/kernel": kernel(embd, width),
            f"{scope}/conv1d_main/c_fc/bias": Variable((width,)),
            f"{scope}/conv1d_main/c_proj/kernel": kernel(inner, embd, residual=True),
            f"{scope}/conv1d_main/c_proj/bias": Variable((embd,)),
        }

    def moe(scope):
        experts, hidden = config.moe_params["moe_num_experts"], config.moe_params["moe_hidden_size"]
        return {
            f"{scope}/top_2_gating/kernel": Variable((embd, experts), stddev=embd**-0.5),
            f"{scope}/wi/kernel": Variable((experts, embd, hidden), stddev=embd**-0.5),
            f"{scope}/wo/kernel": Variable((experts, hidden, embd), stddev=hidden**-0.5),
        }

    def attn(scope, kind):
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

    variables = {"wte": Variable((config.n_vocab, embd), stddev=0.02)}
    if config.axial_pos_emb:
        for number, rows in enumerate(config.axial_pos_emb, start=1):
            variables[f"axial_wpe_{number}"] = Variable((rows, embd), stddev=0.01)
    elif not config.rotary_emb:
        variables["wpe"] = Variable((config.n_ctx, embd), stddev=0.01)
    for layer, kind in enumerate(config.attention_types):
        scope = layer_scope(config, layer)
        if config.macaron:
            variables |= mlp(f"{scope}/mlp_macaron")
        if config.rezero:
            variables |= {f"{scope}/norm_rezero_{number}/g": Variable(()) for number in (1, 2)}
        if kind != "none":
            if not config.rezero:
                variables |= norm(f"{scope}/norm_1", config.scalenorm)
            variables |= attn(f"{scope}/attn", kind)
        if not config.rezero:
            variables |= norm(f"{scope}/norm_2", config.scalenorm)
        variables |= moe(scope) if layer in config.moe_layers else mlp(f"{scope}/mlp")
    if config.no_weight_tie:
        head = "wte_final_linear/conv1d_main/linear_out"
        variables |= {f"{head}/kernel": kernel(embd, config.n_vocab), f"{head}/bias": Variable((config.n_vocab,))}
    else:
        variables |= norm("ln_f")
        if config.untied_lm_head:
            variables["lm_head"] = Variable((config.n_vocab, embd), stddev=0.02)
    return {f"{ROOT}/{name}": variable for name, variable in variables.items()}


def storage_name(name):
    """A canonical name as a path that HDF5 keeps apart: it would collapse the double slash of shared layers."""
    return name.replace("//", "/shared/")


def canonical_name(path):
    """The inverse of storage_name."""
    return path.replace(f"{ROOT}/shared/", f"{ROOT}//")


def layer_scope(config, layer):
    """A layer's scope below the root: h0, h1, ..., or the empty one that all layers share."""
    return "" if config.share_parameters else f"h{layer}"


def initial_value(name, variable, seed):
    """A variable's initial value, float32 of variable.shape; the same for the same name and seed on every machine."""
    if not variable.stddev:
        return np.full(variable.shape, variable.mean, np.float32)
    generator = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    value = generator.standard_normal(variable.shape, np.float32)
    value *= variable.stddev
    return value


def count_parameters(config):
    """Parameters of a model; the tied embedding counts once."""
    return sum(variable.size for variable in model_variables(config).values())
