"""What the tests of sessions share."""

import numpy as np

from neo_tf.onnx_folder import TOP_TOKENS
from neo_tf.runtime.device.session import Session
from neo_tf.runtime.sampling.warpers import log_softmax


def decoded_logits(session, first, token_ids, past):
    """One decode step's logits, float32 [count, n_vocab]; the caller may keep them."""
    decoded = session.decode(first, np.asarray(token_ids), np.asarray(past))
    return np.stack([decoded.logits(row) for row in range(len(token_ids))])


def most_likely(logits, inverse_temperatures=None, width=TOP_TOKENS):
    """What a graph that chooses returns of float32 [rows, n_vocab]: ids and log-probabilities, [rows, width]."""
    inverse = np.ones(len(logits), np.float32) if inverse_temperatures is None else inverse_temperatures
    with np.errstate(invalid="ignore"):  # tests make logits infinite
        logprobs = log_softmax(logits * np.asarray(inverse, np.float32)[:, None])
    ids = np.argsort(-logprobs, axis=-1, kind="stable")[:, :width]
    return ids, np.take_along_axis(logprobs, ids, -1)


class ChosenRows:
    """DecodedRows whose most likely tokens numpy found.

    Attributes:
        asked: The rows whose logits were asked for.
    """

    def __init__(self, logits, inverse_temperatures):
        self._logits = logits
        self.top_ids, self.top_logprobs = most_likely(logits, inverse_temperatures)
        self.asked = []

    def logits(self, row):
        self.asked.append(row)
        return self._logits[row]


class ChoosingSession(Session):
    """A Session that chooses as a graph for CUDA does.

    Attributes:
        whole: The number of rows whose logits were asked for, in each decode step.
    """

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self._steps = []

    def decode(self, first, token_ids, past, inverse_temperatures=None):
        decoded = super().decode(first, token_ids, past)
        logits = np.stack([decoded.logits(row) for row in range(len(token_ids))])
        self._steps.append(ChosenRows(self.changed(logits), inverse_temperatures))
        return self._steps[-1]

    def changed(self, logits):
        """The logits that a step returns; a test may replace it."""
        return logits

    @property
    def whole(self):
        return [len(step.asked) for step in self._steps]
