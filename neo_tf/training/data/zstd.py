"""Reading .zst files with the library zstandard, so that a file that is cut short is noticed."""

import io
from typing import IO, Any

from neo_tf.errors import MissingExtraError

_PIECE = 1 << 17  # bytes that are read at a time


def open_zstd(file: IO[bytes]) -> io.BufferedReader:
    """The decompressed content of a file that may hold several frames.

    Raises:
        MissingExtraError: The extra `data` is not installed.
    """
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtraError.of(".zst files need zstandard", error, "data") from None
    # The Pile's files need a window of 2 GB at most.
    return io.BufferedReader(_Frames(file, zstandard.ZstdDecompressor(max_window_size=2**31)), _PIECE)


class _Frames(io.RawIOBase):
    """The frames of a file, one after the other. zstandard's own reader takes a frame that is cut short for whole."""

    def __init__(self, file: IO[bytes], decompressor: Any) -> None:
        self._file = file
        self._decompressor = decompressor
        self._frame: Any = None  # the one that is being read
        self._rest = b""  # of the file, read and not decompressed yet
        self._ready = b""  # decompressed and not taken yet

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer; returns the number of bytes, which is 0 at the end."""
        view = memoryview(buffer).cast("B")
        while not self._ready:
            piece = self._rest or self._file.read(_PIECE)
            if not piece:
                if self._frame is not None:
                    raise EOFError("it ends inside a frame")
                return 0
            if self._frame is None:
                self._frame = self._decompressor.decompressobj()
            self._ready = self._frame.decompress(piece)
            self._rest = b""
            if self._frame.eof:
                self._rest = self._frame.unused_data
                self._frame = None
        count = min(len(view), len(self._ready))
        view[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count
