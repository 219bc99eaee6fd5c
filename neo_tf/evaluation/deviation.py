"""How far a graph's logits are from the source's, and how far they may be in a lower precision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TOLERANCE = 1e-4  # the largest absolute error of a logit in fp32


@dataclass(frozen=True)
class Limits:
    """What a lower precision may cost.

    Args:
        cosine: The least mean cosine between the two logit vectors of a position.
        agreement: The least share of a text's positions at which both have the same largest logit.
        perplexity: The largest increase of a text's perplexity, as a fraction of the source's.
    """

    cosine: float
    agreement: float
    perplexity: float


LIMITS = {
    "fp16": Limits(0.9999, 0.98, 0.005),
    "bf16": Limits(0.999, 0.94, 0.005),
    "int8": Limits(0.999, 0.88, 0.01),
    "int4": Limits(0.99, 0.65, 0.05),
}


@dataclass(frozen=True)
class Deviation:
    """The result of one comparison: the largest difference, its place, and means over all positions.

    Args:
        graph: "decoder.onnx", "model.onnx" or "prefill.onnx".
        mode: "prefill" or "step by step". For prefill.onnx "first half": it ran that half, which has no logits, and
            the logits of the second half are compared.
        error: The largest absolute difference of a logit.
        position: The position of that logit, counted from the beginning of the text.
        token_id: The token id of that logit.
        logits: The number of logits that were compared.
        cosine: The mean over all positions of the cosine between the two logit vectors.
        agreement: The share of the positions at which both have the same largest logit.
        perplexity: The graph's perplexity on the text; None without a text.
        source_perplexity: The source's perplexity on the text; None without a text.
    """

    graph: str
    mode: str
    error: float
    position: int
    token_id: int
    logits: int
    cosine: float
    agreement: float
    perplexity: float | None = None
    source_perplexity: float | None = None

    @property
    def perplexity_change(self) -> float | None:
        """(graph - source) / source of the perplexity; None without a text."""
        if not self.perplexity or not self.source_perplexity:
            return None
        return self.perplexity / self.source_perplexity - 1

    def failure(self, precision: str, tolerance: float = TOLERANCE) -> str | None:
        """Says in words which limit of a precision is exceeded; returns None where none is.

        Args:
            precision: The graph's precision. In fp32 the error counts, in the others LIMITS do.
            tolerance: The largest error that passes in fp32.
        """
        # The comparisons are written so that a NaN passes none of them.
        if precision not in LIMITS:
            if self.error <= tolerance:
                return None
            return f"logits differ by {self.error:.2e}, more than {tolerance:.0e}"
        limits = LIMITS[precision]
        if not self.cosine >= limits.cosine:
            return f"the logits' mean cosine {self.cosine:.5f} is below {limits.cosine}, the limit for {precision}"
        change = self.perplexity_change
        if change is None:
            return None
        if not self.agreement >= limits.agreement:
            return f"top-1 agreement is {self.agreement:.1%}, below {limits.agreement:.0%}, the limit for {precision}"
        if not change <= limits.perplexity:
            return f"perplexity is {change:+.2%} off, the limit for {precision} is {limits.perplexity:+.1%}"
        return None


class Comparison:
    """Collects the differences between a graph's logits and the source's, over all pieces of a text.

    Args:
        graph, mode: See Deviation.
        has_text: Whether the tokens are a text, which has a perplexity.
    """

    def __init__(self, graph: str, mode: str, has_text: bool):
        self._graph = graph
        self._mode = mode
        self._has_text = has_text
        self._error = -1.0
        self._position = 0
        self._token_id = 0
        self._logits = 0
        self._finished = 0  # tokens of the sequences that came before this one
        self._cosines: list[float] = []
        self._agreed: list[bool] = []
        self._losses: list[float] = []
        self._source_losses: list[float] = []

    def add(self, got: np.ndarray, expected: np.ndarray, ids: np.ndarray, first: int) -> None:
        """Compares the logits of some neighbouring positions of a sequence.

        Args:
            got: The graph's logits, float32 [n, n_vocab].
            expected: The source's logits, float32 [n, n_vocab].
            ids: The token ids of the whole sequence, int [sequence].
            first: The first of the n positions. The last position of a sequence must come last.
        """
        difference = np.abs(got - expected)
        # A NaN must not pass for the smallest difference.
        difference = np.where(np.isnan(difference), np.inf, difference)
        row, column = np.unravel_index(np.argmax(difference), difference.shape)
        if difference[row, column] > self._error:
            self._error = float(difference[row, column])
            self._position = self._finished + first + int(row)
            self._token_id = int(column)
        self._logits += difference.size
        norms = np.linalg.norm(got, axis=-1) * np.linalg.norm(expected, axis=-1)
        self._cosines += list(np.nan_to_num((got * expected).sum(axis=-1) / norms, nan=-1.0))
        self._agreed += list(got.argmax(axis=-1) == expected.argmax(axis=-1))
        labels = ids[first + 1 : first + 1 + len(got)]
        self._losses += list(_losses(got, labels))
        self._source_losses += list(_losses(expected, labels))
        if first + len(got) == len(ids):
            self._finished += len(ids)

    def deviation(self) -> Deviation:
        """The result over everything that was added."""
        perplexity = source_perplexity = None
        if self._has_text:
            perplexity = float(np.exp(np.mean(self._losses)))
            source_perplexity = float(np.exp(np.mean(self._source_losses)))
        return Deviation(
            graph=self._graph,
            mode=self._mode,
            error=self._error,
            position=self._position,
            token_id=self._token_id,
            logits=self._logits,
            cosine=float(np.mean(self._cosines)),
            agreement=float(np.mean(self._agreed)),
            perplexity=perplexity,
            source_perplexity=source_perplexity,
        )


def _losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Negative log-likelihoods of the labels: [n, n_vocab], int [m <= n] -> float64 [m]."""
    logits = logits[: len(labels)].astype(np.float64)
    largest = logits.max(axis=-1)
    return np.log(np.exp(logits - largest[:, None]).sum(axis=-1)) + largest - logits[np.arange(len(labels)), labels]
