"""Second moments of what the layers' matrices are multiplied with on a text: int8 and int4 are rounded for them.

After GPTQ (Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers").
"""

import contextlib
import tempfile
from pathlib import Path

import numpy as np

from neo_tf.cache_layout import cache_parts
from neo_tf.errors import CheckpointError, RequestError
from neo_tf.onnx_folder import DATA_FILE

from .builder import WeightFile
from .graph import model_graph

MIN_TOKENS, MAX_TOKENS = 256, 2**15
_MEMORY = 2 * 10**9  # bytes of moments and inputs that are held at a time


class Calibration:
    """Moments of a checkpoint's fp32 graph on a text, computed when they are asked for, some layers at a time.

    Layers that share a matrix add to the same moments. Experts, the embedding and its head are not among them.

    Args:
        checkpoint: a Checkpoint, with its tokenizer.
        text: a str. Where it has more than MAX_TOKENS tokens, pieces from all of it are taken.

    Raises:
        CheckpointError: the checkpoint has no tokenizer.
        RequestError: the text has less than MIN_TOKENS tokens.
    """

    def __init__(self, checkpoint, text):
        self._config = checkpoint.config
        self._sequences = _sequences(checkpoint, text)
        self._weights = WeightFile(DATA_FILE)
        self._graph = model_graph(checkpoint, self._weights)
        self._graph.model()  # plans the weights
        self._inputs, sizes = {}, {}  # {matrix: names of what it is multiplied with}, {matrix: how many inputs it has}
        for node in self._graph.nodes:
            weight = self._weights.weights.get(node.input[1]) if node.op_type == "MatMul" else None
            if weight and len(weight.shape) == 2:
                self._inputs.setdefault(weight.name, []).append(node.input[0])
                sizes[weight.name] = weight.shape[0]
        self._groups = _groups(sizes, max(map(len, self._sequences)))
        self._moments, self._folder, self._progress = {}, None, None

    @property
    def nbytes(self):
        """Bytes on the disk of the weights that it computes with."""
        return self._weights.nbytes

    def work(self, precisions):
        """What the progress adds up to where so many precisions ask for all moments."""
        passes = len(self._groups)
        return self.nbytes * (passes * precisions if passes > 1 else 1)

    @contextlib.contextmanager
    def inside(self, folder, progress):
        """Moments can be asked for while the block runs; until then the weights lie in a folder inside `folder`.

        progress: called as progress(name, bytes); see work.
        """
        with tempfile.TemporaryDirectory(dir=folder) as inner:
            self._folder, self._progress = Path(inner), progress
            self._weights.write(self._folder / DATA_FILE, lambda name, size: None)
            yield

    def moments(self, matrix):
        """X^T X of the X [tokens, inputs] that a matrix is multiplied with, float32; None where it is not among them.

        Raises:
            CheckpointError: they are not finite.
        """
        if matrix in self._inputs and matrix not in self._moments:
            self._moments = {}  # room for the next ones
            self._moments = self._computed(next(group for group in self._groups if matrix in group))
        return self._moments.get(matrix)

    @np.errstate(over="ignore", invalid="ignore")  # what is not finite is told by name
    def _computed(self, group):
        names = sorted({name for matrix in group for name in self._inputs[matrix]})
        session, moments = self._session(names), {}
        for number, ids in enumerate(self._sequences):
            inputs = dict(zip(names, session.run(names, self._feed(ids)), strict=True))
            for matrix in group:
                for name in self._inputs[matrix]:
                    x = inputs[name].reshape(-1, inputs[name].shape[-1])  # [1, seq, inputs] -> [seq, inputs]
                    if matrix in moments:
                        moments[matrix] += x.T @ x
                    else:
                        moments[matrix] = x.T @ x
            self._progress(f"calibrate/{group[0]}/{number}", self.nbytes / len(self._sequences))
        for matrix, value in moments.items():
            if not np.isfinite(value.diagonal()).all():
                raise CheckpointError(f"{matrix}: its inputs are not finite on the text to calibrate on")
        return moments

    def _session(self, names):
        """The graph as far as some values, which are its outputs."""
        import onnxruntime

        self._graph.outputs = []
        for name in names:
            self._graph.output(name, np.float32, None)
        path = self._folder / "model.onnx"
        path.write_bytes(self._graph.model().SerializeToString())
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised; the log would only say them twice
        options.add_session_config_entry("session.disable_prepacking", "1")  # the weights stay in the file
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the cores are for the moments, too
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def _feed(self, ids):
        parts = cache_parts(self._config, windowed=False, head_size=self._config.head_size)
        feed = {part.past: np.zeros((1, part.heads, 0, part.columns), np.float32) for part in parts}
        feed |= {"attention_mask": np.ones((1, len(ids)), np.int64), "position_ids": np.arange(len(ids))[None]}
        return feed | {"input_ids": ids[None]}


def _sequences(checkpoint, text):
    """int64 arrays of at most n_ctx tokens each, at most MAX_TOKENS in all, evenly from all of the text."""
    from tokenizers import Tokenizer

    if checkpoint.tokenizer is None:
        raise CheckpointError(f"{checkpoint.path}: no tokenizer to calibrate with: name one, --tokenizer (tokenizer=)")
    ids = np.asarray(Tokenizer.from_str(checkpoint.tokenizer).encode(text).ids, np.int64)
    if len(ids) < MIN_TOKENS:
        raise RequestError(f"a text of {len(ids)} tokens is too short to calibrate on: {MIN_TOKENS} are the least")
    size = checkpoint.config.n_ctx
    pieces = [ids[start : start + size] for start in range(0, len(ids), size)]
    count = min(len(pieces), max(1, MAX_TOKENS // size))
    return [pieces[number * len(pieces) // count] for number in range(count)]


def _groups(sizes, tokens):
    """Lists of matrices in order, each of whose moments and inputs fit in _MEMORY together, or a single one."""
    groups, room = [], 0
    for matrix, inputs in sizes.items():
        needed = np.dtype(np.float32).itemsize * inputs * (inputs + tokens)
        if needed > room:
            groups.append([])
            room = _MEMORY
        groups[-1].append(matrix)
        room -= needed
    return groups
