"""Pickles of plain values are read; nothing in a pickle is ever named, run, shared or allowed to grow."""

import contextlib
import io
import os
import pickle
import pickletools
import struct
import tracemalloc

import pytest

from neo_tf.errors import RequestError
from neo_tf.runtime.server.plain_pickle import read_plain_pickle

# What the client of the card sends, and what else a call of generate may hold.
PLAIN = [
    ["EleutherAI has", {"response_length": 50, "remove_input": True, "temperature": 0.7}],
    ["a", {"bad_words_ids": [[1, 2], [3]], "exponential_decay_length_penalty": (5, 1.5), "seed": 2**63}],
    [["one", "two", "two"], None],
    "text with \0, ü and 𝄞",
    [1, -1, 255, 256, 65536, -(2**31), 2**40, 1.5, -0.0, True, False, None, (), (1,), (1, 2, 3, 4), [], {}],
    {"sequence_bias": {(5, 6): -1.0, (7,): 2.0}, 3: "three", None: 0, 1.5: 1, False: 2},
    {"nested": [[[{"a": [{}]}]]]},
    list(range(2000)),
    {str(number): number for number in range(1000)},
]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("value", PLAIN, ids=range(len(PLAIN)))
def test_plain_values_come_as_they_were(value, protocol):
    found = read_plain_pickle(pickle.dumps(value, protocol))
    assert found == value and repr(found) == repr(value)


def test_a_text_that_comes_twice_is_kept_once_in_the_pickle():
    text = "x" * 1000
    data = pickle.dumps([text, text, {"a": text}])
    assert len(data) < 1200
    assert read_plain_pickle(data) == [text, text, {"a": text}]


# ---- names

WHAT = "echo run"


class Runs:
    """Pickled by what `made` returns for __reduce__."""

    def __init__(self, *made):
        self._made = made

    def __reduce__(self):
        return self._made


class WithState:
    """Pickled by its class and its state: BUILD."""

    def __init__(self):
        self.state = 1


HOSTILE = [
    Runs(os.system, (WHAT,)),
    Runs(eval, ("__import__('os').system('echo run')",)),
    Runs(list, (), None, iter([1])),
    Runs(dict, (), None, None, iter([("a", 1)])),
    WithState(),
    os.system,
    {1, 2},
    frozenset((1,)),
    1j,
    b"bytes",
    bytearray(b"bytes"),
    range(3),
    Ellipsis,
    io.BytesIO(b"x"),
]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: type(value).__name__)
def test_whatever_needs_a_name_is_refused(value, protocol, monkeypatch):
    for wanted in (value, ["a prompt", {"seed": value}]):
        data = pickle.dumps(wanted, protocol)
        monkeypatch.setattr(os, "system", lambda command: pytest.fail("it ran"))
        with pytest.raises(RequestError, match=r"refused, and nothing is run|holds bytes"):
            read_plain_pickle(data)
        monkeypatch.undo()


