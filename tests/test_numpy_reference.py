"""The judge of the combinations is itself judged: by every golden checkpoint."""

import json

import numpy as np
import pytest
import tensorflow as tf
from conftest import GOLDEN, GOLDEN_NAMES, TOLERANCE
from numpy_reference import forward

from neo_tf.checkpoints.tensor_bundle import find_prefix


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_numpy_computes_what_the_original_did(name, reference):
    expected = reference(name)
    reader = tf.train.load_checkpoint(str(find_prefix(GOLDEN / name)))
    params = json.loads((GOLDEN / name / "config.json").read_text())
    logits = forward(params, reader.get_tensor, expected.inputs)
    assert np.abs(logits[:, expected.positions] - expected.logits).max() < TOLERANCE
