"""The process `neo-tf serve`: its line, its log, its signals, and what it refuses in one line."""

import contextlib
import json
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
from checkpoint_helpers import check_error_line
from typer.testing import CliRunner

WAIT = 60  # seconds, at most: a hang must fail


@pytest.fixture(autouse=True)
def logs():
    """The loggers are afterwards what they were: a command in this process sends them to a stream that ends with it."""
    loggers = [logging.getLogger(name) for name in ("neo_tf", "uvicorn")]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers = handlers
        logger.setLevel(level)
        logger.propagate = propagate


def command(folder, *options):
    return [sys.executable, "-m", "neo_tf", "serve", str(folder), "--port", "0", *options]


@contextlib.contextmanager
def serving(folder, *options):
    """Runs the command until the block's end; yields the process, its address, and the lines of its log."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command(folder, *options), **pipes) as process:
        lines = queue.Queue()
        log = []
        threading.Thread(target=lambda: lines.put(process.stdout.readline()), daemon=True).start()
        reader = threading.Thread(target=lambda: log.extend(process.stderr), daemon=True)
        reader.start()
        try:
            line = lines.get(timeout=WAIT)
            assert line.startswith("neo-tf serves "), line
            yield process, line.split()[-1], log
            process.wait(WAIT)
            reader.join(WAIT)
        finally:
            process.kill()


def interrupted(process, url, body, number):
    """The answer to a request that runs when the command gets a signal."""
    answers = []
    asking = threading.Thread(
        target=lambda: answers.append(httpx.post(f"{url}/v1/completions", json=body, timeout=WAIT))
    )
    asking.start()
    deadline = time.monotonic() + WAIT
    while f"neo_tf_active_sequences {body['n']:.1f}" not in httpx.get(f"{url}/metrics", timeout=WAIT).text:
        assert time.monotonic() < deadline
    process.send_signal(number)
    asking.join(WAIT)
    return answers[0]


def test_it_answers_and_ends_with_0_when_running_requests_have_finished(demo_folder):
    body = {"prompt": "import os", "max_tokens": 100, "ignore_eos": True, "n": 16}
    with serving(demo_folder, "--log-format", "json", "--model-name", "demo", "--alias", "other") as (
        process,
        url,
        log,
    ):
        names = [model["id"] for model in httpx.get(f"{url}/v1/models", timeout=WAIT).json()["data"]]
        assert names == ["demo", "other"]
        answer = interrupted(process, url, body, signal.SIGTERM)
        assert answer.status_code == 200
        assert {choice["finish_reason"] for choice in answer.json()["choices"]} == {"length"}
    assert process.returncode == 0
    told = [json.loads(line) for line in log]
    ids = {line["request_id"] for line in told if line["path"] == "/v1/completions" and line["status"] == 200}
    assert ids == {answer.headers["x-request-id"]}
    assert "import os" not in "".join(log)


def test_at_the_timeout_what_runs_is_cut(demo_folder):
    body = {"prompt": "import os", "max_tokens": 500, "ignore_eos": True, "n": 60, "temperature": 1}
    with serving(demo_folder, "--slots", "1", "--shutdown-timeout", "0") as (process, url, log):
        assert interrupted(process, url, body, signal.SIGINT).status_code == 503
    assert process.returncode == 0
    assert not any("Traceback" in line for line in log)


def serve_here(*arguments):
    """What the command ends with, in this process."""
    from neo_tf.cli.app import app

    return CliRunner().invoke(app, ["serve", *map(str, arguments)])


def refused(capsys, *arguments):
    """The one line that the command ends with, in this process."""
    from neo_tf.cli.app import app
    from neo_tf.errors import NeoTFError

    with pytest.raises(NeoTFError) as told:
        app(["serve", *map(str, arguments)], standalone_mode=False)
    line = str(told.value)
    assert "\n" not in line
    assert capsys.readouterr().out == ""
    return line


def test_a_busy_port_is_refused_before_the_model_is_loaded(demo_folder, capsys):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        assert f"port {port}" in refused(capsys, demo_folder, "--port", port)


def test_what_would_let_strangers_in_is_refused(demo_folder, capsys, tmp_path):
    assert "--no-auth" in refused(capsys, demo_folder, "--host", "0.0.0.0", "--port", 0)
    assert "--no-auth" in refused(capsys, demo_folder, "--host", "::", "--port", 0)
    keys = tmp_path / "keys"
    assert "cannot be read" in refused(capsys, demo_folder, "--api-keys", keys)
    keys.write_text("# nothing\n\n")
    assert "holds no key" in refused(capsys, demo_folder, "--api-keys", keys)
    keys.write_bytes(b"\xff\xfe")
    assert "UTF-8" in refused(capsys, demo_folder, "--api-keys", keys)
    keys.write_text("abc\n")
    assert "both given" in refused(capsys, demo_folder, "--api-keys", keys, "--no-auth")


def test_other_options_that_cannot_be_used(demo_folder, capsys, tmp_path):
    assert "no address" in refused(capsys, demo_folder, "--host", "no.such.host.invalid")
    assert "--max-body" in refused(capsys, demo_folder, "--max-body", "lots")
    template = tmp_path / "template.jinja"
    assert "cannot be read" in refused(capsys, demo_folder, "--chat-template", template)
    template.write_text("{% for %}")
    assert "not a valid chat template" in refused(capsys, demo_folder, "--chat-template", template)


def test_a_folder_without_a_tokenizer_is_refused(exported, capsys, tmp_path):
    from conftest import GOLDEN

    folder = exported(GOLDEN / "tiny-global-local")
    assert not (folder / "tokenizer.json").exists()
    assert "--tokenizer" in refused(capsys, folder, "--port", 0)


def test_a_tokenizer_that_a_hub_id_names_is_downloaded(demo_folder, exported, monkeypatch):
    """The golden model has no tokenizer of its own, so that the server would refuse it."""
    import huggingface_hub
    from conftest import GOLDEN

    from neo_tf.runtime.server.serve import DrainingServer

    asked = []

    def download(name, **options):
        asked.append(name)
        return str(demo_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(DrainingServer, "run", lambda server, sockets: asked.append(len(server._serving.tokenizer)))
    shown = serve_here(exported(GOLDEN / "tiny-global-local"), "--port", 0, "--tokenizer", "owner/tokenizer")
    assert shown.exit_code == 0, shown.exception
    assert asked == ["owner/tokenizer", 2048]


def test_the_refusal_is_one_line_and_the_status_is_1(demo_folder):
    done = subprocess.run(
        command(demo_folder, "--host", "0.0.0.0"), capture_output=True, text=True, timeout=WAIT, env=dict(os.environ)
    )
    assert done.returncode == 1 and done.stdout == ""
    check_error_line(done.stderr, "--api-keys")


def test_without_the_extra_it_says_how_to_install_it(demo_folder):
    code = "import sys; sys.modules['fastapi'] = None; import neo_tf.cli; neo_tf.cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "serve", str(demo_folder)], capture_output=True, text=True, timeout=WAIT
    )
    assert done.returncode == 1
    check_error_line(done.stderr, "neo-tf[server]")


def test_every_option_of_the_help_is_a_sentence():
    from neo_tf.cli.app import app

    shown = CliRunner().invoke(app, ["serve", "--help"])
    assert shown.exit_code == 0
    for option in ("--slots", "--max-queue", "--api-keys", "--shutdown-timeout", "--chat-template", "--log-prompts"):
        assert option in shown.output
