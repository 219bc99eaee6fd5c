import numpy as np
import pytest
from checkpoint_helpers import worst
from conftest import GOLDEN

from neo_tf.activations import activation
from neo_tf.config_values import ACTIVATIONS


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_gives_the_originals_values(name):
    golden = np.load(GOLDEN / "activations" / "activations.npz")
    assert worst(activation(golden["x"], name), golden[name]) <= 1e-6 * max(1, np.abs(golden[name]).max())
