"""The page's files: how they are served, and that they need nothing from elsewhere."""

import re
from html.parser import HTMLParser

import pytest

fastapi = pytest.importorskip("fastapi", reason="the server's tests need the extra server")
from fastapi import FastAPI  # noqa: E402
from fastapi.testclient import TestClient  # noqa: E402

from neo_tf.runtime.server.page_routes import FOLDER, is_current, page_paths, router  # noqa: E402

SOURCES = {path.name: path.read_text() for path in FOLDER.iterdir()}
HTML = SOURCES["index.html"]


@pytest.fixture(scope="module")
def client():
    app = FastAPI()
    app.include_router(router)
    return TestClient(app)


class Elements(HTMLParser):
    """All elements of a page, [(tag, attributes)]."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


ELEMENTS = Elements(HTML).found


def test_every_file_has_its_type_and_every_answer_the_policy(client):
    types = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8"}
    types |= {"js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}
    assert page_paths() == {"/", *(f"/page/{name}" for name in SOURCES)}
    for path in page_paths():
        answer = client.get(path)
        assert answer.status_code == 200
        suffix = path.rpartition(".")[2] if "." in path else "html"
        assert answer.headers["content-type"] == types[suffix]
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy and "*" not in policy and "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert client.head(path).headers["etag"] == answer.headers["etag"]
        assert client.head(path).content == b""
    assert client.get("/").text == HTML


@pytest.mark.parametrize("path", ["/page/none.js", "/page/..%2fpage_routes.py", "/page/.", "/page/%00"])
def test_other_files_are_not_found(client, path):
    assert client.get(path).status_code == 404


def test_a_browser_that_has_the_newest_file_gets_no_other(client):
    first = client.get("/page/app.js")
    assert first.headers["cache-control"] == "no-cache"  # ask each time
    again = client.get("/page/app.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert client.get("/page/app.js", headers={"If-None-Match": '"other"'}).status_code == 200
    assert client.get("/", headers={"If-None-Match": first.headers["etag"]}).status_code == 200


@pytest.mark.parametrize(
    ("header", "expected"),
    [('"a"', True), ('W/"a"', True), ('"b", "a"', True), ("*", True), ("", False), ('"b"', False), ("a", False)],
)
def test_tags_are_compared_as_http_says(header, expected):
    assert is_current(header, '"a"') is expected


def test_the_page_needs_no_other_host_and_no_inline_code():
    for name, text in SOURCES.items():
        addresses = set(re.findall(r"(?:https?:)?//[\w.]+", re.sub(r"//[ \-].*", "", text)))
        assert addresses <= {"http://www.w3.org"}, name  # SVG's name space, which nobody fetches
        assert "innerHTML" not in text and "eval(" not in text
    for tag, attributes in ELEMENTS:
        assert tag != "style" and "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        assert tag != "script" or attributes["src"]


def test_everything_that_is_loaded_is_there():
    names = {attributes.get("src") or attributes.get("href") for tag, attributes in ELEMENTS if tag != "a"}
    for name in names - {None}:
        assert name.removeprefix("page/") in SOURCES, name
    for name, text in SOURCES.items():
        for imported in re.findall(r'from "\./([^"]+)"', text):
            assert imported in SOURCES, name


def test_inputs_have_labels_and_references_lead_to_elements():
    ids = [attributes["id"] for _, attributes in ELEMENTS if "id" in attributes]
    assert len(ids) == len(set(ids))
    labelled = {attributes.get("for") for tag, attributes in ELEMENTS if tag == "label"}
    for tag, attributes in ELEMENTS:
        if tag in ("input", "select", "textarea") and attributes.get("type") not in ("checkbox", "range"):
            assert attributes["id"] in labelled
        for name in ("for", "aria-describedby", "aria-labelledby", "aria-controls", "data-for"):
            if name in attributes:
                assert attributes[name] in ids
    for name, text in SOURCES.items():
        for wanted in re.findall(r'byId\("([\w-]+)"\)', text):
            assert wanted in ids, f"{name}: {wanted}"


def test_the_screenshot_of_the_docs_is_small():
    picture = FOLDER.parents[2] / "docs" / "page.png"
    assert picture.read_bytes()[:4] == b"\x89PNG" and picture.stat().st_size < 200_000
