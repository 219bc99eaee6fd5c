"""`neo-tf train`: the original's trainings again, runs that end and go on, and what is refused."""

import json
import os
import signal

import numpy as np
import pytest
from checkpoint_helpers import cut_short
from conftest import FIXTURES, GOLDEN, run_cli
from trajectories import Trajectory, check_end, read

import neo_tf

pytest.importorskip("google_crc32c", reason="the tests of training data need the extra data")

from neo_tf.errors import TrainingError
from neo_tf.training.data.example import encode_example
from neo_tf.training.data.tfrecord import frame
from neo_tf.training.hyperparameters import Hyperparameters
from neo_tf.training.metrics import Metrics
from neo_tf.training.run import RunOptions, train
from neo_tf.training.saving import Saver
from neo_tf.training.start import going_on, new_start
from neo_tf.training.state import read_state
from neo_tf.training.trainer import Trainer

TRAINING = FIXTURES / "training"
DATA = TRAINING / "synth64" / "synth_0_80.tfrecords"
ADAM = Trajectory(TRAINING / "microbatch-shared", DATA, 0, 20)
TINY = {
    "n_vocab": 17,
    "n_ctx": 8,
    "n_embd": 8,
    "n_head": 2,
    "n_layer": 1,
    "attention_types": [[["global"], 1]],
    "share_parameters": False,
    "tokens_per_mb_per_replica": None,
    "embed_dropout": 0.1,
    "warmup_steps": 0,
    "train_steps": 6,
}


def write_records(path, records):
    """A tfrecord file of lists of token ids."""
    path.write_bytes(b"".join(frame(encode_example(record)) for record in records))
    return path


@pytest.fixture
def tiny(tmp_path):
    """(a config's path, tfrecords' path) of a model of 17 ids and 8 positions."""
    config = tmp_path / "tiny.json"
    config.write_text(json.dumps(ADAM.params | TINY))
    ids = np.random.default_rng(1).integers(0, 17, (40, 9))
    return config, write_records(tmp_path / "tiny_0_40.tfrecords", ids)


def metrics_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights_of(path):
    checkpoint = neo_tf.open_checkpoint(path)
    return {name: checkpoint.read(name).tobytes() for name in checkpoint.tensors}


# ---- the original's training


def test_an_originals_training_goes_on_to_its_last_checkpoint(monkeypatch, capsys, tmp_path):
    arguments = [
        "train",
        ADAM.prefix(0),
        "--continue",
        "--data",
        DATA,
        "--output",
        tmp_path,
        "--save-format",
        "mesh-tf",
    ]
    assert run_cli(monkeypatch, capsys, *arguments, "--steps", 10)[0] == 0
    status, out, err = run_cli(monkeypatch, capsys, *arguments)  # from the run's own checkpoint
    assert (status, out) == (0, "") and f"trained to step 20: {tmp_path / 'model.ckpt-20'}" in err
    lines = metrics_of(tmp_path)
    assert [line["step"] for line in lines] == list(range(20))
    assert np.abs(np.asarray([line["loss"] for line in lines]) - ADAM.losses).max() <= ADAM.bounds.losses
    assert [line["lr"] for line in lines] == pytest.approx(ADAM.learning_rates, rel=ADAM.bounds.lr, abs=0)
    assert list(Saver(tmp_path, "mesh-tf").checkpoints()) == [0, 10, 20]
    end = read(tmp_path / "model.ckpt-20")
    assert {name: value.shape for name, value in end.items()} == {name: value.shape for name, value in ADAM.end.items()}
    trainer = Trainer(ADAM.config, ADAM.hyperparameters)
    trainer.resume(read_state(tmp_path / "model.ckpt-20"))
    check_end(trainer, ADAM)
    assert Hyperparameters.from_file(tmp_path / "config.json") == ADAM.hyperparameters


# ---- a run of our own


def test_a_run_that_a_signal_ends_goes_on_as_if_it_had_not_ended(tiny, tmp_path):
    config, data = tiny
    whole = Saver(tmp_path / "whole")
    assert train(new_start(config, {}), [data], whole).step == 6

    def stop(report):
        if report.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    cut = Saver(tmp_path / "cut")
    end = train(going_on(config, cut, {}), [data], cut, watch=stop)  # there is nothing yet to go on from
    assert (end.step, end.signal) == (3, signal.SIGTERM) and list(cut.checkpoints()) == [0, 3]
    assert signal.getsignal(signal.SIGTERM) is before
    with open(cut.run / "metrics.jsonl", "a") as file:
        file.write(
            '{"step": 3, "loss": 9, "lr": 0}\n{"step": 4, "lo'
        )  # of a step after the checkpoint, and half a line
    assert train(going_on(config, cut, {}), [data], cut, RunOptions(save_every=2)).step == 6
    assert list(cut.checkpoints()) == [0, 3, 4, 6]
    assert metrics_of(cut.run) == metrics_of(whole.run)
    assert weights_of(cut.latest()) == weights_of(whole.latest()) != weights_of(cut.checkpoints()[0])


