import os
import re
import resource
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest
from checkpoint_helpers import FORMATS, assert_same_bits, check_error_line, command, files_below, read_all
from conftest import GOLDEN, TINY_PYTHON

import neo_tf
from neo_tf.atomic import new_folder
from neo_tf.errors import CheckpointError, OutputError
from neo_tf.sizes import readable_bytes

SOURCE = GOLDEN / "act-relu"
TARGETS = (*FORMATS, "onnx")


def write(src, dst, to, **options):
    """Converts or exports."""
    if to == "onnx":
        return neo_tf.export_onnx(src, dst, **options)
    return neo_tf.convert(src, dst, to, **options)


@pytest.fixture(scope="module")
def light_source(tmp_path_factory):
    """The demo model as safetensors, so that a child process need not load TensorFlow to read it."""
    folder = tmp_path_factory.mktemp("source") / "huggingface"
    neo_tf.convert(TINY_PYTHON, folder, "huggingface")
    return folder


# ---- whole, or not at all


def test_folder_appears_only_at_the_end(tmp_path):
    dst = tmp_path / "deep" / "dst"
    with new_folder(dst) as partial:
        (partial / "config.json").write_text("{}")
        assert not dst.exists() and partial.parent == dst.parent and partial.name.startswith(".")
    assert files_below(tmp_path) == ["deep", "deep/dst", "deep/dst/config.json"]
    assert dst.stat().st_mode & 0o777 == 0o777 & ~current_umask()


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, MemoryError, CheckpointError])
@pytest.mark.parametrize("to", TARGETS)
def test_nothing_is_left_when_writing_fails(tmp_path, to, error):
    def fail(size, name):
        raise error("in the middle")

    with pytest.raises(error, match="in the middle"):
        write(SOURCE, tmp_path / "dst", to, progress=fail)
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("to", TARGETS)
def test_forced_writing_that_fails_leaves_the_old_folder(tmp_path, to):
    write(SOURCE, tmp_path / "dst", to)
    before = {path.name: path.read_bytes() for path in (tmp_path / "dst").iterdir()}

    def fail(size, name):
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="No space left on device"):
        write(TINY_PYTHON, tmp_path / "dst", to, force=True, progress=fail)
    assert {path.name: path.read_bytes() for path in (tmp_path / "dst").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["dst"]


# ---- what is there already


@pytest.mark.parametrize("to", TARGETS)
def test_folder_that_is_not_empty_is_refused_unless_forced(tmp_path, to):
    write(TINY_PYTHON, tmp_path / "dst", "keras")
    with pytest.raises(OutputError, match=r"dst: exists and is not empty \(--force"):
        write(SOURCE, tmp_path / "dst", to)
    assert neo_tf.open_checkpoint(tmp_path / "dst").config.n_embd == 128
    write(SOURCE, tmp_path / "dst", to, force=True)
    assert "tokenizer.json" not in files_below(tmp_path / "dst")  # of the old model, which the new one lacks
    assert [path.name for path in tmp_path.iterdir()] == ["dst"]


@pytest.mark.parametrize("foreign", ["thesis.docx", "train.py", "pytorch_model.bin", ".git/HEAD", "keras/config.json"])
def test_force_never_replaces_what_neo_tf_did_not_write(tmp_path, foreign):
    write(SOURCE, tmp_path / "dst", "keras")
    path = tmp_path / "dst" / foreign
    path.parent.mkdir(exist_ok=True)
    path.write_text("precious")
    with pytest.raises(OutputError, match=foreign.split("/")[0]):
        write(SOURCE, tmp_path / "dst", "keras", force=True)
    assert path.read_text() == "precious"


def test_empty_folder_is_used_and_a_file_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    write(SOURCE, tmp_path / "empty", "keras")
    assert neo_tf.open_checkpoint(tmp_path / "empty").config.n_layer == 2
    (tmp_path / "file").write_text("precious")
    for dst in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="file"):
            write(SOURCE, dst, "keras", force=True)
    assert (tmp_path / "file").read_text() == "precious"


