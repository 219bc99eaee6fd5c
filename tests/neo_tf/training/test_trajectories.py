"""Trainings of the original code, trained again: weights, slots, losses and learning rates are the original's."""

import dataclasses
import os
import re

import numpy as np
import pytest
import tensorflow as tf
from conftest import FIXTURES
from keras import ops
from trajectories import Trajectory, check_end, find_trajectories, read

from neo_tf.training import adam, optimizer, schedule
from neo_tf.training.adam import Adam
from neo_tf.training.saving import Saver
from neo_tf.training.state import read_state
from neo_tf.training.trainer import Trainer, make_optimizer

TRAINING = FIXTURES / "training"
DATA = TRAINING / "synth64" / "synth_0_80.tfrecords"
ADAM = Trajectory(TRAINING / "microbatch-shared", DATA, 0, 20)
ADAFACTOR = Trajectory(TRAINING / "adafactor", DATA, 0, 20)
VARIABLE = "NEO_TF_TRAJECTORIES"


def started(trajectory, jit_compile=False, **changes):
    """A trainer at a trajectory's first checkpoint."""
    trainer = Trainer(trajectory.config, dataclasses.replace(trajectory.hyperparameters, **changes), jit_compile)
    trainer.resume(read_state(trajectory.prefix(trajectory.first)))
    return trainer


def snapshot(trainer):
    """Weights and slots, {name: bytes}."""
    variables = {**trainer.model.canonical_weights, **trainer.optimizer.slots}
    return {name: np.asarray(variable).tobytes() for name, variable in variables.items()}


# ---- Adam


@dataclasses.dataclass
class Run:
    """ADAM, trained by a trainer."""

    trainer: Trainer
    losses: list
    gradients: list  # {step: a gradient for each variable, before it is clipped}
    saved: dict  # {format: the checkpoint of step 10}
    end: dict  # the snapshot after step 20


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    trainer = started(ADAM)
    seen = [tf.Variable(tf.zeros(weight.shape)) for weight in trainer.model.trainable_weights]
    apply = trainer.optimizer.apply_gradients

    def apply_and_keep(pairs):
        pairs = list(pairs)
        for kept, (gradient, _) in zip(seen, pairs, strict=True):
            kept.assign(gradient)
        return apply(pairs)

    trainer.optimizer.apply_gradients = apply_and_keep
    made = Run(trainer, [], [], {}, {})
    for step in range(20):
        if step == 10:
            state = trainer.state(read_state(ADAM.prefix(0)).checkpoint, ADAM.params)
            for form in ("keras", "mesh-tf"):
                made.saved[form] = Saver(tmp_path_factory.mktemp(form), form).save(state)
        made.losses.append(trainer.step(*ADAM.batch(step)))
        made.gradients.append([kept.numpy() for kept in seen])
    made.end = snapshot(trainer)
    return made


def test_adam_ends_where_the_original_ends(run):
    assert np.abs(np.asarray(run.losses) - ADAM.losses).max() <= ADAM.bounds.losses
    assert snapshot(run.trainer) == run.end
    check_end(run.trainer, ADAM)


@pytest.mark.parametrize("form", ["keras", "mesh-tf"])
def test_a_training_goes_on_from_a_checkpoint_exactly(run, form):
    run.trainer.resume(read_state(run.saved[form]))
    assert run.trainer.steps_done == 10
    assert [run.trainer.step(*ADAM.batch(step)) for step in range(10, 20)] == run.losses[10:]
    assert snapshot(run.trainer) == run.end


def test_a_checkpoint_has_the_originals_names_types_and_shapes(run):
    written, original = read(run.saved["mesh-tf"]), read(ADAM.prefix(0))  # by TensorFlow alone
    assert written.pop("global_step") == 10 and original.pop("global_step") == 0
    assert {name: (value.shape, value.dtype) for name, value in written.items()} == {
        name: (value.shape, value.dtype) for name, value in original.items()
    }


def test_the_learning_rate_is_the_originals():
    rate = schedule.WarmupAndDecay.of(ADAM.hyperparameters)
    for step, wanted in enumerate(ADAM.learning_rates):
        assert float(rate(step)) == pytest.approx(wanted, rel=ADAM.bounds.lr, abs=0)


# ---- Adafactor, through model.fit


def test_adafactor_in_fit_ends_where_the_original_ends():
    stored = np.load(ADAFACTOR.folder / "checkpoints.npz")
    trainer = Trainer(ADAFACTOR.config, ADAFACTOR.hyperparameters)
    for name, weight in trainer.model.canonical_weights.items():
        weight.assign(stored[f"0/{name}"])
    history = trainer.model.fit(ADAFACTOR.dataset(), epochs=20, steps_per_epoch=1, shuffle=False, verbose=0)
    assert np.abs(np.asarray(history.history["loss"]) - ADAFACTOR.losses).max() <= ADAFACTOR.bounds.losses
    weights, slots = trainer.model.canonical_weights, trainer.optimizer.slots
    ends = {name.removeprefix("20/"): stored[name] for name in stored.files if name.startswith("20/")}
    assert len(ends) == 42
    for name, end in ends.items():
        off = np.abs(np.asarray(weights.get(name, slots.get(name))) - end).max()
        assert off <= (ADAFACTOR.bounds.slots * np.abs(end).max() if name in slots else ADAFACTOR.bounds.weights), name


