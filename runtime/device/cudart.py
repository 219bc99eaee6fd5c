"""CUDA's runtime library, of which a session needs memory, copies between its pieces, and what a GPU has.

onnxruntime's Python interface has no call that copies from one address to another, zeroes a piece of memory, or says
how much is free. The library is loaded with ONNX Runtime's CUDA provider in any case; here ctypes calls it.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any

from neo_tf.errors import ProviderError
from neo_tf.sizes import readable_bytes

_TO_DEVICE, _TO_HOST, _ON_DEVICE = 1, 2, 3  # cudaMemcpyKind
_STREAM = ctypes.c_void_p(None)  # the default stream


class Cudart:
    """The calls of the CUDA runtime library for one GPU. Each returns when its work is done.

    ONNX Runtime computes in a stream of its own, and waits for it at the end of a run. So what is called between two
    runs sees all that the first one wrote, and the second one sees what was called.

    Args:
        device_id: The index of the GPU.

    Raises:
        ProviderError: From each call: what CUDA says.
    """

    def __init__(self, device_id: int) -> None:
        self._device_id = device_id
        self._library = load_library()

    def allocate(self, size: int) -> int:
        """Takes `size` bytes of the GPU's memory, all zero, and returns their address."""
        address = ctypes.c_void_p()
        try:
            self._call("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(size))
        except ProviderError as error:
            raise ProviderError(
                f"GPU {self._device_id} cannot give {readable_bytes(size)} of memory: {error}"
            ) from None
        assert address.value is not None
        self._call("cudaMemset", address, ctypes.c_int(0), ctypes.c_size_t(size))
        self._wait()
        return address.value

    def free(self, address: int) -> None:
        """Gives memory of allocate back. A failure is of no interest: CUDA may have ended with the process."""
        self._library.cudaFree(ctypes.c_void_p(address))

    def allocate_host(self, size: int) -> int:
        """Takes `size` bytes of the host's memory that the GPU can read fast, and returns their address."""
        address = ctypes.c_void_p()
        self._call("cudaHostAlloc", ctypes.byref(address), ctypes.c_size_t(size), ctypes.c_uint(0))
        assert address.value is not None
        ctypes.memset(address.value, 0, size)
        return address.value

    def free_host(self, address: int) -> None:
        """Gives memory of allocate_host back."""
        self._library.cudaFreeHost(ctypes.c_void_p(address))

    def push(self, target: int, source: int, size: int) -> None:
        """Copies bytes from the host's memory to the GPU's."""
        self._copy(target, source, size, _TO_DEVICE)

    def pull(self, target: int, source: int, size: int) -> None:
        """Copies bytes from the GPU's memory to the host's."""
        self._copy(target, source, size, _TO_HOST)

    def copy_rows(self, copies: list[tuple[int, int, int, int, int, int]]) -> None:
        """Copies rows of bytes within the GPU's memory.

        Args:
            copies: For each copy the target's address, the bytes from one of its rows to the next, the same two for
                the source, the bytes of a row, and the number of rows.
        """
        for target, target_pitch, source, source_pitch, width, height in copies:
            self._call(
                "cudaMemcpy2DAsync",
                ctypes.c_void_p(target),
                ctypes.c_size_t(target_pitch),
                ctypes.c_void_p(source),
                ctypes.c_size_t(source_pitch),
                ctypes.c_size_t(width),
                ctypes.c_size_t(height),
                ctypes.c_int(_ON_DEVICE),
                _STREAM,
            )
        self._wait()

    def free_memory(self) -> int:
        """The number of bytes of the GPU's memory that are free."""
        free = ctypes.c_size_t()
        total = ctypes.c_size_t()
        self._call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def _copy(self, target: int, source: int, size: int, kind: int) -> None:
        places = ctypes.c_void_p(target), ctypes.c_void_p(source)
        self._call("cudaMemcpyAsync", *places, ctypes.c_size_t(size), ctypes.c_int(kind), _STREAM)
        self._wait()

    def _wait(self) -> None:
        self._call("cudaStreamSynchronize", _STREAM)

    def _call(self, name: str, *arguments: Any) -> None:
        """Calls a function for this GPU: CUDA has a current one for each thread."""
        _check(self._library, "cudaSetDevice", ctypes.c_int(self._device_id))
        _check(self._library, name, *arguments)


def count_devices() -> int:
    """The number of GPUs.

    Raises:
        ProviderError: CUDA cannot say, for example for want of a driver.
    """
    count = ctypes.c_int()
    _check(load_library(), "cudaGetDeviceCount", ctypes.byref(count))
    return count.value


@functools.cache
def load_library() -> Any:
    """The library of the CUDA version that onnxruntime was built with.

    Raises:
        ProviderError: It is not there.
    """
    from onnxruntime.capi import build_and_package_info

    version = str(getattr(build_and_package_info, "cuda_version", "")).partition(".")[0]
    name = f"cudart64_{version}.dll" if sys.platform == "win32" else f"libcudart.so.{version}"
    try:
        library = ctypes.CDLL(name)
    except OSError as error:
        raise ProviderError(f"CUDA's library {name} cannot be loaded: {error}") from None
    library.cudaGetErrorString.restype = ctypes.c_char_p
    return library


def _check(library: Any, name: str, *arguments: Any) -> None:
    status = getattr(library, name)(*arguments)
    if status:
        library.cudaGetLastError()  # CUDA would report the error again with the next call
        text = library.cudaGetErrorString(ctypes.c_int(status)).decode()
        raise ProviderError(f"CUDA: {text} ({name}, error {status})")
