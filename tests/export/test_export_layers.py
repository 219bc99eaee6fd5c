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
    # gelu multiplies x by 1 + tanh, which near 0 is as coarse as float32 is at 1: here, and in the original.
    coarse = 2.0**-22 * np.abs(data["x"]) if name == "gelu" else 0
    assert (np.abs(found - data[name]) <= 1e-6 * np.abs(data[name]) + np.maximum(1e-6, coarse)).all()
