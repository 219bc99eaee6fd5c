import copy

import keras
import numpy as np
import pytest
import tensorflow as tf

from neo_tf.training.adafactor import Adafactor, factored_axes
from neo_tf.training.adam import Adam, is_decayed
from neo_tf.training.loss import CrossEntropyWithZLoss
from neo_tf.training.optimizer import clip_by_global_norm
from neo_tf.training.schedule import WarmupAndDecay

RNG = np.random.default_rng(7)


def variable(name, value):
    with keras.name_scope("gpt2"), keras.name_scope("h0"):
        return keras.Variable(value, name=name, dtype="float32")


# ---- Adam


@pytest.mark.parametrize(
    "name", ["wte", "wpe", "axial_wpe_1", "h0/attn/q", "h0/attn/attention/mem_k", "ln_f/g", "ln_f/b"]
)
def test_decayed(name):
    assert is_decayed(name)


@pytest.mark.parametrize(
    "name",
    [
        "h0/norm_1/g",
        "h0/norm_rezero_1/g",
        "h0/mlp/conv1d_main/c_fc/bias",
        "h0/attn/compute_output_bias/o_b",
        "/norm_2/b",
    ],
)
def test_not_decayed(name):
    assert not is_decayed(name)


def test_the_decay_of_a_bfloat16_master_is_that_of_its_rounded_weight():
    weight = 1 + 2**-9  # which bfloat16 rounds to 1
    results = {}
    for dtype in ("float32", "bfloat16"):
        one = variable("q", [weight])
        optimizer = Adam(1.0, weight_decay=0.5, master_dtype=dtype)
        optimizer.apply([tf.zeros([1])], [one])
        results[dtype] = float(one[0])
    assert results == {"float32": weight - 0.5 * weight, "bfloat16": weight - 0.5}


def test_an_optimizer_is_stored_with_all_its_arguments():
    for optimizer in (
        Adam(WarmupAndDecay(0.1, "cosine", 7, 3), 0.8, 0.7, 1e-3, 0.2, 0.5, "bfloat16"),
        Adafactor(0.1, 0.3, 0.8, 1e-20, 1e-2, 0.5, "bfloat16"),
    ):
        config = keras.optimizers.serialize(optimizer)
        again = keras.optimizers.deserialize(copy.deepcopy(config))  # Keras changes what it reads
        assert type(again) is type(optimizer) and keras.optimizers.serialize(again) == config


# ---- Adafactor


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((300,), None),
        ((64, 128), None),
        ((257, 127), None),
        ((257, 128), (0, 1)),
        ((128, 257), (1, 0)),
        ((128, 128), (0, 1)),
        ((4, 128, 128), (1, 2)),
        ((128, 4, 200), (2, 0)),
        ((), None),
    ],
)
def test_the_two_largest_axes_are_factored(shape, axes):
    assert factored_axes(shape) == axes


def replay_adafactor(w, gradients, lr, d, beta1, eps1, eps2):
    """mesh_tensorflow's rules in float64, for a matrix whose rows are not shorter than 128: (w, vr, vc, m)."""
    tall = w.shape[-2] >= w.shape[-1]  # A is the second last axis, else the last
    a, b = (-2, -1) if tall else (-1, -2)
    vr, vc, m = np.zeros(w.mean(a).shape), np.zeros(w.mean(b).shape), np.zeros(w.shape)
    for g in gradients:
        s = max(np.sqrt((w**2).mean()), eps2) * lr
        vr = d * vr + (1 - d) * (g**2 + eps1).mean(a)
        vc = d * vc + (1 - d) * (g**2 + eps1).mean(b)
        u = g / np.sqrt(np.expand_dims(vr / vr.mean(-1, keepdims=True), a)) / np.sqrt(np.expand_dims(vc, b))
        u = u / max(1, np.sqrt((u**2).mean())) * s
        if beta1:
            m = beta1 * m + (1 - beta1) * u
            u = m
        w = w - u
    return w, vr, vc, m


