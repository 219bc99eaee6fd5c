"""Texts to records: the original's own files judge its rules; nothing is lost by ours, whatever interrupts the work."""

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from checkpoint_helpers import files_below
from conftest import FIXTURES, TINY_PYTHON
from conftest import GOLDEN as GOLDEN_MODELS

from neo_tf.errors import DataError, OutputError, RequestError
from neo_tf.file_names import TOKENIZER_FILE
from neo_tf.training.data.cleaning import Cleaning
from neo_tf.training.data.encoding import HowToEncode, TextEncoder
from neo_tf.training.data.find_texts import find_texts, find_texts_as_the_original
from neo_tf.training.data.make import make_tfrecords
from neo_tf.training.data.output import RecordFiles, partial_of
from neo_tf.training.data.packing import Stream
from neo_tf.training.data.recipe import DOCUMENTS, ORIGINAL, Recipe
from neo_tf.training.data.tfrecord import read_token_ids

pytest.importorskip("google_crc32c", reason="the tests of training data need the extra data")
pytest.importorskip("zstandard", reason="the tests of training data need the extra data")
pytest.importorskip("ftfy", reason="the tests of training data need the extra ftfy")

GOLDEN = FIXTURES / "training-data" / "create-tfrecords"
TOKENIZER = {TOKENIZER_FILE: (TINY_PYTHON / "byte-level-bpe.tokenizer.json").read_bytes()}
SMALL = {TOKENIZER_FILE: (GOLDEN_MODELS / "tokenizer.json").read_bytes()}  # for many runs
BOTH = Cleaning(ftfy=True, wikitext=True)  # the original's default
# The file system's order, in which the original read them.
TXT = [GOLDEN / "in_txt" / name for name in ("d1.txt", "d2.txt", "d3.txt", "d4.txt", "d0.txt")]
RUNS = {
    "txt": (TXT, BOTH, 1),
    "txt-flags": (TXT, Cleaning(), 1),
    "txt-mp": (TXT, BOTH, 2),
    "zst": ([GOLDEN / "in_zst"], BOTH, 1),
    "zst-flags": ([GOLDEN / "in_zst"], Cleaning(), 1),
    "tgz": ([GOLDEN / "in_tgz"], BOTH, 1),
}
SEPARATOR = 0


def records(folder):
    """{name: content} of the tfrecord files of a folder."""
    return {path.name: path.read_bytes() for path in folder.glob("*.tfrecords")}


def original(cleaning=BOTH, processes=1, files_per=8):
    return Recipe(64, "n", files_per, ORIGINAL, SEPARATOR, False, 20, processes, cleaning)


def tokens_of(text):
    (ids,) = TextEncoder(HowToEncode(TOKENIZER[TOKENIZER_FILE].decode(), Cleaning()))([text])
    return ids.tolist()


def token_stream(folder):
    """The token ids of all records, in order."""
    paths = sorted(folder.glob("*.tfrecords"), key=lambda path: int(path.name.split("_")[1]))
    return [ids.tolist() for path in paths for ids in read_token_ids(path)]