def test_current_folder_is_refused(tmp_path, monkeypatch):
    """It could only be replaced under the feet of the shell that stands in it."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(OutputError, match="current folder"):
        write(SOURCE, ".", "keras")
    write(SOURCE, "inside", "keras")
    assert files_below(tmp_path / "here" / "inside") == ["config.json", "model.weights.h5"]


def test_link_to_a_folder_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    write(SOURCE, tmp_path / "link", "keras")
    assert (tmp_path / "link").is_symlink()
    assert files_below(tmp_path / "disk") == ["config.json", "model.weights.h5"]


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("format", FORMATS)
def test_source_is_never_its_own_destination(tmp_path, monkeypatch, format, to):
    write(TINY_PYTHON, tmp_path / "model", format)
    expected = read_all(neo_tf.open_checkpoint(tmp_path / "model"))
    before = files_below(tmp_path / "model")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    prefix = tmp_path / "model" / "model.ckpt-7000"
    for src in (tmp_path / "model", *([prefix] if format == "mesh-tf" else [])):
        for dst in (tmp_path / "model", tmp_path / "link", tmp_path / "model" / ".." / "model"):
            with pytest.raises(OutputError, match="source"):
                write(src, dst, to, force=True)
    assert files_below(tmp_path / "model") == before
    assert_same_bits(read_all(neo_tf.open_checkpoint(tmp_path / "model")), expected)


# ---- a disk that is full


def test_too_little_free_space_is_told_before_anything_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 5000, 5000))
    for to in TARGETS:
        with pytest.raises(OutputError) as refused:
            write(SOURCE, tmp_path / "dst", to)
        found = re.fullmatch(r"(.+): needs (\d+\.\d) kB, but only 5\.0 kB are free", str(refused.value))
        assert found and found[1] == str(tmp_path / "dst")
        assert 142.1 <= float(found[2]) < 250  # the weights; the data file of the graphs has gaps
    assert files_below(tmp_path) == []


WITH_LIMIT = """
import resource, sys
import neo_tf.cli
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.argv = ["neo-tf", *sys.argv[2:]]
neo_tf.cli.main()
"""


def check_write_that_fails(run, tmp_path, src, to, limit):
    """A file that may not grow past `limit` fails at the same calls as one on a full disk.

    Args:
        run: A function from the limit and the command's arguments to its status, standard output and standard error.
    """
    dst = tmp_path / "dst"
    arguments = ["export", src, dst] if to == "onnx" else ["convert", src, dst, "--to", to]
    status, out, error = run(limit, *arguments)
    assert (status, out) == (1, ""), error
    check_error_line(error, f"{dst}: cannot be written", "File too large")
    assert "{{" not in error  # TensorFlow's own names of its operations say nothing to a user
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("limit", [100, 200_000, 3_000_000, 6_000_000])
@pytest.mark.parametrize("to", TARGETS)
def test_write_that_fails_is_one_line_and_leaves_nothing(tmp_path, light_source, capsys, to, limit):
    def run(limit, *arguments):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            status = command(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        return status, *capsys.readouterr()

    check_write_that_fails(run, tmp_path, light_source, to, limit)


@pytest.mark.parametrize(
    ("to", "limit"), [("keras", 3_000_000), ("huggingface", 6_000_000), ("onnx", 100), ("mesh-tf", 3_000_000)]
)
def test_a_process_whose_write_fails_says_no_more_than_the_one_line(tmp_path, light_source, to, limit):
    """Libraries in C++ log past Python: only a fresh process shows whether they are kept quiet."""

    def run(*arguments):
        done = run_child(WITH_LIMIT, *arguments)
        return done.returncode, done.stdout, done.stderr

    check_write_that_fails(run, tmp_path, light_source, to, limit)


def run_child(code, *arguments):
    child = [sys.executable, "-c", code, *map(str, arguments)]
    # conftest.py quietens TensorFlow by the environment, which a user has not done.
    environment = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
    options = {"capture_output": True, "text": True, "timeout": 120, "cwd": GOLDEN.parents[2], "env": environment}
    return subprocess.run(child, **options)


# ---- kill -9

WRITES_UNTIL_KILLED = """
import sys, time
import neo_tf

src, dst, to, force = sys.argv[1:]

def progress(size, name):
    print("writing", flush=True)
    time.sleep(120)

if to == "onnx":
    neo_tf.export_onnx(src, dst, force=bool(force), progress=progress)
else:
    neo_tf.convert(src, dst, to, force=bool(force), progress=progress)
