"""The .npz files in which npu sends texts: what numpy writes is read, and nothing else."""

import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from neo_tf.errors import RequestError
from neo_tf.runtime.server.npz_texts import read_npz_texts


def npz(*arrays, save=np.savez, **named):
    file = io.BytesIO()
    save(file, *arrays, **named)
    return file.getvalue()


def zipped(members, **options):
    """A zip file of {name: bytes}."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, data in members.items() if isinstance(members, dict) else members:
            archive.writestr(name, data)
    return file.getvalue()


def array_file(header, data=b""):
    """A .npy file with a header of one's own."""
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def header(dtype="<U1", shape="(1,)", order="False"):
    return f"{{'descr': '{dtype}', 'fortran_order': {order}, 'shape': {shape}, }}"


TEXTS = ["EleutherAI has", "", "ü 𝄞 \t\n", "a" * 5000]


def test_a_list_of_texts_comes_in_its_order():
    many = [f"text {number}" for number in range(12)]
    for texts in (TEXTS, many):
        named = {str(number): text for number, text in enumerate(texts)}  # as the client names them
        assert read_npz_texts(npz(**named)) == texts


def test_an_array_of_texts_holds_several():
    assert read_npz_texts(npz(np.array(TEXTS))) == TEXTS
    assert read_npz_texts(npz(np.array("alone"))) == ["alone"]
    assert read_npz_texts(npz(np.array(["a", "b"]), np.array("c"))) == ["a", "b", "c"]
    assert read_npz_texts(npz(np.array(["big", "endian"]).astype(">U6"))) == ["big", "endian"]


class Runs:
    def __reduce__(self):
        return pytest.fail, ("it was unpickled",)


REFUSED = {
    "pickled objects": npz(np.array(["a", Runs()], dtype=object)),
    "an array that is a pickle": zipped({"0.npy": b"\x80\x04cos\nsystem\n(S'echo run'\ntR."}),
    "bytes": npz(np.array([b"bytes"])),
    "numbers": npz(np.arange(3)),
    "records": npz(np.zeros(2, dtype=[("a", "<U3")])),
    "times": npz(np.array(["2020-01-01"], dtype="datetime64[D]")),
    "two dimensions": npz(np.array([["a", "b"]])),
    "too many texts": npz(np.array(["a"] * 5000)),
    "a name of one's own": npz(prompt="a"),
    "a path": zipped({"../0.npy": array_file(header(), b"a\0\0\0")}),
    "an absolute path": zipped({"/etc/0.npy": array_file(header(), b"a\0\0\0")}),
    "no array": zipped({}),
    "an array twice": zipped(
        [("0.npy", array_file(header(), b"a\0\0\0")), ("00.npy", array_file(header(), b"b\0\0\0"))]
    ),
    "another compression": zipped({"0.npy": array_file(header(), b"a\0\0\0")}, compression=zipfile.ZIP_LZMA),
    "compressed": npz(np.array(["a"]), save=np.savez_compressed),
    "no zip file": b"hello",
    "nothing": b"",
    "an .npy file": array_file(header(), b"a\0\0\0"),
    "half of a pair": zipped({"0.npy": array_file(header(), b"\0\xd8\0\0")}),
    "no character": zipped({"0.npy": array_file(header(), b"\xff\xff\xff\xff")}),
    "a short array": zipped({"0.npy": array_file(header(shape="(2,)"), b"a\0\0\0")}),
    "a long array": zipped({"0.npy": array_file(header(), b"a\0\0\0b\0\0\0")}),
    "a huge shape": zipped({"0.npy": array_file(header(shape="(10000000000000,)"))}),
    "a huge shape of nothing": zipped({"0.npy": array_file(header("<U0", "(10000000000000,)"))}),
    "a negative shape": zipped({"0.npy": array_file(header(shape="(-1,)"), b"a\0\0\0")}),
    "a huge type": zipped({"0.npy": array_file(header("<U500000000"), b"a\0\0\0")}),
    "a header that is no header": zipped({"0.npy": array_file("__import__('os')")}),
    "a deep header": zipped({"0.npy": array_file("(" * 9000)}),
    "a long header": zipped({"0.npy": array_file(header() + " " * 40_000, b"a\0\0\0")}),
    "another version": zipped({"0.npy": b"\x93NUMPY\x07\x00" + array_file(header(), b"a\0\0\0")[8:]}),
    "cut": npz(np.array(TEXTS))[:-30],
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_anything_else_is_refused_in_one_line(data):
    with pytest.raises(RequestError) as caught:
        read_npz_texts(data)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_a_file_that_would_fill_the_memory_is_refused_unread():
    file = zipped({"0.npy": array_file(header("<U2500000")) + bytes(10_000_000)}, compression=zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    try:
        with pytest.raises(RequestError, match="is compressed"):
            read_npz_texts(file)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_arrays_that_share_their_bytes_are_refused_unread():
    one = zipped({"0.npy": array_file(header("<U2500")) + bytes(10_000)})
    place = one.rindex(b"PK\x01\x02")
    end = one.rindex(b"PK\x05\x06")
    entry = one[place:end]
    entries = b"".join(entry.replace(b"0.npy", b"%d.npy" % number) for number in range(10))
    data = one[:place] + entries + one[end : end + 8] + struct.pack("<HHII", 10, 10, len(entries), place) + b"\0\0"
    assert len(zipfile.ZipFile(io.BytesIO(data)).infolist()) == 10
    with pytest.raises(RequestError, match="more bytes than the file"):
        read_npz_texts(data)


def test_a_size_that_is_not_that_of_the_array_is_noticed():
    data = bytearray(zipped({"0.npy": array_file(header("<U2500")) + bytes(10_000)}))
    place = data.rindex(b"PK\x01\x02") + 24  # the size in the directory
    assert struct.unpack_from("<I", data, place)[0] > 10_000
    for size in (100, 9_000):
        struct.pack_into("<I", data, place, size)
        with pytest.raises(RequestError):
            read_npz_texts(bytes(data))
