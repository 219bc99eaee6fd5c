"""What ONNX Runtime's CUDA provider does with decoder graphs on a machine without a GPU: `python cuda_provider.py`.

    python cuda_provider.py DUMMY_CUDA FOLDER ...

DUMMY_CUDA is what dummy_cuda.build made. For each ONNX folder for CUDA one line of JSON says where the provider places
the nodes of its first decoder graph, and what a decode step of two sequences does. The numbers that come out mean
nothing.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))
import dummy_cuda
import numpy as np
import onnxruntime

from neo_tf.cache_layout import cache_parts
from neo_tf.onnx_folder import DECODER, OnnxFolder, top_tokens

ROWS = 2
OPTIONS = {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested", "sdpa_kernel": "3"}
BFLOAT16 = 16  # the number of onnx.TensorProto.DataType


def start(path, capture, settings=()):
    """A session of a graph on CUDA, with CUDA graphs or without."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    for key, value in settings:
        options.add_session_config_entry(key, value)
    cuda = ("CUDAExecutionProvider", OPTIONS | {"enable_cuda_graph": str(int(capture))})
    return onnxruntime.InferenceSession(str(path), options, providers=[cuda, "CPUExecutionProvider"], enable_fallback=0)


class Step:
    """A decode step of ROWS sequences, whose inputs and outputs lie in the device's memory."""

    def __init__(self, session, folder, rows=ROWS):
        self.session, self.folder, config = session, folder, folder.config
        self.binding, self.kept = session.io_binding(), []
        native = BFLOAT16 if folder.precisions[0] == "bf16" else np.float16
        for name, dtype in (("input_ids", np.int64), ("position_ids", np.int64)):
            self._bind(self.binding.bind_input, name, dtype, (rows, 1))
        self._bind(self.binding.bind_input, "seqlens_k", np.int32, (rows,))
        self._bind(self.binding.bind_input, "inverse_temperature", np.float32, (rows, 1, 1))
        self.host = {"total_sequence_length": np.array(config.n_ctx, np.int32), "logits_start": np.zeros(1, np.int64)}
        for name, value in self.host.items():
            self.binding.bind_input(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
        self._bind(self.binding.bind_output, "logits", np.float32, (rows, 1, config.n_vocab))
        self._bind(self.binding.bind_output, "top_logprobs", np.float32, (rows, 1, top_tokens(config)))
        self._bind(self.binding.bind_output, "top_ids", np.int64, (rows, 1, top_tokens(config)))
        for part in cache_parts(config, folder.windowed_caches):
            shape = (rows, part.heads, part.rows, part.columns)
            dtype = np.float32 if part.kind == "sums" else native
            address = self._bind(self.binding.bind_input, part.past, dtype, shape)
            self.binding.bind_output(part.present, "cuda", 0, dtype, shape, address)

    def _bind(self, bind, name, dtype, shape):
        size = int(np.prod(shape)) * (2 if dtype == BFLOAT16 else np.dtype(dtype).itemsize)
        value = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(size, np.uint8), "cuda", 0)
        self.kept.append(value)
        bind(name, "cuda", 0, dtype, shape, value.data_ptr())
        return value.data_ptr()

    def run(self, graph):
        """Runs the step as the CUDA graph of this number; -1 is none."""
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(graph))
        self.session.run_with_iobinding(self.binding, options)


def events_of(step, graph, cuda, log):
    """What a run does: [(event, detail)], such as ("launch", a kernel's name) and ("copy", "to the device")."""
    cuda.dummy_cuda_log(str(log).encode())
    try:
        step.run(graph)
    finally:
        cuda.dummy_cuda_log(None)
    return [(event, detail) for event, _, detail in (line.split(" ", 2) for line in log.read_text().splitlines())]


def report(folder, cuda, log):
    """What the provider does with a folder's first decoder graph, as a dict."""
    folder = OnnxFolder.read(folder)
    path = folder.graph_path(folder.precisions[0], DECODER)
    session = start(path, capture=False)
    placed = {}
    for part in session.get_provider_graph_assignment_info():
        placed.setdefault(part.ep_name, []).extend(node.name for node in part.get_nodes())
    step = Step(session, folder)
    found = {"placed": placed, "launches": [], "copies": {}, "captured": None}
    try:
        step.run(-1)
        eager = events_of(step, -1, cuda, log)
        found["launches"] = [detail for event, detail in eager if event == "launch"]
        found["copies"] = Counter(detail for event, detail in eager if event == "copy")
    except Exception as error:
        found["error"] = str(error)
    try:
        step = Step(start(path, capture=True), folder)
        first = Counter(event for event, _ in events_of(step, 1, cuda, log))
        second = Counter(event for event, _ in events_of(step, 1, cuda, log))
        found["captured"] = {"first": first, "second": second}
    except Exception as error:
        found["refused"] = str(error)
    return found


if __name__ == "__main__":
    onnxruntime.set_default_logger_severity(4)
    runtime = dummy_cuda.load(sys.argv[1])
    with TemporaryDirectory() as temporary:
        for path in sys.argv[2:]:
            print(json.dumps(report(path, runtime, Path(temporary) / "log")), flush=True)
