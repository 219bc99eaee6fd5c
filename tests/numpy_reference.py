"""The original's forward pass in float64 numpy, written from the golden notes: the reference for combined options.

test_numpy_reference.py compares it with everything that the original itself computed.
"""

import math

import numpy as np


def forward(params, read, ids):
    """Logits float64 [batch, seq, n_vocab] of an original config (a dict), read(name) -> array, ids [batch, seq]."""
    embd, heads, n_ctx = params["n_embd"], params["n_head"], params["n_ctx"]
    head, seq = embd // heads, ids.shape[1]
    kinds = [kind for group, times in params["attention_types"] for _ in range(times) for kind in group]
    act = ACTIVATIONS[params.get("activation_fn", "gelu")]
    rotary = params.get("rotary_emb") is not None

    def var(name):
        return np.asarray(read(f"gpt2/{name}")).astype(np.float64)

    h = var("wte")[ids]
    if rotary:
        pass
    elif params.get("axial_pos_emb") is not None:
        one, two = var("axial_wpe_1"), var("axial_wpe_2")
        for p in range(min(seq, len(one) * len(two))):
            h[:, p] += (one[p // len(two)] + two[p % len(two)]) / 2
    else:
        h = h + var("wpe")[:seq]
    for layer, kind in enumerate(kinds):
        scope = "" if params.get("share_parameters") is True else f"h{layer}"
        h = _block(params, var, scope, layer, kind, h, act, rotary, heads, head, n_ctx)
    if params.get("no_weight_tie") is True:
        name = "wte_final_linear/conv1d_main/linear_out"
        return h @ var(f"{name}/kernel") + var(f"{name}/bias")
    return _normal(h) * var("ln_f/g") @ var("wte").T + var("ln_f/b") @ var("wte").T


def _block(params, var, scope, layer, kind, x, act, rotary, heads, head, n_ctx):
    rezero, half = params.get("rezero") is True, 0.5 if params.get("macaron") is True else 1.0

    def prenorm(x, name):
        if rezero:
            return x
        y = _normal(x) * var(f"{scope}/{name}/g")
        return y if params.get("scalenorm") is True else y + var(f"{scope}/{name}/b")

    def gain(number):
        return var(f"{scope}/norm_rezero_{number}/g") if rezero else 1.0

    def mlp(x, name):
        name = f"{scope}/{name}/conv1d_main"
        y = x @ var(f"{name}/c_fc/kernel") + var(f"{name}/c_fc/bias")
        if params.get("mlp_glu") is True:
            middle = y.shape[-1] // 2
            y = y[..., :middle] * act(y[..., middle:])
        else:
            y = act(y)
        return y @ var(f"{name}/c_proj/kernel") + var(f"{name}/c_proj/bias")

    if half == 0.5:
        x = x + half * mlp(x, "mlp_macaron")
    a = x if kind == "none" else _attn(params, var, f"{scope}/attn", kind, prenorm(x, "norm_1"), rotary, heads, head)
    x = x + gain(1) * a
    y = prenorm(x, "norm_2")
    m = _moe(params["moe_params"], var, scope, y) if layer in (params.get("moe_layers") or ()) else mlp(y, "mlp")
    return x + gain(2) * half * m


def _attn(params, var, scope, kind, x, rotary, heads, head):
    batch, seq, _ = x.shape
    q, k, v = ((x @ var(f"{scope}/{name}")).reshape(batch, seq, heads, head).swapaxes(1, 2) for name in "qkv")
    if rotary:
        angle = np.outer(np.arange(seq), 10000.0 ** -(np.arange(head // 2) * 2 / head))
        cos, sin = np.cos(np.hstack([angle, angle])), np.sin(np.hstack([angle, angle]))
        q, k = (t * cos + np.concatenate([-t[..., head // 2 :], t[..., : head // 2]], -1) * sin for t in (q, k))
    query, key = np.arange(seq)[:, None], np.arange(seq)[None]
    if kind == "linear":
        q, k = _softmax(q), np.exp(k)
        a = np.zeros_like(v)
        for p in range(seq):
            context = np.einsum("bhji,bhjo->bhio", k[:, :, : p + 1], v[:, :, : p + 1])
            sums = k[:, :, : p + 1].sum(2) + 1e-6
            a[:, :, p] = np.einsum("bhi,bhio->bho", q[:, :, p], context) / (q[:, :, p] * sums).sum(-1, keepdims=True)
    else:
        seen = key <= query
        if kind == "local":
            seen = seen & (key > query - params.get("local_attention_radius", 256))
        elif params.get("num_mem_kv"):
            memory = [var(f"{scope}/attention/mem_{name}").swapaxes(0, 1)[None].repeat(batch, 0) for name in "kv"]
            k, v = np.concatenate([memory[0], k], 2), np.concatenate([memory[1], v], 2)
            seen = np.hstack([np.ones((seq, params["num_mem_kv"]), bool), seen])
        a = _softmax(np.where(seen, q @ k.swapaxes(2, 3), -np.inf)) @ v
    a = a.swapaxes(1, 2).reshape(batch, seq, -1)
    return a @ var(f"{scope}/o") + var(f"{scope}/compute_output_bias/o_b")


def _moe(given, var, scope, x):
    """Goes through the positions of the batch: first choices while their experts have capacity, then second ones."""
    params = {"moe_num_experts": 16, "moe_group_size": 1024, "moe_capacity_factor_eval": 2.0} | given
    flat, experts = x.reshape(-1, x.shape[-1]), params["moe_num_experts"]
    groups = max(1, len(flat) // params["moe_group_size"])
    while len(flat) % groups:
        groups += 1
    out = np.zeros_like(flat)
    for rows in np.array_split(np.arange(len(flat)), groups):
        room = max(1, min(len(rows), int(len(rows) * params["moe_capacity_factor_eval"] / experts)))
        gates = _softmax(flat[rows] @ var(f"{scope}/top_2_gating/kernel"))
        first = gates.argmax(-1)
        rest = gates.copy()
        rest[np.arange(len(rows)), first] = 0
        second = rest.argmax(-1)
        best, next_best = gates.max(-1), rest.max(-1)
        weights = [best / (best + next_best + 1e-9), next_best / (best + next_best + 1e-9)]
        used, counted = [0] * experts, [0] * experts
        for place, row in enumerate(rows):  # the position counts even if it gets no place
            expert = first[place]
            if counted[expert] < room:
                out[row] += weights[0][place] * _expert(var, scope, expert, flat[row])
                used[expert] += 1
            counted[expert] += 1
        counted = list(used)
        for place, row in enumerate(rows):
            expert, policy = second[place], params["moe_second_policy_eval"]
            threshold = params.get("moe_second_threshold_eval", 0.2)
            if policy == "none" or (policy == "threshold" and not weights[1][place] > threshold):
                continue
            if counted[expert] < room:
                out[row] += weights[1][place] * _expert(var, scope, expert, flat[row])
            counted[expert] += 1
    return out.reshape(x.shape)


def _expert(var, scope, expert, x):
    return np.maximum(x @ var(f"{scope}/wi/kernel")[expert], 0) @ var(f"{scope}/wo/kernel")[expert]


def _normal(x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)


def _softmax(x):
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x * _sigmoid(x),
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    "softmax": _softmax,
    "cosid": lambda x: np.cos(x) - x,
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "softsign": lambda x: x / (1 + np.abs(x)),
}
