"""Reading texts from an .npz file of numpy arrays that somebody sent."""

from __future__ import annotations

import io
import math
import re
import zipfile

import numpy as np

from neo_tf.errors import RequestError

_MOST_ARRAYS = 4096
_MOST_TEXTS = 4096
_NAME = re.compile(r"(?:arr_)?(\d{1,6})\.npy")  # as numpy.savez calls what has no name: "0.npy", "arr_0.npy"
# By the file format's version. Numpy writes the third for records alone.
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_SURROGATES = (0xD800, 0xDFFF)
_LAST_CODE_POINT = 0x10FFFF
_WHAT = "send a list of texts"


def read_npz_texts(data: bytes) -> list[str]:
    """The texts in the arrays of an .npz file, in the order of the arrays' numbers.

    Nothing in the file is unpickled or decompressed. Sizes are checked before anything is taken into memory: what is
    read is no larger than the file.

    Raises:
        RequestError: It is no such file, it holds something else than texts, or too much.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = _members(archive, len(data))
            return [text for member in members for text in _texts(archive, member)]
    except RequestError:
        raise
    except Exception as error:  # whatever zipfile and numpy make of a file that is damaged on purpose
        raise RequestError(f"the data are no .npz file that can be read: {type(error).__name__}") from None


def _members(archive: zipfile.ZipFile, size: int) -> list[zipfile.ZipInfo]:
    """The files of the arrays, in their order. The archive has `size` bytes."""
    members = archive.infolist()
    if len(members) > _MOST_ARRAYS:
        raise RequestError(f"the .npz file has {len(members)} arrays, and at most {_MOST_ARRAYS} are read")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise RequestError("the .npz file is compressed: write it with numpy.savez")
    if sum(member.file_size for member in members) > size:
        raise RequestError("the .npz file's arrays have more bytes than the file")
    numbered = {}
    for member in members:
        name = _NAME.fullmatch(member.filename)
        if name is None:
            raise RequestError(f"the .npz file holds something that numpy.savez does not write for a list: {_WHAT}")
        numbered[int(name[1])] = member
    if len(numbered) < len(members):
        raise RequestError("the .npz file holds an array twice")
    if not members:
        raise RequestError(f"the .npz file is empty: {_WHAT}")
    return [numbered[number] for number in sorted(numbered)]


def _texts(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> list[str]:
    """The texts of one array."""
    with archive.open(member) as file:
        data = file.read(member.file_size)
    stream = io.BytesIO(data)
    shape, _, dtype = _HEADERS[np.lib.format.read_magic(stream)](stream)
    if dtype.kind != "U":
        raise RequestError(f"the .npz file's array {member.filename!r} holds {_kind(dtype)}, not texts: {_WHAT}")
    count = math.prod(shape)
    if len(shape) > 1 or not 0 <= count <= _MOST_TEXTS:
        raise RequestError(
            f"the .npz file's array {member.filename!r} has the shape {shape}: {_WHAT}, at most {_MOST_TEXTS}"
        )
    values = memoryview(data)[stream.tell() :]
    if len(values) != count * dtype.itemsize:
        raise RequestError("the .npz file is damaged: an array's length is not that of its header")
    if dtype.itemsize == 0:
        return [""] * count
    characters = np.frombuffer(values, np.dtype(np.uint32).newbyteorder(dtype.byteorder))
    first, last = _SURROGATES
    if ((characters > _LAST_CODE_POINT) | ((characters >= first) & (characters <= last))).any():
        raise RequestError("the .npz file holds a text that UTF-8 cannot write")
    return np.frombuffer(values, dtype).tolist()


def _kind(dtype: np.dtype) -> str:
    """What an array holds, in words."""
    return {"O": "pickled objects", "S": "bytes", "V": "records"}.get(dtype.kind, f"numbers ({dtype.name[:40]})")
