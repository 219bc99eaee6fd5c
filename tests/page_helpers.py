"""What the tests of the server's page share: a server in a thread, and Debian's Chromium."""

import contextlib
import json
import shutil
import socket
import threading
import time

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def browser_path():
    """The system's Chromium; a module that calls it is skipped, with the reason, where it or playwright is missing."""
    pytest.importorskip("playwright", reason="the page's tests need the package playwright: it is in the extra test")
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("the page's tests need a Chromium: apt-get install chromium", allow_module_level=True)
    return found


@contextlib.contextmanager
def chromium():
    """A headless Chromium."""
    path = browser_path()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Containers often run as root, where Chromium has no sandbox of its own.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def listening(app):
    """Serves an ASGI app on a free port of the loopback; its address."""
    import uvicorn

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [free]})
        thread.start()
        try:
            wait_for(lambda: server.started)
            yield f"http://127.0.0.1:{free.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join(timeout=30)


def wait_for(condition, seconds=20):
    """Waits until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} seconds"
        time.sleep(0.02)


def events(*pieces, finish="length", is_whole=True):
    """A stream of completion chunks as the server writes them.

    Args:
        pieces: (text, [(token, log-probability, {likely token: log-probability}), ...]) of each chunk.
        finish: The finish_reason.
        is_whole: Whether the stream ends as it should.
    """
    chunks = []
    for text, tokens in pieces:
        logprobs = {
            "tokens": [name for name, _, _ in tokens],
            "token_logprobs": [logprob for _, logprob, _ in tokens],
            "top_logprobs": [top for _, _, top in tokens],
            "text_offset": [0 for _ in tokens],
        }
        chunks.append({"index": 0, "text": text, "logprobs": logprobs, "finish_reason": None})
    if is_whole:
        chunks[-1]["finish_reason"] = finish
    lines = [json.dumps({"object": "text_completion", "choices": [chunk]}) for chunk in chunks]
    return "".join(f"data: {line}\n\n" for line in [*lines, *(["[DONE]"] if is_whole else [])])
