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

    one, zero = Variable((embd,), mean=1.0), Variable((embd,))
    variables = {
        "wte": Variable((config.n_vocab, embd), stddev=0.02),
        "wpe": Variable((config.n_ctx, embd), stddev=0.01),
    }
    for layer in range(config.n_layer):
        scope = f"h{layer}"
        variables |= {
            f"{scope}/norm_1/g": one,
            f"{scope}/norm_1/b": zero,
            f"{scope}/attn/q": Variable((embd, heads), stddev=(embd * config.head_size) ** -0.5),
            f"{scope}/attn/k": Variable((embd, heads), stddev=embd**-0.5),
            f"{scope}/attn/v": Variable((embd, heads), stddev=embd**-0.5),
            f"{scope}/attn/o": Variable((heads, embd), stddev=heads**-0.5),
            f"{scope}/attn/compute_output_bias/o_b": zero,
            f"{scope}/norm_2/g": one,
            f"{scope}/norm_2/b": zero,
            f"{scope}/mlp/conv1d_main/c_fc/kernel": kernel(embd, inner),
            f"{scope}/mlp/conv1d_main/c_fc/bias": Variable((inner,)),
            f"{scope}/mlp/conv1d_main/c_proj/kernel": kernel(inner, embd, residual=True),
            f"{scope}/mlp/conv1d_main/c_proj/bias": zero,
        }
    variables |= {"ln_f/g": one, "ln_f/b": zero}
    return {f"{ROOT}/{name}": variable for name, variable in variables.items()}


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
