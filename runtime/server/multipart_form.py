"""Reading a form with a file (multipart/form-data) from a body that is in memory already."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request as HttpRequest
from starlette.requests import ClientDisconnect

from neo_tf.errors import RequestError

from .errors import ClientGoneError

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # whoever sends a damaged form is told so

_MOST_PARTS = 8
_MOST_HEADER_BYTES = 4096  # of all headers of a part


@dataclass
class FormPart:
    """One field or file of a form.

    Args:
        headers: Its headers, in small letters.
        name: The field's name.
        filename: The file's name, as its sender calls it; None for a field. It is never the name of a file here.
    """

    headers: dict[bytes, bytes] = field(default_factory=dict)
    name: str = ""
    filename: str | None = None
    data: bytes = b""


async def read_form(http: HttpRequest) -> dict[str, FormPart]:
    """Reads a form, in a thread.

    Returns:
        {name: part}.

    Raises:
        RequestError: The body is no form, or one with too many parts.
        ClientGoneError: The client has disconnected before its end.
    """
    try:
        body = await http.body()
    except ClientDisconnect:
        raise ClientGoneError from None
    return await asyncio.to_thread(_read, body, http.headers.get("content-type", ""))


def _read(body: bytes, content_type: str) -> dict[str, FormPart]:
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header

    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise RequestError("the body must be a form with a file, sent as multipart/form-data")
    collector = _Collector()
    try:
        parser = MultipartParser(options[b"boundary"], collector.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise RequestError("the form in the body is damaged") from None
    if not collector.is_complete:
        raise RequestError("the form in the body is cut short")
    found: dict[str, FormPart] = {}
    for part in collector.parts:
        _, names = parse_options_header(part.headers.get(b"content-disposition", b""))
        part.name = names.get(b"name", b"").decode("utf-8", "replace")
        if b"filename" in names:
            part.filename = names[b"filename"].decode("utf-8", "replace")
        if part.name in found:
            raise RequestError(f"the form has the field {part.name[:50]!r} twice")
        found[part.name] = part
    return found


class _Collector:
    """What the parser calls: it gathers the parts."""

    def __init__(self) -> None:
        self.parts: list[FormPart] = []
        self.is_complete = False
        self._pieces: list[bytes] = []
        self._header: bytes = b""
        self._value: bytes = b""
        self._header_bytes = 0

    def callbacks(self) -> dict[str, Any]:
        """The parser's callbacks."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._add_header,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_part_data": lambda data, start, end: self._pieces.append(data[start:end]),
            "on_part_end": self._end,
            "on_end": self._complete,
        }

    def _begin(self) -> None:
        if len(self.parts) == _MOST_PARTS:
            raise RequestError(f"the form has more than {_MOST_PARTS} parts")
        self.parts.append(FormPart())
        self._pieces = []
        self._header_bytes = 0

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > _MOST_HEADER_BYTES:
            raise RequestError(f"a part of the form has more than {_MOST_HEADER_BYTES} bytes of headers")

    def _add_header(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._header += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._value += data[start:end]

    def _end_header(self) -> None:
        self.parts[-1].headers[self._header.lower()] = self._value
        self._header = b""
        self._value = b""

    def _end(self) -> None:
        self.parts[-1].data = b"".join(self._pieces)

    def _complete(self) -> None:
        self.is_complete = True