@pytest.fixture
def texts(tmp_path):
    """Files of several kinds, one after the other of which some are empty or end in the middle of a record."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in TXT:
        (folder / name.name).write_bytes(name.read_bytes())
    (folder / "empty.txt").write_text("")
    lines = [json.dumps({"text": f"line {number} " + "word " * (number % 50)}) for number in range(120)]
    (folder / "lines.jsonl").write_text("\n".join(lines))
    return folder


# ---- the original's rules


@pytest.mark.parametrize("run", RUNS)
def test_the_originals_files_are_made_byte_for_byte(tmp_path, run):
    inputs, cleaning, processes = RUNS[run]
    files = find_texts_as_the_original(inputs)
    totals = make_tfrecords(files, tmp_path / "out", TOKENIZER, original(cleaning, processes))
    assert records(tmp_path / "out") == records(GOLDEN / run)
    assert totals.lost > 0
    written = sum(len(ids) for path in (tmp_path / "out").glob("*.tfrecords") for ids in read_token_ids(path))
    assert totals.tokens + totals.documents == written + totals.lost


def test_no_process_of_the_original_replaces_anothers_file(tmp_path):
    (tmp_path / "a.txt").write_text("x = 1\n" * 400)
    (tmp_path / "b.txt").write_text("y = 2\n" * 400)
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    make_tfrecords(files, tmp_path / "out", TOKENIZER, original(processes=2, files_per=1000))
    with_process, plain = sorted(records(tmp_path / "out"))
    assert with_process == plain.replace("n_0_", "n_0_1_")  # the second one's has its process in the name


# ---- our own


def test_nothing_is_lost_and_the_order_is_that_of_the_files(tmp_path, texts):
    files = find_texts([texts])
    totals = make_tfrecords(files, tmp_path / "out", TOKENIZER, Recipe(64, files_per=7))
    expected = []
    for path in files:
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [None]
        for line in lines:
            text = path.read_text() if line is None else json.loads(line)["text"]
            expected += [*tokens_of(text), SEPARATOR] if text else []
    rows = token_stream(tmp_path / "out")
    assert {len(row) for row in rows} == {65}
    found = [token for row in rows for token in row]
    assert found[: len(expected)] == expected
    assert {*found[len(expected) :]} <= {SEPARATOR} and len(found) - len(expected) < 65
    assert totals.lost == 0 and totals.records == len(rows)
    counts = {name: int(name.removesuffix(".tfrecords").rsplit("_", 1)[1]) for name in records(tmp_path / "out")}
    assert all(count == len([*read_token_ids(tmp_path / "out" / name)]) for name, count in counts.items())
    assert sorted(counts.values())[1:] == [7] * (len(counts) - 1)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("lengths", [[10], [3, 4], [1, 1, 1, 1, 1, 1], [4], [9, 0, 9], [40], [5, 5, 5]])
def test_a_stream_holds_each_token_once_and_overlapping_learns_each(lengths, overlap):
    packer = Stream(5, 0, overlap)
    start, rows, stream = 1, [], []
    for length in lengths:
        ids = np.arange(start, start + length)
        start += length
        stream += [*ids, 0] if length else []
        rows += packer.add(ids, True)
    rows += packer.finish()
    assert {len(row) for row in rows} == {5}
    found = [*rows[0]] + [token for row in rows[1:] for token in row[1 if overlap else 0 :]]
    assert found[: len(stream)] == stream and not any(found[len(stream) :])
    assert len(found) - len(stream) < (4 if overlap else 5)
    if overlap:
        assert all(before[-1] == after[0] for before, after in itertools.pairwise(rows))


def test_whole_documents_are_records_without_separators(tmp_path, texts):
    recipe = Recipe(packing=DOCUMENTS, files_per=1000)
    make_tfrecords([texts / "d1.txt", texts / "empty.txt", texts / "d3.txt"], tmp_path / "out", TOKENIZER, recipe)
    assert token_stream(tmp_path / "out") == [tokens_of((texts / name).read_text()) for name in ("d1.txt", "d3.txt")]


@pytest.mark.parametrize("is_split", [False, True])
def test_special_tokens_in_a_text_are_read_as_the_tokenizers_files_say(tmp_path, is_split):
    (tmp_path / "x.txt").write_text("a<|endoftext|>b")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "split_special_tokens": is_split}
    files = TOKENIZER | {"tokenizer_config.json": json.dumps(settings).encode()}
    make_tfrecords([tmp_path / "x.txt"], tmp_path / "out", files, Recipe(packing=DOCUMENTS))
    ((first, *ids, last),) = token_stream(tmp_path / "out")
    assert [first, last] == [*tokens_of("a"), *tokens_of("b")] and (ids == [0]) is not is_split


def test_the_folder_says_what_the_original_and_the_commands_need(tmp_path, texts):
    make_tfrecords(find_texts([texts]), tmp_path / "out", TOKENIZER, Recipe(64))
    dataset = json.loads((tmp_path / "out/dataset.json").read_text())
    assert dataset["path"] == f"{tmp_path}/out/data_*.tfrecords" and dataset["tokenizer_path"].endswith(
        "tokenizer.json"
    )
    assert (dataset["n_vocab"], dataset["eos_id"], dataset["padding_id"]) == (2048, 0, 1)
    assert (tmp_path / "out/tokenizer.json").read_bytes() == TOKENIZER[TOKENIZER_FILE]


# ---- interruptions


class _Stopped(BaseException):
    pass


@pytest.mark.parametrize("packing", ["stream", ORIGINAL])
def test_a_job_that_stops_anywhere_goes_on_to_the_same_files(tmp_path, texts, monkeypatch, packing):
    monkeypatch.setattr("neo_tf.training.data.text_batches._TEXTS", 9)  # many places to stop at
    processes = 2 if packing == ORIGINAL else 1
    recipe = Recipe(64, "n", 6, packing, 0, original_processes=processes, minimum_size=20)
    files = find_texts([texts])
    make_tfrecords(files, tmp_path / "straight", SMALL, recipe)
    expected = records(tmp_path / "straight")
    methods = {"write": RecordFiles.write, "publish": RecordFiles.publish}
    left = 0

    def stopping(name):
        def method(*arguments):
            nonlocal left
            left -= 1
            if left < 0:
                raise _Stopped
            methods[name](*arguments)

        return method

    for name in methods:
        monkeypatch.setattr(RecordFiles, name, stopping(name))
    out = tmp_path / "out"
    stops = 0
    while not out.exists():
        left = 11 + 9 * stops  # the calls that a run makes before it is stopped
        try:
            totals = make_tfrecords(files, out, SMALL, recipe, noted_every=0)
        except _Stopped:
            stops += 1
    assert stops > 3 and records(out) == expected
    assert vars(totals) == json.loads((tmp_path / "straight/made.json").read_text())["totals"]
    assert files_below(out) == files_below(tmp_path / "straight") and not partial_of(out).exists()


def test_a_job_that_is_killed_goes_on_to_the_same_files(tmp_path, texts):
    code = """