# ---- a wrong rule is noticed


class BiasCorrection(Adam):
    def update_step(self, gradient, variable, learning_rate):
        step = ops.cast(self.iterations + 1, "float32")
        learning_rate = learning_rate * ops.sqrt(1 - self.beta_2**step) / (1 - self.beta_1**step)
        super().update_step(gradient, variable, learning_rate)


class EpsilonInTheRoot(Adam):
    def update_step(self, gradient, variable, learning_rate):
        slots = self._slots_of(variable)
        m = self.beta_1 * slots["/adam_m"] + (1 - self.beta_1) * gradient
        v = self.beta_2 * slots["/adam_v"] + (1 - self.beta_2) * gradient**2
        update = m / ops.sqrt(v + self.epsilon)
        if adam.is_decayed(self._name_of(variable)):
            update = update + self.weight_decay * variable
        for slot, value in (("/adam_m", m), ("/adam_v", v)):
            self.assign(slots[slot], value)
        self.assign_sub(variable, learning_rate * update)


class RateOfTheNextStep(Adam):
    def _get_current_learning_rate(self):
        return self._learning_rate(self.iterations + 1)


CLIP = optimizer.clip_by_global_norm


def by_variable(gradients, largest):
    return [CLIP([gradient], largest)[0] for gradient in gradients]


def test_the_recorded_gradients_lead_to_the_originals_end(run):
    assert end_of(run) <= ADAM.bounds.weights


@pytest.mark.parametrize(
    ("kind", "module", "name", "value"),
    [
        (BiasCorrection, None, None, None),
        (EpsilonInTheRoot, None, None, None),
        (RateOfTheNextStep, None, None, None),
        (Adam, adam, "is_decayed", lambda name: True),
        (Adam, adam, "is_decayed", lambda name: False),
        (Adam, adam, "is_decayed", lambda name: not re.search("norm|bias|ln_f", name)),
        (Adam, schedule, "_FLOOR", 0.0),
        (Adam, optimizer, "clip_by_global_norm", by_variable),
        (Adam, optimizer, "clip_by_global_norm", lambda gradients, largest: gradients),
    ],
    ids=[
        "bias correction",
        "epsilon in the root",
        "learning rate of the next step",
        "decay of all variables",
        "no decay",
        "no decay of ln_f",
        "no floor",
        "clipping by variable",
        "no clipping",
    ],
)
def test_a_wrong_rule_is_far_beyond_the_bound(run, monkeypatch, kind, module, name, value):
    if module:
        monkeypatch.setattr(module, name, value)
    assert end_of(run, kind) > 20 * ADAM.bounds.weights


def end_of(run, kind=Adam):
    """The largest error of a weight after the recorded gradients, with an optimizer of this kind."""
    run.trainer.load(read_state(ADAM.prefix(0)).checkpoint)
    right = make_optimizer(ADAM.hyperparameters)
    trained = kind.from_config(right.get_config())
    weights = run.trainer.model.trainable_weights
    trained.build(weights)
    update = tf.function(lambda gradients: trained.apply(gradients, weights))
    for gradients in run.gradients:
        update([tf.constant(gradient) for gradient in gradients])
    return max(np.abs(np.asarray(weight) - ADAM.end[weight.path]).max() for weight in weights)


# ---- all trajectories of a folder


def all_trajectories():
    """The trajectories below the folder that the environment variable names."""
    if VARIABLE in os.environ:
        return find_trajectories(os.environ[VARIABLE])
    skipped = pytest.mark.skip(reason=f"{VARIABLE} names no folder of trainings of the original")
    return [pytest.param(None, marks=skipped)]


@pytest.mark.parametrize("trajectory", all_trajectories(), ids=lambda trajectory: trajectory and trajectory.name)
@pytest.mark.parametrize("way", ["trainer", "fit", "keras", "mesh-tf", "recompute_grad", "jit_compile"])
def test_every_trajectory_ends_where_the_original_ends(trajectory, way, tmp_path, record_property):
    first, last = trajectory.first, trajectory.last
    changes = {"recompute_grad": True} if way == "recompute_grad" else {}
    trainer = started(trajectory, way == "jit_compile", **changes)
    if way == "fit":
        batches = trajectory.dataset()
        history = trainer.model.fit(batches, epochs=last - first, steps_per_epoch=1, shuffle=False, verbose=0)
        losses = history.history["loss"]
    elif way in ("keras", "mesh-tf"):
        middle = (first + last) // 2
        losses = [trainer.step(*trajectory.batch(step)) for step in range(first, middle)]
        start = read_state(trajectory.prefix(first)).checkpoint
        path = Saver(tmp_path, way).save(trainer.state(start, trajectory.params))
        trainer = Trainer(trajectory.config, trajectory.hyperparameters)
        trainer.resume(read_state(path))
        losses += [trainer.step(*trajectory.batch(step)) for step in range(middle, last)]
    else:
        losses = [trainer.step(*trajectory.batch(step)) for step in range(first, last)]
    off = np.abs(np.asarray(losses) - trajectory.losses).max()
    assert off <= trajectory.bounds.losses
    for step, wanted in zip(range(first, last), trajectory.learning_rates, strict=True):
        assert trainer.learning_rate(step) == pytest.approx(wanted, rel=trajectory.bounds.lr, abs=0)
    record_property("weights, slots, loss", (*check_end(trainer, trajectory), off))
