"""Texts in files: plain, compressed, in archives, or as lines of JSON. The kind of a file is in its name."""

import bz2
import codecs
import gzip
import io
import json
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from neo_tf.errors import DataError, first_line
from neo_tf.git_lfs import WHAT_IT_IS, is_pointer
from neo_tf.training.data.zstd import open_zstd

_COMPRESSED = (".gz", ".zst", ".xz", ".bz2")
_SHORT_NAMES = {".tgz": ".tar.gz", ".txz": ".tar.xz", ".tzst": ".tar.zst"}
_LINES = (".jsonl", ".ndjson")
# The kinds of files that are looked for in folders.
KINDS = tuple(f"{kind}{compressed}" for kind in (".txt", *_LINES, ".tar") for compressed in ("", *_COMPRESSED)) + (
    *_SHORT_NAMES,
    ".xz",
)
_TAR_BLOCK = 512
_PARAGRAPHS = "\n\n"  # between the texts of a list in a line of JSON


@dataclass(frozen=True)
class Document:
    """One text.

    Args:
        text: The text.
        where: The file, and the line or the member that it is.
    """

    text: str
    where: str


@dataclass(frozen=True)
class Unreadable:
    """A document that cannot be read, while the rest of its file can.

    Args:
        reason: One line that says what is wrong, and where.
    """

    reason: str


def read_documents(path: Path, file: IO[bytes], field: str = "text") -> Iterator[Document | Unreadable]:
    """The documents of one file, in order.

    Args:
        path: The file's name, which tells its kind.
        file: The open file, in binary.
        field: In lines of JSON, the key of the text.

    Raises:
        DataError: The file is damaged, cut short, or no text at all. The message names it.
    """
    if is_pointer(path):
        raise DataError(f"{path}: {WHAT_IT_IS}")
    damaged = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, tarfile.TarError, ValueError)
    try:
        yield from _documents(str(path), _full_name(path.name), file, field)
    except DataError:
        raise
    except OSError as error:
        if error.errno is None or isinstance(error, gzip.BadGzipFile):  # bz2 says so of damaged files
            raise DataError(f"{path}: damaged, or not what its name says: {first_line(error)}") from None
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except Exception as error:
        if not isinstance(error, damaged) and type(error).__name__ != "ZstdError":
            raise
        raise DataError(f"{path}: damaged, cut short, or not what its name says: {first_line(error)}") from None


def _full_name(name: str) -> str:
    """A file's name with the ending .tar.gz in place of .tgz, in small letters."""
    name = name.lower()
    for short, full in _SHORT_NAMES.items():
        if name.endswith(short):
            return name.removesuffix(short) + full
    return name


def _documents(where: str, name: str, file: IO[bytes], field: str) -> Iterator[Document | Unreadable]:
    """The documents of a file or of an archive's member, by its name."""
    ending = next((ending for ending in _COMPRESSED if name.endswith(ending)), None)
    if ending is not None:
        plain = _decompressed(file, ending)
        inner = name.removesuffix(ending)
        if ending == ".xz" and _is_tar(plain):  # as in OpenWebText, whose urlsf_subset*_data.xz are such archives
            inner += ".tar"
        yield from _documents(where, inner, plain, field)
    elif name.endswith(".tar"):
        yield from _members(where, file, field)
    elif name.endswith(_LINES):
        yield from _lines(where, file, field)
    else:
        yield _whole(where, file.read())


def _decompressed(file: IO[bytes], ending: str) -> io.BufferedReader:
    if ending == ".gz":
        return cast(io.BufferedReader, gzip.GzipFile(fileobj=file))
    if ending == ".xz":
        return io.BufferedReader(cast(Any, lzma.LZMAFile(file)), 1 << 17)
    if ending == ".bz2":
        return cast(io.BufferedReader, bz2.BZ2File(file))
    return open_zstd(file)


def _is_tar(file: io.BufferedReader) -> bool:
    return file.peek(_TAR_BLOCK)[257:262] == b"ustar"


def _members(where: str, file: IO[bytes], field: str) -> Iterator[Document | Unreadable]:
    """Each plain file of an archive is one text; an archive inside it is read as one."""
    with tarfile.open(fileobj=file, mode="r|") as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isfile() else None
            if content is None:
                continue
            place = f"{where}:{member.name}"
            if member.name.endswith(".xz"):
                yield from _documents(place, member.name, content, field)
            else:
                yield _decoded(place, content.read())


def _lines(where: str, file: IO[bytes], field: str) -> Iterator[Document | Unreadable]:
    """Each line holds an object with the text, or the text alone. Empty lines are passed over."""
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        place = f"{where}:{number}"
        try:
            value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            yield Unreadable(f"{place}: not UTF-8 text (byte {error.start} of the line)")
            continue
        except (ValueError, RecursionError) as error:
            yield Unreadable(f"{place}: not JSON: {first_line(error)}")
            continue
        yield _text_of(place, value, field)


def _text_of(place: str, value: Any, field: str) -> Document | Unreadable:
    text = value
    if isinstance(value, dict):
        if field not in value:
            names = ", ".join(map(str, value)) or "nothing"
            return Unreadable(f"{place}: has no field {field!r} (it has {names}): --text-field names another")
        text = value[field]
    if isinstance(text, list) and all(isinstance(part, str) for part in text):
        text = _PARAGRAPHS.join(text)
    if not isinstance(text, str):
        return Unreadable(f"{place}: its text is no string")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        return Unreadable(f"{place}: holds half of a surrogate pair, which is no letter")
    return Document(text, place)


def _whole(where: str, data: bytes) -> Document | Unreadable:
    """The text of a plain file, whose lines end with \\n whatever they end with in the file."""
    found = _decoded(where, data)
    if isinstance(found, Unreadable):
        return found
    return Document(found.text.replace("\r\n", "\n").replace("\r", "\n"), where)


def _decoded(where: str, data: bytes) -> Document | Unreadable:
    """A text in UTF-8, or in UTF-16 where a byte order mark says so."""
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        return Unreadable(f"{where}: not UTF-8 text (byte {error.start})")
    if "\0" in text:
        return Unreadable(f"{where}: holds bytes of value 0, so it is no text")
    return Document(text, where)
