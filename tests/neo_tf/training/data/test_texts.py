"""Documents in files of every kind, and what is told where they are damaged or are no texts."""

import bz2
import gzip
import io
import json
import lzma
import tarfile

import pytest

from neo_tf.errors import DataError
from neo_tf.training.data.cleaning import Cleaning, wikitext_detokenize
from neo_tf.training.data.find_texts import find_texts, find_texts_as_the_original, split_as_the_original
from neo_tf.training.data.texts import Unreadable, read_documents

zstandard = pytest.importorskip("zstandard", reason="the tests of training data need the extra data")
pytest.importorskip("ftfy", reason="the tests of training data need the extra ftfy")

TEXTS = ["first\ntext", "zweiter Text: äöü", "третий\n"]
LINES = "".join(json.dumps({"text": text, "meta": 1}) + "\n" for text in TEXTS).encode()
COMPRESSIONS = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}


def tar_of(files):
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in files.items():
            member = tarfile.TarInfo(f"folder/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return held.getvalue()


TAR = tar_of({f"{number}.txt": text.encode() for number, text in enumerate(TEXTS)})


def documents(path, field="text"):
    with open(path, "rb") as file:
        return list(read_documents(path, file, field))


def texts(path):
    return [document.text for document in documents(path)]


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_each_kind_of_file_gives_the_same_texts(tmp_path, compression):
    compress = COMPRESSIONS[compression]
    for kind, data, expected in (
        (".jsonl", LINES, TEXTS),
        (".tar", TAR, TEXTS),
        (".txt", TEXTS[1].encode(), TEXTS[1:2]),
    ):
        path = tmp_path / f"x{kind}{compression}"
        path.write_bytes(compress(data))
        assert texts(path) == expected, path.name
    if compression:
        several = tmp_path / f"several.jsonl{compression}"
        several.write_bytes(compress(LINES) + compress(LINES))  # as `cat` puts files together
        assert texts(several) == TEXTS * 2


def test_an_archive_of_archives_is_read_as_openwebtexts(tmp_path):
    inner = lzma.compress(TAR)
    path = tmp_path / "openwebtext.tar.xz"
    path.write_bytes(lzma.compress(tar_of({"urlsf_subset00-1_data.xz": inner})))
    assert texts(path) == TEXTS
    (tmp_path / "urlsf_subset00-1_data.xz").write_bytes(inner)
    assert texts(tmp_path / "urlsf_subset00-1_data.xz") == TEXTS


@pytest.mark.parametrize("compression", [".gz", ".bz2", ".xz", ".zst"])
def test_a_compressed_file_that_is_cut_anywhere_is_noticed(tmp_path, compression):
    data = COMPRESSIONS[compression](LINES * 20)
    path = tmp_path / f"x.jsonl{compression}"
    for size in range(1, len(data), max(1, len(data) // 40)):
        path.write_bytes(data[:size])
        with pytest.raises(DataError, match=rf"x\.jsonl\{compression}: .*damaged"):
            documents(path)
    path.write_bytes(b"this was never compressed at all, whatever its name says")
    with pytest.raises(DataError, match=rf"x\.jsonl\{compression}: .*damaged"):
        documents(path)


def test_a_tar_that_is_cut_is_noticed(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(TAR[: TAR.index(TEXTS[2].encode()) + 3])
    with pytest.raises(DataError, match=r"x\.tar: .*damaged"):
        documents(path)


def test_lines_of_json_may_hold_texts_lists_or_another_field(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf"alone"\n\n{"body": ["a", "b"]}\r\n{"body": "c"}')
    assert [document.text for document in documents(path, "body")] == ["alone", "a\n\nb", "c"]
    assert documents(path, "body")[2].where.endswith("x.jsonl:4")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"text": "x"', "not JSON"),
        (b'{"title": "x"}', r"no field 'text' \(it has title\): --text-field"),
        (b'{"text": 5}', "no string"),
        (b"17", "no string"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b'{"text": "\\ud800"}', "half of a surrogate pair"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_line_that_cannot_be_read_is_told_and_the_others_are_read(tmp_path, line, said):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "before"}\n' + line + b'\n{"text": "after"}\n')
    before, wrong, after = documents(path)
    assert (before.text, after.text) == ("before", "after")
    assert isinstance(wrong, Unreadable)
    with pytest.raises(ValueError, match=rf"x\.jsonl:2: .*{said}"):
        raise ValueError(wrong.reason)


def test_plain_files_have_one_kind_of_line_break_and_must_be_texts(tmp_path):
    path = tmp_path / "x.md"
    path.write_bytes("\ufeffa\r\nb\rc\n".encode())
    assert texts(path) == ["a\nb\nc\n"]
    path.write_bytes("äb\r\n".encode("utf-16"))
    assert texts(path) == ["äb\n"]
    for data, said in ((b"abc\xff", "not UTF-8 text (byte 3)"), (b"a\0b", "no text")):
        path.write_bytes(data)
        (found,) = documents(path)
        assert isinstance(found, Unreadable) and said in found.reason and found.reason.startswith(str(path))
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid x\n")
    with pytest.raises(DataError, match="Git LFS pointer"):
        documents(path)


# ---- which files


def test_files_of_folders_come_in_natural_order_with_patterns(tmp_path):
    for name in ("b/x10.txt", "b/x9.txt", "a.jsonl", "c.py", "b/test/t.txt", ".git/x.txt", "picture.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")

    def names(*arguments):
        return [path.relative_to(tmp_path).as_posix() for path in find_texts([tmp_path], *arguments)]

    assert names() == ["a.jsonl", "b/test/t.txt", "b/x9.txt", "b/x10.txt"]
    assert names((), ("b/test/*", "*.jsonl")) == ["b/x9.txt", "b/x10.txt"]
    assert names(("*.py",)) == ["c.py"]
    assert names((), (), [tmp_path / "b"]) == ["a.jsonl"]
    picture = tmp_path / "picture.png"  # a file that is named is taken
    assert find_texts([picture, tmp_path / "c.py"]) == [picture, tmp_path / "c.py"]
    for wrong, said in ((tmp_path / "none", "no such file"), (tmp_path / ".git/..", "no texts in this folder")):
        with pytest.raises(DataError, match=said):
            find_texts([wrong], ("*.cpp",))
    assert find_texts_as_the_original([tmp_path / "b"]) == [tmp_path / "b/x9.txt", tmp_path / "b/x10.txt"]
    with pytest.raises(DataError, match="none of the files that the original reads"):
        find_texts_as_the_original([tmp_path])  # a.jsonl is not found, nor what lies deeper


def test_the_originals_processes_get_what_they_get_there():
    files = [*range(5)]
    assert split_as_the_original(files, 1) == [files]
    assert split_as_the_original(files, 2) == [[0, 1], [2, 3], [4]]
    with pytest.raises(ValueError, match="fewer files than processes"):
        split_as_the_original(files, 6)


def test_cleaning_is_done_only_when_it_is_asked_for():
    text = "ﬁve â€œquotesâ€\x9d ( x ) , and\n  code = [ 1 ]"
    assert Cleaning().function()(text) == text
    assert Cleaning(ftfy=True).function()("ﬁve âœ”") == "five ✔"


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ("the boys ' books", "the boys' books"),
        ("3 @,@ 000 @-@ word 1 @.@ 5", "3,000-word 1.5"),
        ("a : b ; c . d ! e ? f , g", "a: b; c. d! e? f, g"),
        ("a ( b ) [ c ] { d } \" e \" ' f '", "a (b) [c] {d} \"e\" 'f'"),
        (" \n = = Title = = \n ", "\n== Title ==\n"),
        ("= = = = x = = =", "==== x ==="),
        ("5 ° C and N times it 's", "5°C and 1 times it's"),
    ],
)
def test_wikitext_gets_its_spaces_back(written, wanted):
    assert wikitext_detokenize(written) == wanted
