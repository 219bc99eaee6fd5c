"""The activations as graph nodes, against the values that the original's functions gave."""

from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from conftest import GOLDEN

from neo_tf.config_values import ACTIVATIONS
from neo_tf.export.builder import Graph, WeightFile
from neo_tf.export.layers import activation


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_the_originals(name):
    data = np.load(GOLDEN / "activations" / "activations.npz")
    graph = Graph("activation", SimpleNamespace(tensors={}), WeightFile("none"))
    graph.input("x", np.float32, list(data["x"].shape))
    out = activation("x", graph.root["mlp"], name)
    graph.output(out, np.float32, list(data["x"].shape))
    session = onnxruntime.InferenceSession(graph.model().SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": data["x"]})
    np.testing.assert_allclose(found, data[name], rtol=1e-6, atol=1e-6)