BY_HAND = {
    "GLOBAL and REDUCE": b"\x80\x02cos\nsystem\n(U\x08echo runtR.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    "INST": b"\x80\x02(U\x08echo runios\nsystem\n.",
    "OBJ": b"\x80\x02(cos\nsystem\nU\x08echo runo.",
    "NEWOBJ": b"\x80\x02cos\n_exit\n)\x81.",
    "NEWOBJ_EX": b"\x80\x04cos\n_exit\n)}\x92.",
    "BUILD": b"\x80\x02}}b.",
    "REDUCE": b"\x80\x02))R.",
    "EXT1": b"\x80\x02\x82\x01.",
    "EXT2": b"\x80\x02\x83\x01\x00.",
    "EXT4": b"\x80\x02\x84\x01\x00\x00\x00.",
    "PERSID": b"\x80\x02Pname\n.",
    "BINPERSID": b"\x80\x02NQ.",
    "NEXT_BUFFER": b"\x80\x05\x97.",
    "READONLY_BUFFER": b"\x80\x05\x97\x98.",
}


@pytest.mark.parametrize("data", BY_HAND.values(), ids=BY_HAND)
def test_every_opcode_that_names_or_calls_is_refused(data):
    with pytest.raises(RequestError, match="refused, and nothing is run"):
        read_plain_pickle(data)


def test_no_opcode_but_these_is_carried_out():
    harmless = {"PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE"}
    harmless |= {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"}
    harmless |= {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
    harmless |= {"EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS"}
    harmless |= {"EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
    harmless |= {"MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"}
    argument = struct.pack("<Q", 1) + b"1\n1\n" + bytes(16)
    for opcode in pickletools.opcodes:
        if opcode.name not in harmless:
            with pytest.raises(RequestError):
                read_plain_pickle(b"\x80\x04" + opcode.code.encode("latin-1") + argument + b".")


# ---- growth


def doubled(times, begin=b"]\x94", wrap=b"\x94"):
    """A list whose entries are one and the same list twice, and so on: 2 ** times in all."""
    data = b"\x80\x04" + begin
    for number in range(times):
        data += b"](h" + bytes([number]) + b"h" + bytes([number]) + b"e" + wrap
    return data + b"."


LARGE = {
    "lists doubled": doubled(40),
    "a list in itself": b"\x80\x04]\x94h\x00a.",
    "tuples doubled": b"\x80\x04)\x94" + b"".join(b"h%ch%c\x86\x94" % (n, n) for n in range(40)) + b".",
    "dicts doubled": b"\x80\x04}\x94" + b"".join(b"}(K\x01h%cK\x02h%cu\x94" % (n, n) for n in range(40)) + b".",
    "DUP": b"\x80\x02]" + b"2" * 1000 + b".",
    "a text again and again": b"\x80\x04](X"
    + struct.pack("<I", 1_000_000)
    + b"x" * 1_000_000
    + b"\x94"
    + b"h\x00" * 40_000
    + b"e.",
    "a memo that is not there": b"\x80\x02j\xff\xff\xff\x7f.",
    "a large number": b"\x80\x02\x8b" + struct.pack("<i", 1_000_000) + b"\x7f" * 1_000_000 + b".",
    "a number of 65 bits": pickle.dumps(2**64),
    "a negative length": b"\x80\x02\x8b\xff\xff\xff\xff.",
    "a text that does not come": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x.",
    "depth": pickle.dumps(PLAIN[0], 4)[:2] + b"]" * 30_000 + b"a" * 29_999 + b".",
    "depth of tuples": b"\x80\x02)" + b"\x85" * 90_000 + b".",
    "many parts": b"\x80\x02](" + b"N" * 200_000 + b"e.",
    "many keys": pickle.dumps({number << 40: 0 for number in range(5000)}),
    "a frame of any length": b"\x80\x04\x95" + b"\xff" * 8,
}


@pytest.mark.parametrize("data", LARGE.values(), ids=LARGE)
def test_a_small_file_can_make_nothing_large(data):
    tracemalloc.start()
    try:
        with pytest.raises(RequestError) as caught:
            read_plain_pickle(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 25_000_000
    assert len(str(caught.value)) < 200


def test_an_index_of_the_memo_makes_no_room():
    data = b"\x80\x02Nr\xff\xff\xff\x7f."  # Python's own unpickler takes 16 GB for it
    tracemalloc.start()
    try:
        assert read_plain_pickle(data) is None
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


BROKEN = {
    "nothing": b"",
    "no pickle": b"hello",
    "no end": b"\x80\x04]",
    "no value": b"\x80\x04.",
    "two values": b"\x80\x04NN.",
    "a mark alone": b"\x80\x04(.",
    "items without a list": b"\x80\x04(NNe.",
    "items in a dict": b"\x80\x04}(NNe.",
    "a value without its key": b"\x80\x04}(Nu.",
    "a key that is a list": b"\x80\x04}(]Nu.",
    "a tuple of what is not there": b"\x80\x04N\x86.",
    "a tuple of a mark": b"\x80\x04(N\x86.",
    "kept, but nothing is there": b"\x80\x04\x94N.",
    "more after the end": b"\x80\x04N.N.",
    "a text that is not UTF-8": b"\x80\x04\x8c\x01\xff.",
    "protocol 0": pickle.dumps(["a"], 0),
    "protocol 1": b"\x80\x01N.",
    "protocol 9": b"\x80\x09N.",
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_a_damaged_pickle_is_refused_in_one_line(data):
    with pytest.raises(RequestError) as caught:
        read_plain_pickle(data)
    assert "\n" not in str(caught.value)


def test_what_is_cut_or_changed_anywhere_is_read_or_refused():
    data = pickle.dumps(PLAIN[1])
    for place in range(len(data)):
        for changed in (data[:place], data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]):
            with contextlib.suppress(RequestError):
                read_plain_pickle(changed)