def test_a_loss_that_is_no_number_ends_the_run(tiny, tmp_path):
    config, data = tiny
    saver = Saver(tmp_path / "run")
    start = new_start(config, {"lr": 1e30})
    with pytest.raises(TrainingError, match=r"step \d: the loss is (nan|inf).* the last checkpoint is .*checkpoint-0"):
        train(start, [data], saver)
    assert list(saver.checkpoints()) == [0]


def test_a_checkpoint_is_fine_tuned(tmp_path, monkeypatch, capsys):
    neo_tf.convert(GOLDEN / "act-relu", tmp_path / "model", "keras")
    arguments = ["train", tmp_path / "model", "--data", DATA, "--output", tmp_path / "run", "--steps", 4]
    status, _, _ = run_cli(monkeypatch, capsys, *arguments, "--lr", 0.001, "--batch-size", 2)
    assert status == 0
    lines = metrics_of(tmp_path / "run")
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    config = json.loads((tmp_path / "run" / "checkpoint-4" / "config.json").read_text())
    assert (config["lr"], config["train_batch_size"], config["global_step"]) == (0.001, 2, 4)
    assert weights_of(tmp_path / "run" / "checkpoint-0") == weights_of(tmp_path / "model")


# ---- refusals


def refusal(monkeypatch, capsys, *arguments):
    status, out, err = run_cli(monkeypatch, capsys, "train", *arguments)
    assert status == 1 and not out and err.count("\n") == 1, err
    return err


def test_what_cannot_be_trained_with_is_one_line_and_leaves_nothing(tiny, tmp_path, monkeypatch, capsys):
    config, data = tiny
    run = tmp_path / "run"
    bad = tmp_path / "bad.json"
    foreign = write_records(tmp_path / "foreign_0_4.tfrecords", [[1] * 8 + [17]] * 4)
    short = write_records(tmp_path / "short_0_4.tfrecords", [[1] * 8] * 4)
    torn = write_records(tmp_path / "torn_0_4.tfrecords", [[1] * 9] * 4)
    cut_short(torn, -3)

    def with_config(**changes):
        params = ADAM.params | TINY | changes
        bad.write_text(json.dumps({key: value for key, value in params.items() if value is not None}))
        return refusal(monkeypatch, capsys, bad, "--data", data, "--output", run)

    def with_data(path):
        return refusal(monkeypatch, capsys, config, "--data", path, "--output", run)

    assert "bad.json: missing beta2: the original's training needs it" in with_config(beta2=None)
    assert "bad.json: input_fn 'generic_text'" in with_config(input_fn="generic_text")
    assert "bad.json: missing n_embd" in with_config(n_embd=None)
    assert "no tfrecord files there" in with_data(tmp_path / "nothing*.tfrecords")
    assert "short_0_4.tfrecords: record 0 has 8 tokens, but n_ctx + 1 = 9 are needed" in with_data(short)
    assert not run.exists()
    assert "foreign_0_4.tfrecords: record 0 has the id 17, but the model's vocabulary has 17 ids" in with_data(foreign)
    assert [path.name for path in sorted(run.iterdir())] == ["checkpoint-0", "metrics.jsonl"]
    assert "run: exists and is not empty (--continue goes on with a run)" in with_data(data)
    going_on = [config, "--continue", "--data", torn, "--output", run]
    assert "torn_0_4.tfrecords" in refusal(monkeypatch, capsys, *going_on)


def test_a_config_of_another_model_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "other.json").write_text(json.dumps({"n_layer": 1, "attention_types": [[["global"], 1]]}))
    arguments = [ADAM.prefix(0), "--continue", "--data", DATA, "--output", tmp_path / "run"]
    said = refusal(monkeypatch, capsys, *arguments, "--config", tmp_path / "other.json")
    assert "n_layer is 3, but the config for the training says 1" in said
    said = refusal(monkeypatch, capsys, ADAM.prefix(20), *arguments[1:])
    assert "the training is at step 20 already" in said


def test_metrics_of_a_new_run_replace_nothing_before_its_step(tmp_path):
    with Metrics(tmp_path, 0) as metrics:
        for step in range(3):
            metrics.write(step, 1.5, 0.1)
    with Metrics(tmp_path, 2) as metrics:
        metrics.write(2, 2.5, 0.1)
    assert [(line["step"], line["loss"]) for line in metrics_of(tmp_path)] == [(0, 1.5), (1, 1.5), (2, 2.5)]
