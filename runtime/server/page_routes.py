"""The page at `/`: the files of the folder page/, served with a strict Content-Security-Policy."""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import Response

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).parent / "page"
# Browsers run modules only with a script's type. The types are said here: what a machine's tables say may differ.
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# The page loads, runs and asks nothing but what this server has. Texts of a model can never become code.
SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
HEADERS = {
    "Content-Security-Policy": SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Browsers keep a copy and ask whether it is still the newest: a new version of neo-tf shows at once.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class PageFile:
    """A file of the page, in memory.

    Args:
        content: Its bytes.
        content_type: What browsers take it for.
        etag: A hash of its bytes, in the quotes that HTTP wants.
    """

    content: bytes
    content_type: str
    etag: str


def read_page(folder: Path = FOLDER) -> dict[str, PageFile]:
    """Reads the page's files, {file name: file}. Files of other kinds, such as an editor's copies, are left out."""
    files = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in CONTENT_TYPES:
            content = path.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            files[path.name] = PageFile(content, CONTENT_TYPES[path.suffix], etag)
    return files


def is_current(if_none_match: str, etag: str) -> bool:
    """Whether the header If-None-Match says that a browser has a file already.

    Args:
        if_none_match: The header: tags with commas between them, or `*`. A proxy may have made them weak (`W/"…"`).
        etag: The file's own tag.
    """
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return etag in tags or tags == ["*"]


@functools.cache
def _files() -> dict[str, PageFile]:
    return read_page()


def page_paths() -> frozenset[str]:
    """The paths of the page. They hold nothing secret: they need no key, and the page itself asks for one."""
    return frozenset(("/", *(f"/page/{name}" for name in _files())))


def _answer(request: Request, name: str) -> Response:
    file = _files().get(name)
    if file is None:
        raise HTTPException(404, f"the page has no file {name!r}")
    headers = {**HEADERS, "ETag": file.etag}
    if is_current(request.headers.get("if-none-match", ""), file.etag):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers={**headers, "Content-Type": file.content_type})


@router.api_route("/", methods=["GET", "HEAD"])
async def index(request: Request) -> Response:
    """The page."""
    return _answer(request, "index.html")


@router.api_route("/page/{name}", methods=["GET", "HEAD"])
async def page_file(request: Request, name: str) -> Response:
    """A file that the page loads."""
    return _answer(request, name)
