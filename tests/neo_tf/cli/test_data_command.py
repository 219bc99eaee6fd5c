"""`neo-tf data`: from texts to records that are shown, and what it says where something is wrong."""

import json
import subprocess
import sys

import pytest
from checkpoint_helpers import check_error_line, command, cut_short, files_below
from conftest import FIXTURES, TINY_PYTHON

from neo_tf.checkpoints.tokenizer_files import find_tokenizer
from neo_tf.tokenizer_backend import load_tokenizer

pytest.importorskip("google_crc32c", reason="the tests of training data need the extra data")
pytest.importorskip("zstandard", reason="the tests of training data need the extra data")
pytest.importorskip("ftfy", reason="the tests of training data need the extra ftfy")

TEXTS = FIXTURES / "training-data" / "create-tfrecords"
TOKENIZER = TINY_PYTHON / "byte-level-bpe.tokenizer.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder that the command made, with what it printed."""
    folder = tmp_path_factory.mktemp("data") / "made"
    options = ("--tokenizer", TOKENIZER, "--n-ctx", 64, "--files-per", 20)
    assert command("data", "make", TEXTS / "in_txt", TEXTS / "in_zst", folder, *options) == 0
    return folder


def test_make_and_inspect(made, capsys):
    assert command("data", "inspect", made) == 0
    shown = capsys.readouterr().out
    assert [line.split()[:2] for line in shown.splitlines() if "tfrecords " in line] == [
        ["data_0_20.tfrecords", "20"],
        ["data_1_20.tfrecords", "20"],
        ["data_2_20.tfrecords", "20"],
    ]
    assert "3 files" in shown and "3,900" in shown and '"""Word completion for GNU readline.' in shown
    assert command("data", "inspect", made / "data_1*", "--json") == 0
    (line,) = capsys.readouterr().out.splitlines()
    report = json.loads(line)
    assert (report["records"], report["tokens"], report["faults"]) == (20, 1300, [])


def test_inspect_without_a_tokenizer_shows_ids(made, tmp_path, capsys):
    (tmp_path / "data_0_20.tfrecords").write_bytes((made / "data_0_20.tfrecords").read_bytes())
    assert command("data", "inspect", tmp_path) == 0
    assert "--tokenizer shows them as text" in capsys.readouterr().out


def test_inspect_tells_all_that_is_wrong(made, tmp_path, capsys):
    content = (made / "data_0_20.tfrecords").read_bytes()
    for name in ("cut_0_20", "count_1_7", "right_2_20"):
        (tmp_path / f"{name}.tfrecords").write_bytes(content)
    cut_short(tmp_path / "cut_0_20.tfrecords", -1)
    assert command("data", "inspect", tmp_path) == 1
    captured = capsys.readouterr()
    check_error_line(captured.err, "2 of 3 files are wrong", "count_1_7.tfrecords: its name tells 7 records")
    assert "cut_0_20.tfrecords: cut short: it ends inside record 19" in captured.out
    right = tmp_path / "right_2_20.tfrecords"
    assert command("data", "inspect", right, "--n-ctx", 65) == 1
    check_error_line(capsys.readouterr().err, "record 0 has 65 tokens, but n_ctx + 1 = 66")
    assert command("data", "inspect", right, "--n-vocab", 3) == 1
    check_error_line(capsys.readouterr().err, "but the vocabulary has 3 ids")


