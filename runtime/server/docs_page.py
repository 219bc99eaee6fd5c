"""/docs: every path and every field, as plain HTML made of the OpenAPI schema. It loads nothing, from nowhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse

router = APIRouter(include_in_schema=False)

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:.2rem .6rem .2rem 0}"
    "code{white-space:pre-wrap;overflow-wrap:anywhere}"
)
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
_LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
}


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    """The page."""
    return HTMLResponse(docs_page(request.app.openapi()), headers=_HEADERS)


def docs_page(schema: Mapping[str, Any]) -> str:
    """The page of an OpenAPI schema."""
    title = escape(f"{schema['info']['title']} {schema['info']['version']}")
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>",
        '<p>The same for programs: <a href="openapi.json">openapi.json</a>.</p>',
    ]
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2>")
            parts.append(f"<p>{escape(operation.get('summary', ''))}. {escape(operation.get('description', ''))}</p>")
            parts += _fields(schema, operation)
    return "\n".join(parts)


def _fields(schema: Mapping[str, Any], operation: Mapping[str, Any]) -> Iterator[str]:
    """The tables of the fields of a request's body, and of objects inside it."""
    content = operation.get("requestBody", {}).get("content", {})
    for kind, body in content.items():
        waiting = [("", body.get("schema", {}))]
        while waiting:
            name, found = waiting.pop(0)
            found = _resolved(schema, found)
            if "properties" not in found:
                continue
            heading = f"The fields of <code>{escape(name)}</code>" if name else f"Fields ({escape(kind)})"
            yield f"<table><caption>{heading}</caption><tr><th>field<th>value<th>what it does"
            for field, inner in found["properties"].items():
                needed = " (needed)" if field in found.get("required", ()) else ""
                value = escape(_words(schema, inner))
                yield f"<tr><td><code>{escape(field)}</code>{needed}<td><code>{value}</code>"
                yield f"<td>{escape(inner.get('description', ''))}"
                waiting += [(field, _resolved(schema, part)) for part in (inner, *inner.get("anyOf", ()))]
            yield "</table>"


def _resolved(schema: Mapping[str, Any], part: Mapping[str, Any]) -> Mapping[str, Any]:
    name = part.get("$ref", "").rpartition("/")[2]
    return schema["components"]["schemas"][name] if name else part


def _words(schema: Mapping[str, Any], part: Mapping[str, Any]) -> str:
    """What a value is, in a few words: "integer, at least 1", "string or list of string"."""
    if "anyOf" in part:
        words = [_words(schema, one) for one in part["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(filter(None, words)))
    if "enum" in part or "const" in part:
        return " or ".join(map(json.dumps, part.get("enum", [part.get("const")])))
    kind = "object" if "$ref" in part else part.get("type", "")
    if kind == "array":
        return f"list of {_words(schema, part.get('items', {})) or 'anything'}"
    limits = [words.format(f"{part[name]:g}") for name, words in _LIMITS.items() if name in part]
    return ", ".join([kind, *limits]) if kind else ""
