"""Second moments of the layers' inputs on a text: int8 and int4 matrices can be rounded for them.

After GPTQ (Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers").
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neo_tf.cache_layout import cache_parts
from neo_tf.errors import CheckpointError, RequestError
from neo_tf.onnx_folder import DATA_FILE
from neo_tf.progress import Progress

from .builder import WeightFile
from .graph import model_graph

if TYPE_CHECKING:
    import onnxruntime

    from neo_tf.checkpoints import Checkpoint

MIN_TOKENS, MAX_TOKENS = 256, 2**15
_MEMORY = 2 * 10**9  # bytes of moments and inputs that are held at a time


class Calibration:
    """The moments of a checkpoint's fp32 graph on a text, computed on demand, for some matrices at a time.

    Layers that share a matrix add to the same moments. Experts, the embedding and the head have no moments.

    Args:
        checkpoint: The checkpoint, with its tokenizer.
        text: The text. If it has more than MAX_TOKENS tokens, pieces from all of it are taken.

    Raises:
        CheckpointError: The checkpoint has no tokenizer.
        RequestError: The text has fewer than MIN_TOKENS tokens.
    """

    # Set while the block of `inside` runs.
    _folder: Path
    _progress: Progress

    def __init__(self, checkpoint: Checkpoint, text: str) -> None:
        self._config = checkpoint.config
        self._sequences = _sequences(checkpoint, text)
        self._weights = WeightFile(DATA_FILE)
        self._graph = model_graph(checkpoint, self._weights)
        self._graph.model()  # plans the weights
        self._inputs: dict[str, list[str]] = {}  # {matrix: the values of the graph that it is multiplied with}
        sizes: dict[str, int] = {}  # {matrix: the number of its inputs}
        for node in self._graph.nodes:
            weight = self._weights.weights.get(node.input[1]) if node.op_type == "MatMul" else None
            if weight and len(weight.shape) == 2:
                self._inputs.setdefault(weight.name, []).append(node.input[0])
                sizes[weight.name] = weight.shape[0]
        self._groups = _groups(sizes, max(map(len, self._sequences)))
        self._moments: dict[str, np.ndarray] = {}

    @property
    def nbytes(self) -> int:
        """The number of bytes that the fp32 weights take on the disk meanwhile."""
        return self._weights.nbytes

    def work(self, precisions: int) -> int:
        """The sum of the amounts, in bytes, that `progress` of `inside` is called with.

        Args:
            precisions: The number of precisions that all moments are computed for.
        """
        passes = len(self._groups)
        return self.nbytes * (passes * precisions if passes > 1 else 1)

    @contextlib.contextmanager
    def inside(self, folder: Path | str, progress: Progress) -> Iterator[None]:
        """Makes `moments` usable while the block runs.

        Args:
            folder: A folder; the fp32 weights lie in a temporary folder inside it until the block ends.
            progress: Called after each piece of the text with a share of nbytes and the piece's name; see work.
        """
        with tempfile.TemporaryDirectory(dir=folder) as inner:
            self._folder, self._progress = Path(inner), progress
            self._weights.write(self._folder / DATA_FILE)
            yield

    def moments(self, matrix: str) -> np.ndarray | None:
        """Returns X^T X, float32 [inputs, inputs], of the X [tokens, inputs] that a matrix is multiplied with.

        Args:
            matrix: The matrix's name in the data file. The result is None if it is not a matrix of the layers.

        Raises:
            CheckpointError: The moments are not finite.
        """
        if matrix in self._inputs and matrix not in self._moments:
            self._moments = {}  # frees the memory for the next ones
            self._moments = self._computed(next(group for group in self._groups if matrix in group))
        return self._moments.get(matrix)

    @np.errstate(over="ignore", invalid="ignore")  # the error below names the matrix whose moments are not finite
    def _computed(self, group: list[str]) -> dict[str, np.ndarray]:
        """The moments of some matrices, from one pass over the text."""
        names = sorted({name for matrix in group for name in self._inputs[matrix]})
        session = self._session(names)
        moments: dict[str, np.ndarray] = {}
        for number, ids in enumerate(self._sequences):
            values = map(np.asarray, session.run(names, self._feed(ids)))
            inputs = dict(zip(names, values, strict=True))
            for matrix in group:
                for name in self._inputs[matrix]:
                    x = inputs[name].reshape(-1, inputs[name].shape[-1])  # [1, seq, inputs] -> [seq, inputs]
                    if matrix in moments:
                        moments[matrix] += x.T @ x
                    else:
                        moments[matrix] = x.T @ x
            self._progress(self.nbytes / len(self._sequences), f"calibrate/{group[0]}/{number}")
        for matrix, value in moments.items():
            if not np.isfinite(value.diagonal()).all():
                raise CheckpointError(f"{matrix}: its inputs are not finite on the text to calibrate on")
        return moments

    def _session(self, names: list[str]) -> onnxruntime.InferenceSession:
        """A session of the graph's part that computes some values, which are its outputs."""
        import onnxruntime

        self._graph.outputs = []
        for name in names:
            self._graph.output(name, np.float32, None)
        path = self._folder / "model.onnx"
        path.write_bytes(self._graph.model().SerializeToString())
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised; the log would only repeat them
        options.add_session_config_entry("session.disable_prepacking", "1")  # the weights stay in the file
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the cores are for the moments, too
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def _feed(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """The graph's inputs for one sequence, int64 [seq], with empty caches."""
        feed = {
            "input_ids": ids[None],
            "attention_mask": np.ones((1, len(ids)), np.int64),
            "position_ids": np.arange(len(ids))[None],
        }
        for part in cache_parts(self._config, windowed=False, head_size=self._config.head_size):
            feed[part.past] = np.zeros((1, part.heads, 0, part.columns), np.float32)
        return feed


def _sequences(checkpoint: Checkpoint, text: str) -> list[np.ndarray]:
    """Token ids, int64, of at most n_ctx tokens each and MAX_TOKENS together, taken evenly from all of the text."""
    if checkpoint.tokenizer is None:
        raise CheckpointError(f"{checkpoint.path}: no tokenizer to calibrate with: name one, --tokenizer (tokenizer=)")
    ids = np.asarray(checkpoint.tokenizer.encode(text).ids, np.int64)
    if len(ids) < MIN_TOKENS:
        raise RequestError(f"a text of {len(ids)} tokens is too short to calibrate on: {MIN_TOKENS} are the least")
    size = checkpoint.config.n_ctx
    pieces = [ids[start : start + size] for start in range(0, len(ids), size)]
    count = min(len(pieces), max(1, MAX_TOKENS // size))
    return [pieces[number * len(pieces) // count] for number in range(count)]


def _groups(sizes: dict[str, int], tokens: int) -> list[list[str]]:
    """Divides the matrices, in order, into groups whose moments and inputs fit into _MEMORY.

    A matrix that does not fit is a group of its own.

    Args:
        sizes: {matrix: the number of its inputs}.
        tokens: The number of tokens of the longest sequence.
    """
    groups: list[list[str]] = []
    room = 0
    for matrix, inputs in sizes.items():
        needed = np.dtype(np.float32).itemsize * inputs * (inputs + tokens)
        if needed > room:
            groups.append([])
            room = _MEMORY
        groups[-1].append(matrix)
        room -= needed
    return groups
