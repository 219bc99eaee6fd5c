"""What the tests of neo_tf share: copies of checkpoints, comparisons, and the command run in this process."""

import json
import shutil
import sys

import numpy as np
import pytest

import neo_tf.cli

FORMATS = ("keras", "huggingface", "mesh-tf")


def copy_checkpoint(src, dst):
    """Copies a golden checkpoint's own files, as the original code left them: no reference, no report."""
    ignore = shutil.ignore_patterns("reference.npz", "report.json", "README.md")
    return shutil.copytree(src, dst, ignore=ignore)


def edit_json(path, **changes):
    """Changes keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flip_byte(path, offset):
    """Inverts one byte of a file."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 0xFF
    path.write_bytes(data)


def cut_short(path, size):
    """Keeps the first `size` bytes of a file; a negative size counts from its end."""
    path.write_bytes(path.read_bytes()[:size])


def read_all(checkpoint):
    """All tensors of a checkpoint, read."""
    return {name: checkpoint.read(name) for name in checkpoint.tensors}


def assert_same_bits(tensors, expected):
    """The same names, shapes, types and bits."""
    assert set(tensors) == set(expected)
    for name, tensor in tensors.items():
        assert tensor.dtype == expected[name].dtype, name
        assert tensor.shape == expected[name].shape, name
        assert np.ascontiguousarray(tensor).tobytes() == np.ascontiguousarray(expected[name]).tobytes(), name


def worst(got, expected):
    """The largest absolute difference; a NaN is infinitely large."""
    difference = np.abs(np.asarray(got, np.float64) - np.asarray(expected, np.float64))
    return float(np.where(np.isnan(difference), np.inf, difference).max())


def command(*arguments):
    """Runs `neo-tf ARGUMENTS` in this process; returns its exit status. What it should have caught escapes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["neo-tf", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            neo_tf.cli.main()
    return ended.value.code or 0


def check_error_line(stderr, *names):
    """Standard error holds one line, `error: …`, which names what is wrong and where."""
    lines = stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), stderr
    for name in names:
        assert str(name) in lines[0]


def files_below(folder):
    """Everything in a folder, hidden files too; nothing where there is no folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []
