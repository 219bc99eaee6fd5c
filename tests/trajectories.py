"""Trajectories: trainings of the original code, from one of its checkpoints to a later one, and replays of them.

A trajectory is a folder with the original's config.json and report.json (loss and learning rate of each step) and two
checkpoints with slots. Its data are the tfrecords of its dataset, in a folder that is named after it; the batch of step
s holds the records [b s, b (s + 1)), modulo their number.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import ml_dtypes
import numpy as np
import tensorflow as tf

from neo_tf.config import GPTNeoConfig
from neo_tf.training.hyperparameters import Hyperparameters


@dataclass(frozen=True)
class Bounds:
    """How far a replay may be from the original: a wrong rule costs ten times as much, and mostly a hundred times."""

    weights: float = 1e-5  # absolute
    losses: float = 5e-6  # absolute
    slots: float = 1e-4  # relative to a variable's largest value
    lr: float = 5e-7  # relative: float32


@dataclass(frozen=True)
class Trajectory:
    """One training of the original's."""

    folder: Path
    data: Path
    first: int
    last: int

    @property
    def name(self):
        return self.folder.name

    @cached_property
    def params(self):
        return json.loads((self.folder / "config.json").read_text())

    @cached_property
    def config(self):
        return GPTNeoConfig.from_original(self.params)

    @cached_property
    def hyperparameters(self):
        return Hyperparameters.from_original(self.params)

    @cached_property
    def bounds(self):
        if self.hyperparameters.bfloat16:  # a bfloat16 near 1 has steps of 7.8e-3
            return Bounds(weights=1.6e-2, losses=5e-3, slots=1e-1)
        # With gains of 0 the first gradients are 0 or tiny, and Adam divides by them.
        return Bounds(weights=5e-5) if self.config.rezero else Bounds()

    @cached_property
    def records(self):
        """int32 [records, n_ctx + 1]"""
        length = self.config.n_ctx + 1
        feature = {"text": tf.io.VarLenFeature(tf.int64)}
        parsed = (tf.io.parse_single_example(raw, feature)["text"] for raw in tf.data.TFRecordDataset(str(self.data)))
        return np.stack([tf.sparse.to_dense(one).numpy()[:length] for one in parsed]).astype(np.int32)

    def batch(self, step):
        """(x, y) of a step, int32 [batch, n_ctx] each."""
        size = self.hyperparameters.train_batch_size
        rows = self.records[np.arange(size * step, size * (step + 1)) % len(self.records)]
        return rows[:, :-1], rows[:, 1:]

    def dataset(self, first=None):
        """The batches from a step on, as a tf.data.Dataset."""
        batches = [self.batch(step) for step in range(self.first if first is None else first, self.last)]
        return tf.data.Dataset.from_tensor_slices(tuple(np.stack(part) for part in zip(*batches, strict=True)))

    def prefix(self, step):
        return self.folder / f"model.ckpt-{step}"

    def _logged(self, key):
        report = json.loads((self.folder / "report.json").read_text())
        if key in report:
            return np.asarray(report[key])
        return np.asarray([report["train_steps_log"][str(step)][key] for step in range(self.first, self.last)])

    @cached_property
    def losses(self):
        return self._logged("loss")

    @cached_property
    def learning_rates(self):
        return self._logged("lr")

    @cached_property
    def end(self):
        """{name: float32 array} of the last checkpoint, read by TensorFlow alone."""
        return read(self.prefix(self.last))


def read(prefix):
    """{name: array} of everything in one of the original's checkpoints, by TensorFlow alone."""
    reader = tf.train.load_checkpoint(str(prefix))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def find_trajectories(root):
    """All trajectories below a folder."""
    found = []
    for report in sorted(Path(root).rglob("report.json")):
        steps = sorted(int(index.stem.rpartition("-")[2]) for index in report.parent.glob("model.ckpt-*.index"))
        if len(steps) == 2:
            dataset = json.loads((report.parent / "config.json").read_text())["datasets"][0]
            data = next(path for folder in Path(root).rglob(dataset) for path in folder.glob("synth_*.tfrecords"))
            found.append(Trajectory(report.parent, data, *steps))
    return found


def errors(trainer, end):
    """(largest error of a weight, largest error of a slot relative to its variable's largest value)."""
    weights = {name: np.asarray(weight) for name, weight in trainer.model.canonical_weights.items()}
    if trainer.hyperparameters.bfloat16:
        weights = {name: weight.astype(ml_dtypes.bfloat16) for name, weight in weights.items()}
    slots = {name: np.asarray(slot) for name, slot in trainer.optimizer.slots.items()}
    assert {*weights, *slots, "global_step"} == set(end)
    off = {name: _off(value, end[name]) for name, value in {**weights, **slots}.items()}
    scale = {name: np.abs(end[name]).max() or 1.0 for name in slots}
    return max(off[name] for name in weights), max(off[name] / scale[name] for name in slots)


def _off(one, other):
    return float(np.abs(one.astype(np.float32) - other.astype(np.float32)).max())


def check_end(trainer, trajectory):
    """Compares weights, slots and step with the last checkpoint; returns the errors."""
    off = errors(trainer, trajectory.end)
    assert off[0] <= trajectory.bounds.weights, trajectory.name
    assert off[1] <= trajectory.bounds.slots, trajectory.name
    assert trainer.steps_done == trajectory.end["global_step"] == trajectory.last
    return off
