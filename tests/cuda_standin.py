"""A stand-in for a GPU: ONNX Runtime's CUDA provider and CUDA's runtime library as the runtime sees them, on the CPU.

It behaves as they do where a mistake would go unnoticed on the CPU:

- A GPU's memory is other memory than the host's. It is full of NaN until it is zeroed, and a copy has happened only
  when its stream was waited for.
- An input that lies in the host's memory is copied to the GPU when it is bound, once. Only what kernels read on the
  host stays where it is.
- The first run of a number is captured: it computes three times. Later runs of this number replay it, at the addresses
  and with the host's values of the first one, whatever was bound since.

Where ONNX Runtime would replay something else than what was asked for, or capture once more in another thread, the
stand-in raises.
"""

import bisect
import ctypes
import threading

import numpy as np
import onnxruntime

from neo_tf.runtime.device import cudart, providers

_REAL_SESSION = onnxruntime.InferenceSession
ON_THE_HOST = ("total_sequence_length", "logits_start")  # inputs that kernels read in the host's memory
RUNS_OF_A_CAPTURE = 3
_TYPES = {1: np.float32, 10: np.float16}


class Gpus:
    """The memory of some GPUs and the calls of CUDA's runtime library that the runtime makes.

    Args:
        count: The number of GPUs.
        memory: The bytes of each one's memory.

    Attributes:
        taken: Bytes of the GPUs' memory in use.
        pushes, pulls: The bytes of each copy between the host and a GPU.
    """

    def __init__(self, count: int = 1, memory: int = 2**33) -> None:
        self.count = count
        self.memory = memory
        self.taken = 0
        self.pushes: list[int] = []
        self.pulls: list[int] = []
        self._on_gpu: dict[int, np.ndarray] = {}
        self._on_host: dict[int, np.ndarray] = {}
        self._begins: list[int] = []  # of _on_gpu, in ascending order
        self._waiting: list[tuple[int, int, int]] = []  # copies (target, source, size) that have not happened yet
        self._lock = threading.RLock()  # memory may be freed by a garbage collection in the middle of a call

    def holds(self, address: int, size: int) -> bool:
        """Whether these bytes lie in one piece of a GPU's memory."""
        place = bisect.bisect(self._begins, address) - 1
        if place < 0:
            return False
        begin = self._begins[place]
        return address + size <= begin + self._on_gpu[begin].size

    # ---- the library

    def cudaSetDevice(self, device):
        return 0 if 0 <= device.value < self.count else 101

    def cudaGetDeviceCount(self, count):
        count._obj.value = self.count
        return 0

    def cudaMalloc(self, address, size):
        if size.value > self.memory - self.taken:
            return 2
        piece = np.full(size.value, 0xFF, np.uint8)  # NaN in every floating-point type
        with self._lock:
            address._obj.value = piece.ctypes.data
            self._on_gpu[piece.ctypes.data] = piece
            bisect.insort(self._begins, piece.ctypes.data)
            self.taken += piece.size
        return 0

    def cudaFree(self, address):
        with self._lock:
            self.taken -= self._on_gpu.pop(address.value).size
            self._begins.remove(address.value)
        return 0

    def cudaHostAlloc(self, address, size, flags):
        piece = np.full(size.value, 0xFF, np.uint8)
        address._obj.value = piece.ctypes.data
        self._on_host[piece.ctypes.data] = piece
        return 0

    def cudaFreeHost(self, address):
        del self._on_host[address.value]
        return 0

    def cudaMemset(self, address, value, size):
        assert self.holds(address.value, size.value)
        ctypes.memset(address.value, value.value, size.value)
        return 0

    def cudaMemGetInfo(self, free, total):
        free._obj.value = self.memory - self.taken
        total._obj.value = self.memory
        return 0

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        to_gpu, from_gpu = kind.value in (1, 3), kind.value in (2, 3)
        assert self.holds(target.value, size.value) == to_gpu, "the target does not lie where it is said to"
        assert self.holds(source.value, size.value) == from_gpu, "the source does not lie where it is said to"
        if kind.value != 3:
            (self.pushes if to_gpu else self.pulls).append(size.value)
        self._waiting.append((target.value, source.value, size.value))
        return 0

    def cudaMemcpy2DAsync(self, target, target_pitch, source, source_pitch, width, height, kind, stream):
        if width.value > min(target_pitch.value, source_pitch.value):
            return 12  # cudaErrorInvalidPitchValue
        for row in range(height.value):
            to = ctypes.c_void_p(target.value + row * target_pitch.value)
            of = ctypes.c_void_p(source.value + row * source_pitch.value)
            self.cudaMemcpyAsync(to, of, width, kind, stream)
        return 0

    def cudaStreamSynchronize(self, stream):
        waiting, self._waiting = self._waiting, []
        for target, source, size in waiting:
            ctypes.memmove(target, source, size)
        return 0

    def cudaGetLastError(self):
        return 0

    def cudaGetErrorString(self, status):
        texts = {2: b"out of memory", 12: b"invalid pitch argument", 101: b"invalid device ordinal"}
        return texts[status.value]


