"""What a trajectory does not show: dropout, layers that are computed again, refusals, and the run's folder."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from checkpoint_helpers import cut_short
from conftest import FIXTURES, GOLDEN

import neo_tf
from neo_tf.checkpoints.initialise import random_checkpoint
from neo_tf.config import GPTNeoConfig
from neo_tf.errors import CheckpointError, ConfigError, RequestError
from neo_tf.training.hyperparameters import Hyperparameters
from neo_tf.training.saving import Saver
from neo_tf.training.state import OPTIMIZER_FILE, read_state
from neo_tf.training.trainable_model import TrainableGPTNeo
from neo_tf.training.trainer import Trainer

CKPT = FIXTURES / "training" / "microbatch-shared" / "model.ckpt-20"
TINY = {
    "n_vocab": 17,
    "n_ctx": 8,
    "n_embd": 8,
    "n_head": 2,
    "n_layer": 2,
    "attention_types": [[["global", "local"], 1]],
}
PARAMS = json.loads((CKPT.parent / "config.json").read_text()) | TINY | {"share_parameters": False}
IDS = np.random.default_rng(3).integers(0, 17, (4, 9)).astype(np.int32)


def trainer_of(**changes):
    params = PARAMS | changes
    return Trainer(GPTNeoConfig.from_original(params), Hyperparameters.from_original(params)), params


@pytest.fixture
def tiny(tmp_path):
    """(a trainer, its config, the checkpoint it starts from)."""
    trainer, params = trainer_of()
    (tmp_path / "tiny.json").write_text(json.dumps(params))
    start = random_checkpoint(tmp_path / "tiny.json")
    trainer.load(start)
    return trainer, params, start


# ---- dropout


@pytest.mark.parametrize("recompute_grad", [False, True])
def test_gradients_are_those_of_the_loss_with_the_same_elements_dropped(recompute_grad):
    rates = {"embed_dropout": 0.3, "attn_dropout": 0.3, "res_dropout": 0.3}
    config = GPTNeoConfig.from_original(PARAMS | rates)
    model = TrainableGPTNeo(config, recompute_grad=recompute_grad)
    model.compile(loss=model.loss_fn)
    weight = model.canonical_weights["gpt2/h0/attn/v"]
    seed = np.asarray(model.seed_generator.state)

    def loss_and_gradients():
        model.seed_generator.state.assign(seed)
        return model.loss_and_gradients(IDS[:, :-1], IDS[:, 1:])

    _, gradients = loss_and_gradients()
    (gradient,) = (one for one, other in zip(gradients, model.trainable_weights, strict=True) if other is weight)
    start, step = np.asarray(weight), 0.02 * np.asarray(gradient) / np.linalg.norm(gradient)
    around = []
    for sign in (1, -1):
        weight.assign(start + sign * step)
        around.append(float(loss_and_gradients()[0]))
    assert around[0] - around[1] == pytest.approx(2 * float((gradient * step).numpy().sum()), rel=0.02)


def test_bfloat16_drops_with_the_originals_128_levels():
    kept = tf.nn.experimental.stateless_dropout(tf.ones([100_000], tf.bfloat16), 0.1, seed=[1, 2])
    share = float(tf.reduce_mean(tf.cast(kept > 0, tf.float32)))
    assert share == pytest.approx(115 / 128, abs=0.003) and float(tf.reduce_max(kept)) == 1.109375


# ---- models


def test_a_model_without_layers_is_trained():
    trainer, _ = trainer_of(n_layer=0, attention_types=[[["global"], 0]])
    before = trainer.step(IDS[:, :-1], IDS[:, 1:])
    assert np.isfinite(before) and set(trainer.model.canonical_weights) == {
        "gpt2/wte",
        "gpt2/wpe",
        "gpt2/ln_f/g",
        "gpt2/ln_f/b",
    }


def test_a_batch_that_cannot_be_divided_is_refused():
    trainer, _ = trainer_of(tokens_per_mb_per_replica=8)
    assert trainer.model.n_microbatches == 4
    with pytest.raises(ConfigError, match="a batch of 3 rows is not divisible by 4 microbatches"):
        trainer.step(IDS[:3, :-1], IDS[:3, 1:])


# ---- states


def test_a_run_keeps_its_newest_checkpoints(tiny, tmp_path):
    trainer, params, start = tiny
    for form, pattern in (("keras", "checkpoint-*/model.weights.h5"), ("mesh-tf", "model.ckpt-*.index")):
        saver = Saver(tmp_path / form, form, keep=2)
        assert saver.latest() is None
        for step in (0, 5, 10, 15):
            trainer.optimizer.iterations.assign(step)
            path = saver.save(trainer.state(start, params))
            assert saver.latest() == path and read_state(path).step == step
        assert list(saver.checkpoints()) == [10, 15]
        assert len(list((tmp_path / form).glob(pattern))) == 2
        assert not [path.name for path in (tmp_path / form).iterdir() if path.name.startswith(".")]
    state = (tmp_path / "mesh-tf" / "checkpoint").read_text().splitlines()
    assert state == [
        'model_checkpoint_path: "model.ckpt-15"',
        'all_model_checkpoint_paths: "model.ckpt-10"',
        'all_model_checkpoint_paths: "model.ckpt-15"',
    ]
    assert tf.train.latest_checkpoint(str(tmp_path / "mesh-tf")).endswith("model.ckpt-15")
    assert len(list((tmp_path / "mesh-tf").glob("*.data-*"))) == 2


def test_a_checkpoint_of_a_run_is_a_model_as_any_other(tiny, tmp_path):
    trainer, params, start = tiny
    path = Saver(tmp_path / "run").save(trainer.state(start, params))
    neo_tf.convert(path, tmp_path / "huggingface", "huggingface")
    opened = neo_tf.open_checkpoint(path)
    weight = np.asarray(trainer.model.canonical_weights["gpt2/wte"])
    assert np.array_equal(opened.read("gpt2/wte"), weight)
    assert Hyperparameters.from_file(path / "config.json") == trainer.hyperparameters


def test_a_bfloat16_run_keeps_the_low_bits_of_its_weights(tmp_path, tiny):
    trainer, params = trainer_of(precision="bfloat16")
    trainer.load(tiny[2])
    weight = trainer.model.canonical_weights["gpt2/wte"]
    exact = np.asarray(weight)
    state = trainer.state(dataclasses.replace(tiny[2]), params)
    path = Saver(tmp_path / "run").save(state)
    assert neo_tf.open_checkpoint(path).dtype == "bfloat16"
    original = Saver(tmp_path / "original", "mesh-tf").save(state)
    weight.assign(np.zeros_like(exact))
    trainer.resume(read_state(path))
    assert np.array_equal(np.asarray(weight), exact)
    trainer.resume(read_state(original))  # which has the rounded weights, as the original's own checkpoints
    assert not np.array_equal(np.asarray(weight), exact)
    assert np.abs(np.asarray(weight) - exact).max() <= 2**-8 * np.abs(exact).max()


def test_a_checkpoint_that_the_list_does_not_name_stays(tiny, tmp_path):
    trainer, params, start = tiny
    saver = Saver(tmp_path, "mesh-tf", keep=1)
    for step in (1, 2):
        trainer.optimizer.iterations.assign(step)
        saver.save(trainer.state(start, params))
        (tmp_path / "checkpoint").unlink()
    trainer.optimizer.iterations.assign(3)
    saver.save(trainer.state(start, params))
    trainer.optimizer.iterations.assign(4)
    saver.save(trainer.state(start, params))
    assert list(saver.checkpoints()) == [1, 2, 4]


def test_weights_that_are_no_numbers_are_not_saved(tiny, tmp_path):
    trainer, params, start = tiny
    saver = Saver(tmp_path / "run")
    good = saver.save(trainer.state(start, params))
    trainer.optimizer.iterations.assign(1)
    weight = trainer.model.canonical_weights["gpt2/ln_f/g"]
    weight.assign(weight * np.nan)
    with pytest.raises(CheckpointError, match="gpt2/ln_f/g holds 8 NaN"):
        saver.save(trainer.state(start, params))
    assert saver.latest() == good and [path.name for path in saver.run.iterdir()] == [good.name]


def test_what_a_killed_process_left_is_no_checkpoint_and_is_replaced(tiny, tmp_path):
    trainer, params, start = tiny
    saver = Saver(tmp_path / "run", "mesh-tf")
    prefix = saver.save(trainer.state(start, params))
    index = prefix.with_name("model.ckpt-0.index")
    shutil.copytree(saver.run, saver.run / ".model.ckpt-0")  # it was killed while it moved the files
    index.unlink()
    (saver.run / "model.ckpt-0.data-00000-of-00002").write_bytes(b"half")
    assert saver.latest() is None
    assert read_state(saver.save(trainer.state(start, params))).step == 0
    assert not (saver.run / ".model.ckpt-0").exists()


def test_the_slots_of_another_optimizer_are_refused(tmp_path):
    state = read_state(CKPT)
    params = state.params | {"opt_name": "adafactor", "ada_epsilon1": 1e-30, "ada_epsilon2": 1e-3}
    trainer = Trainer(state.checkpoint.config, Hyperparameters.from_original(params))
    with pytest.raises(CheckpointError, match=r"slots do not fit .* such as gpt2/wte_slot_v; .* such as gpt2//attn"):
        trainer.resume(state)


def test_a_checkpoint_without_slots_cannot_go_on(tmp_path):
    neo_tf.convert(GOLDEN / "act-relu", tmp_path / "keras")
    with pytest.raises(CheckpointError, match="holds no optimizer slots"):
        read_state(tmp_path / "keras")
    with pytest.raises(CheckpointError, match="neither a checkpoint of a run nor one of the original's"):
        read_state(tmp_path)


def test_a_damaged_optimizer_file_is_told(tiny, tmp_path):
    trainer, params, start = tiny
    path = Saver(tmp_path / "run").save(trainer.state(start, params))
    cut_short(path / OPTIMIZER_FILE, -8)
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors: not a whole safetensors file"):
        read_state(path)


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(RequestError, match="cannot be saved in the format 'huggingface'"):
        Saver(tmp_path, "huggingface")