@pytest.mark.parametrize("shape", [(150, 128), (128, 150), (130, 130), (2, 128, 140)])
@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_a_factored_second_moment_is_mesh_tensorflows(shape, beta1):
    start = RNG.normal(0, 0.02, shape)
    gradients = RNG.normal(0, 1, (3, *shape)) * RNG.uniform(0.1, 2, shape)
    weight = variable("q", start)
    optimizer = Adafactor(0.05, 0.8, beta1, 1e-30, 1e-3)
    for gradient in gradients:
        optimizer.apply([tf.constant(gradient, tf.float32)], [weight])
    w, vr, vc, m = replay_adafactor(start.astype(np.float32).astype(float), gradients, 0.05, 0.8, beta1, 1e-30, 1e-3)
    wanted = {"_slot_vr": vr, "_slot_vc": vc} | ({"_slot_m": m} if beta1 else {})
    assert np.abs(np.asarray(weight) - w).max() < 1e-6
    assert {name.removeprefix("gpt2/h0/q") for name in optimizer.slots} == set(wanted)
    for ending, value in wanted.items():
        slot = np.asarray(optimizer.slots[f"gpt2/h0/q{ending}"])
        assert np.abs(slot - value).max() <= 1e-5 * np.abs(value).max(), ending


# ---- clipping


def test_gradients_are_clipped_by_their_global_norm():
    gradients = [tf.constant([3.0, 0.0]), None, tf.constant([[4.0]])]
    halved = clip_by_global_norm(gradients, 2.5)
    assert [None if one is None else one.numpy().tolist() for one in halved] == [[1.5, 0.0], None, [[2.0]]]
    kept = clip_by_global_norm(gradients, 5.0)
    assert kept[0].numpy().tolist() == [3.0, 0.0]
    assert np.abs(clip_by_global_norm(gradients, 0.0)[0]).max() == 0  # as in the original


def test_rows_of_an_embeddings_gradient_are_added_before_their_norm_is_taken():
    rows = tf.IndexedSlices(tf.constant([[3.0], [1.0]]), tf.constant([1, 1]), tf.constant([2, 1]))
    assert clip_by_global_norm([rows], 2.0)[0].numpy().tolist() == [[0.0], [2.0]]


# ---- learning rate, loss


@pytest.mark.parametrize(
    ("schedule", "step", "rate"),
    [
        (WarmupAndDecay(1.0, "linear", 10, 0), 0, 1.0),
        (WarmupAndDecay(1.0, "linear", 10, 0), 5, 0.55),
        (WarmupAndDecay(1.0, "linear", 10, 0), 99, 0.1),
        (WarmupAndDecay(1.0, "cosine", 10, 0), 5, 0.55),
        (WarmupAndDecay(1.0, "cosine", 10, 0), 10, 0.1),
        (WarmupAndDecay(1.0, None, 10, 4), 0, 0.0),
        (WarmupAndDecay(1.0, None, 10, 4), 3, 0.75),
        (WarmupAndDecay(1.0, None, 10, 4), 4, 1.0),
        (WarmupAndDecay(1.0, "linear", 10, 4), 2, 0.5 * 0.82),
    ],
)
def test_the_learning_rate(schedule, step, rate):
    assert float(schedule(step)) == pytest.approx(rate, rel=1e-6)


def test_of_a_label_outside_the_vocabulary_z_loss_alone_is_left():
    logits = RNG.normal(0, 1, (1, 3, 5)).astype(np.float32)
    loss = CrossEntropyWithZLoss(0.01)
    inside, above, below = np.asarray(loss.call(np.array([[2, 5, -1]]), logits))[0]
    log_z = np.log(np.exp(logits.astype(float)).sum(-1))[0]
    assert inside == pytest.approx(log_z[0] - logits[0, 0, 2] + 0.01 * log_z[0] ** 2, rel=1e-5)
    assert [above, below] == pytest.approx(0.01 * log_z[1:] ** 2, rel=1e-5)
