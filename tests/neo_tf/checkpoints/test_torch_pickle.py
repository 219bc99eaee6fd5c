"""pytorch_model.bin, read without PyTorch; PyTorch itself writes the files, and judges the values."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from neo_tf.checkpoints.torch_pickle import read_torch_file
from neo_tf.errors import CheckpointError


def test_every_dtype_stride_and_offset_reads_as_torch_has_it(tmp_path):
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    values = {
        "float32": base,
        "float16": base.half() / 7,
        "bfloat16": base.bfloat16() / 7,
        "transposed": base.T,
        "slice": base[1:3, 2:5],
        "shared": base[2],
        "scalar": torch.tensor(-1e9),
        "mask": torch.ones(1, 1, 3, 3, dtype=torch.bool).tril(),
        "int64": torch.tensor([2**40, -1]),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(base * 2),
    }
    torch.save(values, tmp_path / "x.bin")
    tensors = read_torch_file(tmp_path / "x.bin")
    assert list(tensors) == list(values)
    for name, value in values.items():
        got = tensors[name].read()
        assert got.shape == tensors[name].shape == tuple(value.shape)
        assert got.dtype == tensors[name].dtype
        assert got.dtype.name == str(value.dtype).removeprefix("torch.")
        want = value.detach()
        np.testing.assert_array_equal(got.astype(np.float64), want.to(torch.float64).numpy())


def test_a_state_dict_inside_a_training_checkpoint_is_found(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(2)}}, tmp_path / "x.bin")
    assert list(read_torch_file(tmp_path / "x.bin")) == ["a"]


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (os.system, ("touch {mark}",), "system"),
        (eval, ("open('{mark}', 'w')",), "eval"),
        (getattr, (torch, "load"), "getattr"),
        (torch.load, ("{mark}",), "load"),
    ],
)
def test_a_call_is_refused_by_name_and_does_not_happen(tmp_path, function, arguments, named):
    mark = tmp_path / "mark"
    filled = [a.format(mark=mark) if isinstance(a, str) else a for a in arguments if a is not torch]
    torch.save({"a": torch.ones(2), "b": Call(function, *filled)}, tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match=rf"asks for [\w.]+\.{named}, which is no part of a tensor"):
        read_torch_file(tmp_path / "x.bin")
    assert not mark.exists()


def test_a_global_of_torch_that_builds_no_tensor_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.bin", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02ctorch.hub\nload\n.")
    with pytest.raises(CheckpointError, match=r"torch\.hub\.load"):
        read_torch_file(tmp_path / "x.bin")


def test_values_that_are_no_tensors_are_refused(tmp_path):
    torch.save({"a": torch.ones(2), "lr": 0.1}, tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match="'lr' is a float"):
        read_torch_file(tmp_path / "x.bin")


def test_a_file_cut_short_is_refused(tmp_path):
    torch.save({"a": torch.ones(1000)}, tmp_path / "x.bin")
    whole = (tmp_path / "x.bin").read_bytes()
    for size in (10, len(whole) // 2, len(whole) - 10):
        (tmp_path / "x.bin").write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="cut short or damaged"):
            read_torch_file(tmp_path / "x.bin")


def test_a_flipped_byte_is_noticed_when_the_tensor_is_read(tmp_path):
    torch.save({"a": torch.full((1000,), 3.0)}, tmp_path / "x.bin")
    whole = bytearray((tmp_path / "x.bin").read_bytes())
    whole[whole.index(torch.full((8,), 3.0).numpy().tobytes()) + 100] ^= 1
    (tmp_path / "x.bin").write_bytes(whole)
    with pytest.raises(CheckpointError, match="a cannot be read"):
        read_torch_file(tmp_path / "x.bin")["a"].read()


def test_a_tensor_beyond_its_storage_is_refused(tmp_path):
    torch.save({"a": torch.ones(8)}, tmp_path / "x.bin")
    with zipfile.ZipFile(tmp_path / "x.bin") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    storage = next(name for name in entries if "/data/" in name)
    entries[storage] = entries[storage][:16]
    with zipfile.ZipFile(tmp_path / "x.bin", "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(CheckpointError, match="beyond its storage"):
        read_torch_file(tmp_path / "x.bin")["a"].read()


def test_other_formats_are_told_apart(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match=r"not a file that torch\.save wrote"):
        read_torch_file(tmp_path / "x.bin")
    torch.save({"a": torch.ones(2)}, tmp_path / "x.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="from before 2020"):
        read_torch_file(tmp_path / "x.bin")
    (tmp_path / "x.bin").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError):
        read_torch_file(tmp_path / "x.bin")


def crafted(tmp_path, offset=0, shape=(2,), strides=(1,), key="0", state=None):
    """A .bin whose pickle rebuilds a tensor from these numbers over a storage of 16 floats."""
    storage = ("storage", torch.FloatStorage, key, "cpu", 16)

    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            return storage if item == "STORAGE" else None

    class Tensor:
        def __reduce__(self):
            return (torch._utils._rebuild_tensor_v2, ("STORAGE", offset, shape, strides, False, {}), state)

    out = io.BytesIO()
    Pickler(out, 2).dump({"a": Tensor()})
    with zipfile.ZipFile(tmp_path / "x.bin", "w") as archive:
        archive.writestr("x/data.pkl", out.getvalue())
        archive.writestr("x/data/0", np.arange(16, dtype=np.float32).tobytes())
    return tmp_path / "x.bin"


def test_a_crafted_file_reads_where_its_numbers_are_sound(tmp_path):
    assert read_torch_file(crafted(tmp_path, offset=3, shape=(2, 2), strides=(4, 1)))["a"].read().tolist() == [
        [3.0, 4.0],
        [7.0, 8.0],
    ]


@pytest.mark.parametrize(
    "numbers",
    [
        {"shape": (-1,)},
        {"shape": ("2",)},
        {"offset": 1.5},
        {"offset": "0"},
        {"strides": (1, 1)},
        {"strides": (-1,)},
        {"shape": (2**30, 2**30), "strides": (0, 0)},
        {"key": ["0"]},
        {"state": {"shape": 7}},
        {"state": (None, {"shape": (7,)})},
    ],
)
def test_a_crafted_file_that_is_unsound_is_refused(tmp_path, numbers):
    with pytest.raises(CheckpointError):
        read_torch_file(crafted(tmp_path, **numbers))["a"].read()
