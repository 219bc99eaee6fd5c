"""What ONNX Runtime's own operators do elsewhere, in operators of the ONNX standard: for other runtimes.

Block-quantised weights are signed integers, as DequantizeLinear reads them without zero points.
"""

import ml_dtypes
import numpy as np

from .precision import block_size
from .quantise import quantise


def standard_rotary(x, scope, config, tables):
    """layers.apply_rotary_emb: [batch, seq, heads * head], same result."""
    op, constant = scope.op, scope.graph.constant
    # [n_ctx, head / 2] -> [batch, seq, 1, head / 2]
    cos, sin = (op("Unsqueeze", op("Gather", table, "position_ids"), constant([2])) for table in tables)
    first, second = op(
        *("Split", op("Reshape", x, constant([0, 0, config.n_head, config.head_size]))),
        axis=-1,
        outputs=2,
        num_outputs=2,
    )
    turned = op("Sub", op("Mul", first, cos), op("Mul", second, sin))
    second = op("Add", op("Mul", second, cos), op("Mul", first, sin))
    whole = op("Concat", turned, second, axis=-1)
    return op("Reshape", whole, constant([0, 0, config.n_head * config.head_size]))


def standard_matmul(x, scope, place, names, name, inputs, outputs):
    """matmul.matmul: x @ some quantised variables side by side, [..., inputs] -> [..., outputs]."""
    bits = scope.graph.precision.layers
    # [inputs, outputs], in blocks of inputs: ONNX Runtime makes a MatMulNBits of these two nodes by itself.
    integers, scales = _blocks(scope, names, name, (outputs, inputs), bits, lambda *w: np.concatenate(w, 1).T, True)
    return place.op("MatMul", x, _dequantised(place, integers, scales, 0, block_size(inputs, bits)))


def standard_look_up(input_ids, scope, config):
    """layers.look_up: rows of the quantised embedding, int64 [batch, seq] -> [batch, seq, embd]."""
    integers, scales = standard_embedding(scope, "wte", config)
    op, block = scope["wte"].op, block_size(config.n_embd, scope.graph.precision.ends)
    rows = [op("Gather", part, input_ids) for part in (integers, scales)]
    return _dequantised(scope["wte"], *rows, 2, block)


def standard_head(h, scope, name, config):
    """The head's product, as layers.unembed has it: [batch, seq, embd] -> [batch, seq, n_vocab]."""
    head, block = scope["head"], block_size(config.n_embd, scope.graph.precision.ends)
    embedding = _dequantised(head, *standard_embedding(scope, name, config), 1, block)
    constant = scope.graph.constant
    shape = head.op("Concat", head.op("Shape", h, start=0, end=2), constant([config.n_vocab]), axis=0)
    # [batch, seq, embd] -> [batch * seq, embd] x [n_vocab, embd]^T -> [batch * seq, n_vocab]
    rows = head.op("Reshape", h, constant([-1, config.n_embd]))
    return head.op("Reshape", head.op("Gemm", rows, embedding, transB=1), shape)


def standard_embedding(scope, name, config):
    """(integers, scales) of an embedding, [n_vocab, embd] in blocks along its rows."""
    bits = scope.graph.precision.ends
    return _blocks(scope, [name], name, (config.n_vocab, config.n_embd), bits, lambda weight: weight, False)


def _dequantised(place, integers, scales, axis, block):
    return place.op("DequantizeLinear", integers, scales, axis=axis, block_size=block)


def _blocks(scope, names, name, shape, bits, function, transpose):
    """Initializers (integers, scales) of function(variables), float32 [outputs, inputs], quantised along inputs."""
    (outputs, inputs), block = shape, block_size(shape[1], bits)
    sizes = (outputs, inputs), (outputs, -(-inputs // block))
    sizes = tuple(size[::-1] for size in sizes) if transpose else sizes

    def compute(*variables):
        weight = np.ascontiguousarray(function(*variables))
        packed, scales = quantise(weight, bits, block, moments=scope.moments(name))
        if bits == 4:
            packed = np.stack([packed & 15, packed >> 4], axis=-1)
        # As integers around 0, [outputs, inputs], without what filled the last block.
        integers = packed.reshape(outputs, -1)[:, :inputs].astype(np.int16) - 2 ** (bits - 1)
        integers, scales = (integers.T, scales.T) if transpose else (integers, scales)
        if bits == 8:
            return integers.astype(np.int8), scales
        halves = np.append(integers.reshape(-1), [0] * (integers.size % 2)).astype(np.uint8) & 15
        return halves[0::2] | (halves[1::2] << 4), scales

    base = f"{name}/signed{bits}"
    if bits == 8:
        return scope.derived_pair(base, (np.int8, np.float32), sizes, compute, *names)
    stored = (-(-outputs * inputs // 2),), sizes[1]
    integers, scales = scope.derived_pair(base, (np.uint8, np.float32), stored, compute, *names)
    return scope.graph.add_view(f"{integers}/values", ml_dtypes.int4, sizes[0], integers), scales