import sys
from pathlib import Path
from neo_tf.training.data import make, text_batches
text_batches._TEXTS = 3
if __name__ == "__main__":
    from neo_tf.file_names import TOKENIZER_FILE
    from neo_tf.training.data.recipe import Recipe
    files = sorted(Path(sys.argv[1]).iterdir())
    tokenizer = {TOKENIZER_FILE: Path(sys.argv[3]).read_bytes()}
    import time
    slow = lambda amount, what="": time.sleep(0.05)
    recipe = Recipe(64, files_per=6, separator=0)
    make.make_tfrecords(files, sys.argv[2], tokenizer, recipe, noted_every=0, progress=slow)
"""
    script = tmp_path / "job.py"
    script.write_text(code)
    out = tmp_path / "out"
    arguments = [sys.executable, script, texts, out, GOLDEN_MODELS / "tokenizer.json"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[4])}
    job = subprocess.Popen([*map(str, arguments)], env=environment)
    deadline = time.monotonic() + 60
    while not (partial_of(out) / "data_0_6.tfrecords").exists() and time.monotonic() < deadline:
        assert job.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    job.wait()
    assert partial_of(out).exists() and not out.exists()
    files = sorted(texts.iterdir())
    make_tfrecords(files, out, SMALL, Recipe(64, files_per=6, separator=0))
    make_tfrecords(files, tmp_path / "straight", SMALL, Recipe(64, files_per=6, separator=0))
    assert records(out) == records(tmp_path / "straight")


def test_several_processes_make_the_same_files(tmp_path, texts, monkeypatch):
    monkeypatch.setattr("neo_tf.training.data.text_batches._TEXTS", 9)
    files = find_texts([texts])
    for processes in (1, 2):
        make_tfrecords(
            files, tmp_path / f"out{processes}", SMALL, Recipe(64, files_per=6, separator=0), processes=processes
        )
    assert records(tmp_path / "out1") == records(tmp_path / "out2")


def test_a_full_disk_is_told_and_the_job_goes_on_later(tmp_path, texts, monkeypatch):
    monkeypatch.setattr("neo_tf.training.data.text_batches._TEXTS", 9)
    files = find_texts([texts])
    sync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 60:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"out: cannot be written: No space left on device"):
        make_tfrecords(files, tmp_path / "out", SMALL, Recipe(64, files_per=6, separator=0), noted_every=0)
    monkeypatch.setattr(os, "fsync", sync)
    assert not (tmp_path / "out").exists() and partial_of(tmp_path / "out").exists()
    make_tfrecords(files, tmp_path / "out", SMALL, Recipe(64, files_per=6, separator=0))
    make_tfrecords(files, tmp_path / "straight", SMALL, Recipe(64, files_per=6, separator=0))
    assert records(tmp_path / "out") == records(tmp_path / "straight")


# ---- what is refused


def test_another_job_in_the_same_place_is_refused_until_it_is_forced(tmp_path, texts):
    files = find_texts([texts])
    out = tmp_path / "out"
    make_tfrecords(files, out, TOKENIZER, Recipe(64))
    before = records(out)
    made = os.stat(out / "made.json").st_mtime_ns
    make_tfrecords(files, out, TOKENIZER, Recipe(64))  # the same again: nothing is done
    assert os.stat(out / "made.json").st_mtime_ns == made
    with pytest.raises(OutputError, match="exists already"):
        make_tfrecords(files, out, TOKENIZER, Recipe(32))
    (texts / "d0.txt").write_text("changed")
    with pytest.raises(OutputError, match="exists already"):
        make_tfrecords(files, out, TOKENIZER, Recipe(64))
    make_tfrecords(files, out, TOKENIZER, Recipe(64), force=True)
    assert records(out) != before
    (out / "mine.txt").write_text("x")
    with pytest.raises(OutputError, match=r"'mine\.txt', which this command did not write"):
        make_tfrecords(files, out, TOKENIZER, Recipe(32), force=True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "x_0_1.tfrecords").write_bytes(b"")
    with pytest.raises(OutputError, match="was not made by this command"):
        make_tfrecords(files, other, TOKENIZER, Recipe(64), force=True)


def test_an_unfinished_job_with_other_settings_is_refused(tmp_path, texts, monkeypatch):
    monkeypatch.setattr("neo_tf.training.data.text_batches._TEXTS", 9)
    files = find_texts([texts])
    (texts / "lines.jsonl").write_text((texts / "lines.jsonl").read_text() + "\nno json")
    with pytest.raises(DataError, match=r"lines\.jsonl:121: not JSON.*--skip-errors"):
        make_tfrecords(files, tmp_path / "out", TOKENIZER, Recipe(64), noted_every=0)
    with pytest.raises(OutputError, match=r"an unfinished job with another value of 'n_ctx' \(--force"):
        make_tfrecords(files, tmp_path / "out", TOKENIZER, Recipe(32))
    totals = make_tfrecords(files, tmp_path / "out", TOKENIZER, Recipe(64, skip_errors=True))  # goes on
    assert totals.skipped == 1 and "lines.jsonl:121" in totals.first_error
    make_tfrecords(files, tmp_path / "straight", TOKENIZER, Recipe(64, skip_errors=True))
    assert records(tmp_path / "out") == records(tmp_path / "straight")
    with pytest.raises(DataError, match=r"lines\.jsonl:121.*--skip-errors"):  # the same without it is not the same
        make_tfrecords(files, tmp_path / "out", TOKENIZER, Recipe(64))


def test_nothing_is_left_of_a_job_that_could_not_begin(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"\xff\xfe\xff")
    for content, error in ((b"\x89PNG\xff", DataError), (b"", DataError)):
        path.write_bytes(content)
        with pytest.raises(error, match=r"x\.txt: "):
            make_tfrecords([path], tmp_path / "out", TOKENIZER, Recipe(64), noted_every=1000)
        assert files_below(tmp_path) == ["x.txt"]
    with pytest.raises(RequestError, match="--separator 2048"):
        make_tfrecords([path], tmp_path / "out", TOKENIZER, Recipe(64, separator=2048))
    with pytest.raises(RequestError, match="cannot be the beginning"):
        Recipe(name="a/b")