def test_the_originals_rules_are_an_option(tmp_path, capsys):
    options = ("--tokenizer", TOKENIZER, "--n-ctx", 64, "--files-per", 8, "--name", "n", "--minimum-size", 20)
    assert command("data", "make", TEXTS / "in_zst", tmp_path / "out", *options, "--original-rules") == 0
    for path in (TEXTS / "zst-flags").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert "150 tokens are in no record" in capsys.readouterr().err
    with_all = (*options, "--ftfy", "--wikitext-detokenize", "--original-rules")
    assert command("data", "make", TEXTS / "in_zst", tmp_path / "on", *with_all) == 0
    for path in (TEXTS / "zst").iterdir():
        assert (tmp_path / "on" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none", "DST"], "none: no such file or folder"),
        ([TEXTS / "in_txt", "DST", "--include", "*.cpp"], "no texts in this folder (*.cpp)"),
        ([TEXTS / "in_txt", "DST", "--original-rules", "--original-processes", 9], "fewer files than processes"),
        ([TEXTS / "in_txt", "DST", "--original-rules", "--whole-documents"], "does not go together"),
        ([TEXTS / "in_txt", "DST", "--whole-documents", "--overlap"], "overlap"),
        ([TEXTS / "in_txt", "DST", "--separator", 99999999], "--separator 99999999: the tokenizer has the ids 0 to"),
        ([TEXTS / "in_zst", "DST", "--text-field", "body"], "arch0.jsonl.zst:1: has no field 'body'"),
        ([TOKENIZER.parent / "reference.npz", "DST"], "reference.npz: not UTF-8 text"),
        ([TEXTS / "in_txt", "DST", "--tokenizer", "/nowhere.json"], "/nowhere.json"),
    ],
)
def test_what_cannot_be_made_is_one_line_and_leaves_nothing(tmp_path, capsys, arguments, said):
    arguments = [tmp_path / "DST" if one == "DST" else one for one in arguments]
    assert command("data", "make", "--tokenizer", TOKENIZER, *arguments) == 1
    check_error_line(capsys.readouterr().err, said)
    assert files_below(tmp_path) == []


def test_a_tokenizer_is_trained_and_used(tmp_path, capsys):
    folder = tmp_path / "tokenizer"
    options = ("--n-vocab", 400, "--special-token", "<|user|>", "--pad-to", 128)
    assert command("data", "tokenizer", TEXTS / "in_txt", folder, *options) == 0
    assert "512 tokens" in capsys.readouterr().err
    tokenizer = load_tokenizer(find_tokenizer(None, 512, folder), folder).tokenizer
    assert [tokenizer.token_to_id(one) for one in ("<|endoftext|>", "<|padding|>", "<|user|>")] == [0, 1, 2]
    for text in ("    def complete(self, text):\n", "äöü третий \x00 🙂", "<|user|>x"):
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert len(tokenizer.encode("    def complete(self, text):\n").ids) < 15
    assert command("data", "tokenizer", TEXTS / "in_txt", folder, *options) == 1
    check_error_line(capsys.readouterr().err, "exists and is not empty (--force replaces it)")
    assert command("data", "tokenizer", TEXTS / "in_txt", folder, *options, "--force") == 0
    made = tmp_path / "made"
    assert command("data", "make", TEXTS / "in_txt", made, "--tokenizer", folder, "--n-ctx", 64) == 0
    assert json.loads((made / "dataset.json").read_text())["n_vocab"] == 512
    capsys.readouterr()
    for wrong, said in ((("--n-vocab", 200), "too few"), (("--special-token", "<|padding|>"), "named twice")):
        assert command("data", "tokenizer", TEXTS / "in_txt", tmp_path / "x", *wrong) == 1
        check_error_line(capsys.readouterr().err, said)


def test_making_needs_no_tensorflow(tmp_path):
    code = """
import sys
for name in ("tensorflow", "keras", "ftfy", "onnxruntime"):
    sys.modules[name] = None  # as where it is not installed
import neo_tf.cli
sys.argv[0] = "neo-tf"
neo_tf.cli.main()
"""
    arguments = ("make", TEXTS / "in_zst", tmp_path / "out", "--tokenizer", TOKENIZER, "--n-ctx", 64)
    done = subprocess.run(
        [sys.executable, "-c", code, "data", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=FIXTURES.parents[1],
    )
    assert done.returncode == 0 and (tmp_path / "out" / "made.json").exists(), done.stderr


@pytest.mark.parametrize(
    ("library", "arguments", "extra"),
    [
        ("zstandard", ("make", TEXTS / "in_zst", "DST"), "neo-tf[data]"),
        ("google_crc32c", ("make", TEXTS / "in_txt", "DST"), "neo-tf[data]"),
        ("google_crc32c", ("inspect", TEXTS / "txt"), "neo-tf[data]"),
        ("ftfy", ("make", TEXTS / "in_txt", "DST", "--ftfy"), "neo-tf[ftfy]"),
    ],
)
def test_a_missing_library_is_told_with_its_extra(tmp_path, capsys, monkeypatch, library, arguments, extra):
    monkeypatch.setitem(sys.modules, library, None)
    arguments = [tmp_path / "DST" if one == "DST" else one for one in arguments]
    assert command("data", *arguments, "--tokenizer", TOKENIZER) == 1
    check_error_line(capsys.readouterr().err, extra)
    assert files_below(tmp_path) == []