class Binding:
    """ONNX Runtime's IOBinding of a session on CUDA.

    Attributes:
        places: {name: (where it lies, shape, address)} of everything that is bound on a GPU.
        host: {name: array} of what kernels read on the host.
    """

    def __init__(self, session, gpus):
        self.real = session.io_binding()
        self.places, self.host, self._copies = {}, {}, {}
        self._gpus = gpus

    def bind_input(self, name, device, device_id, element_type, shape, address):
        dtype = np.dtype(_TYPES.get(element_type, element_type)) if isinstance(element_type, int) else element_type
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        if device == "cpu":
            assert not self._gpus.holds(address, size), f"{name} is said to lie in the host's memory"
            seen = np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype).reshape(shape)
            if name in ON_THE_HOST:
                self.host[name] = seen
            else:
                self._copies[name] = seen.copy()
                address = self._copies[name].ctypes.data
        else:
            assert name not in ON_THE_HOST, f"{name} is read on the host"
            self._take(name, address, size, shape)
        self.real.bind_input(name, "cpu", 0, element_type, shape, address)

    def bind_output(self, name, device, device_id, element_type, shape, address):
        assert device == "cuda", f"{name}: a replay does not copy outputs to the host"
        dtype = np.dtype(_TYPES.get(element_type, element_type)) if isinstance(element_type, int) else element_type
        self._take(f"{name} (out)", address, int(np.prod(shape)) * np.dtype(dtype).itemsize, shape)
        self.real.bind_output(name, "cpu", 0, element_type, shape, address)

    def _take(self, name, address, size, shape):
        assert self._gpus.holds(address, size), f"{name} does not lie in the GPU's memory"
        self.places[name] = (tuple(shape), address)


class CudaSession:
    """ONNX Runtime's InferenceSession on CUDA: the CPU's, with a Binding and captured runs.

    Attributes:
        captured: {number: the Binding of the run that was captured, with its thread and the host's values}.
        runs: The number of runs of the graph, those of captures included.
    """

    def __init__(self, model, options, settings, gpus):
        self._real = _REAL_SESSION(model, options, providers=["CPUExecutionProvider"])
        self._captures = settings["enable_cuda_graph"] == "1"
        self._gpus = gpus
        self.captured = {}
        self.runs = 0
        self.settings = settings

    def __getattr__(self, name):
        return getattr(self._real, name)

    def get_providers(self):
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def io_binding(self):
        return Binding(self._real, self._gpus)

    def run_with_iobinding(self, binding, options=None):
        number = 0 if self._captures else -1
        if options is not None and self._captures:
            number = int(options.get_run_config_entry("gpu_graph_id"))
        if number == -1:
            self._run(binding)
            return
        host = {name: array.copy() for name, array in binding.host.items()}
        thread = threading.get_ident()
        if number not in self.captured:
            for _ in range(RUNS_OF_A_CAPTURE):
                self._run(binding)
            self.captured[number] = (binding, dict(binding.places), host, thread)
            return
        first, places, values, captured_in = self.captured[number]
        assert thread == captured_in, f"graph {number} belongs to another thread"
        changed = [name for name in places if binding.places.get(name) != places[name]]
        assert not changed and len(binding.places) == len(places), f"graph {number}: {changed} moved"
        for name, value in values.items():
            assert np.array_equal(host[name], value), f"graph {number}: {name} changed, and a replay does not see it"
        self._run(first)

    def _run(self, binding):
        self.runs += 1
        shape, address = binding.places["seqlens_k"]
        lengths = np.frombuffer((ctypes.c_int32 * shape[0]).from_address(address), np.int32) + 1
        # CUDA's kernels divide their work by it; the CPU's read each row's length alone.
        assert lengths.max() <= binding.host["total_sequence_length"], "total_sequence_length is less than a row's"
        self._real.run_with_iobinding(binding.real)


def stand_in(monkeypatch, gpus=None):
    """Lets CUDA start here, on a stand-in.

    Args:
        monkeypatch: The test's.
        gpus: The Gpus; one large one where None.

    Returns:
        The Gpus.
    """
    gpus = gpus or Gpus()

    def session(model, options=None, providers=None, **more):
        if not providers or not isinstance(providers[0], tuple):
            return _REAL_SESSION(model, options, providers=providers, **more)
        name, settings = providers[0]
        assert name == "CUDAExecutionProvider" and more == {"enable_fallback": 0}
        if int(settings["device_id"]) >= gpus.count:
            raise RuntimeError("CUDA failure 101: invalid device ordinal")
        return CudaSession(model, options, settings, gpus)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(providers.PROVIDERS.values()))
    monkeypatch.setattr(providers, "load_cuda", lambda: "")
    monkeypatch.setattr(providers, "missing_driver", lambda: None)
    monkeypatch.setattr(cudart, "load_library", lambda: gpus)
    return gpus