"""


def kill_while_writing(src, dst, to, force=False):
    """Starts a process that writes dst, and kills it when the first tensor is on its way."""
    code = [sys.executable, "-c", WRITES_UNTIL_KILLED, str(src), str(dst), to, "force" if force else ""]
    child = subprocess.Popen(code, stdout=subprocess.PIPE, cwd=GOLDEN.parents[2])
    try:
        assert child.stdout.readline() == b"writing\n"
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


@pytest.mark.parametrize("to", TARGETS)
def test_killed_process_leaves_no_folder_and_the_next_one_cleans_up(tmp_path, light_source, to):
    kill_while_writing(light_source, tmp_path / "dst", to)
    (leftover,) = tmp_path.iterdir()  # or the kill came too early to show anything
    assert leftover.name.startswith(".dst.partial-")
    write(light_source, tmp_path / "dst", to)
    assert [path.name for path in tmp_path.iterdir()] == ["dst"]
    if to != "onnx":
        assert_same_bits(
            read_all(neo_tf.open_checkpoint(tmp_path / "dst")), read_all(neo_tf.open_checkpoint(light_source))
        )


def test_killed_process_that_was_replacing_a_folder_leaves_the_old_one(tmp_path, light_source):
    write(SOURCE, tmp_path / "dst", "keras")
    kill_while_writing(light_source, tmp_path / "dst", "huggingface", force=True)
    assert neo_tf.open_checkpoint(tmp_path / "dst").config.n_layer == 2
    write(light_source, tmp_path / "dst", "huggingface", force=True)
    assert neo_tf.open_checkpoint(tmp_path / "dst").config.n_layer == 6
    assert [path.name for path in tmp_path.iterdir()] == ["dst"]


def test_process_killed_between_the_two_renames_loses_nothing(tmp_path):
    # What such a process leaves: the old folder under a name of its own, and the new one, both hidden.
    write(SOURCE, tmp_path / "dst", "keras")
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    (tmp_path / "dst").rename(tmp_path / f".dst.partial-{child.pid}-abc-old")
    shutil.copytree(SOURCE, tmp_path / f".dst.partial-{child.pid}-abc")
    # A next run that itself fails.
    with pytest.raises(OutputError, match="needs"), new_folder(tmp_path / "dst", needs=10**18):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["dst"]
    assert neo_tf.open_checkpoint(tmp_path / "dst").config.n_layer == 2


def test_folder_that_a_live_process_is_writing_is_left_alone(tmp_path):
    with pytest.raises(OutputError, match="not empty"), new_folder(tmp_path / "dst") as slower:
        (slower / "config.json").write_text("slower")
        with new_folder(tmp_path / "dst") as faster:
            (faster / "config.json").write_text("faster")
        assert (slower / "config.json").read_text() == "slower"
    assert (tmp_path / "dst" / "config.json").read_text() == "faster"
    assert [path.name for path in tmp_path.iterdir()] == ["dst"]


@pytest.mark.parametrize("force", [False, True])
def test_files_that_come_while_it_is_written_are_not_replaced(tmp_path, force):
    with pytest.raises(OutputError), new_folder(tmp_path / "dst", force=force) as folder:
        (folder / "config.json").write_text("{}")
        (tmp_path / "dst").mkdir()
        (tmp_path / "dst" / "thesis.txt").write_text("years of work")
    assert files_below(tmp_path / "dst") == ["thesis.txt"]


@pytest.mark.parametrize("files", [["config.json"], ["model.ckpt-1.meta", "model.ckpt-1.index"], ["README.md"]])
def test_force_replaces_nothing_that_neo_tf_did_not_write(tmp_path, files):
    for name in files:
        (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match="neo-tf"), new_folder(tmp_path, force=True):
        pass
    assert files_below(tmp_path) == sorted(files)


@pytest.mark.parametrize("name", ["gpt neo [2.7B]", "ünï*"])
def test_leftovers_of_any_name_are_found(tmp_path, name):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    with new_folder(tmp_path / name) as partial:
        dead = partial.name.replace(f"-{os.getpid()}-", f"-{child.pid}-")
        shutil.copytree(partial, tmp_path / dead)
        assert dead != partial.name
    shutil.rmtree(tmp_path / name)
    with new_folder(tmp_path / name):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_leftovers_of_other_folders_are_left_alone(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    other = tmp_path / f".dst2.partial-{child.pid}-abc"
    other.mkdir()
    with new_folder(tmp_path / "dst"):
        pass
    assert other.exists()


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_234_567, "1.2 MB"), (10_600_000_000, "10.6 GB")],
)
def test_sizes_are_readable(size, text):
    assert readable_bytes(size) == text
