"""Standard input and standard output in whatever encoding they have: right, or one line, never a traceback.

Most tests give the command such streams in this process. Those with `run_process` show that Python's own are the same.
"""

import io
import json
import os
import subprocess
import sys

import pytest
from checkpoint_helpers import check_error_line, command

from neo_tf.cli.source import read_text

PROMPT = "def läs(φ):  # 日本 🙂\n    return"
NEW = ("--max-new-tokens", "3")


def run(*arguments, stdin=b"", encoding="utf-8"):
    """(exit status, standard output as bytes, standard error) of `neo-tf ARGUMENTS` on streams of this encoding.

    They are as Python makes them: `encoding` may name what happens to characters that it lacks, as in "ascii:strict".
    """
    codec, _, errors = encoding.partition(":")
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(stdin)
    streams = {
        "stdin": io.TextIOWrapper(os.fdopen(reading, "rb"), codec, errors or "strict"),
        "stdout": io.TextIOWrapper(io.BytesIO(), codec, errors or "strict"),
        "stderr": io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace"),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, stream in streams.items():
            patch.setattr(sys, name, stream)
        status = command(*map(os.fsdecode, map(os.fsencode, arguments)))
    for name in ("stdout", "stderr"):
        streams[name].flush()
    streams["stdin"].close()
    return status, streams["stdout"].buffer.getvalue(), streams["stderr"].buffer.getvalue().decode("utf-8")


def run_process(*arguments, stdin=b"", **environment):
    """The same of `neo-tf ARGUMENTS` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "neo_tf", *map(os.fsencode, arguments)],
        input=stdin,
        capture_output=True,
        env=os.environ | environment,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr.decode("utf-8", "replace")


@pytest.fixture(scope="module")
def expected(demo_folder):
    """What the command writes where every stream is UTF-8."""
    status, out, _ = run_process("generate", demo_folder, PROMPT, *NEW, PYTHONIOENCODING="utf-8")
    assert status == 0 and out.decode("utf-8").startswith(PROMPT)
    return out.decode("utf-8")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "cp932", "ascii:strict", "utf-16-le"])
def test_output_in_any_encoding(demo_folder, expected, encoding):
    status, out, error = run("generate", demo_folder, PROMPT, *NEW, encoding=encoding)
    codec = encoding.partition(":")[0]
    assert (status, error) == (0, "")
    assert out == expected.encode(codec, "backslashreplace")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii:strict"])
def test_output_of_a_process_in_another_encoding(demo_folder, expected, encoding):
    given = run_process("generate", demo_folder, *NEW, stdin=PROMPT.encode(), PYTHONIOENCODING=encoding)
    assert given == (0, expected.encode(encoding.partition(":")[0], "backslashreplace"), "")


@pytest.mark.parametrize("arguments", [("info",), ("generate", "--help"), ("verify", "--help"), ("--help",)])
def test_tables_and_help_in_ascii(demo_folder, arguments):
    name, *options = arguments
    status, out, error = run(name, *options or [demo_folder], encoding="ascii")
    assert (status, error) == (0, "") and out.decode("ascii")


@pytest.mark.parametrize("arguments", [("info",), ("generate", "--help")])
def test_tables_and_help_of_a_process_in_ascii(demo_folder, arguments):
    name, *options = arguments
    variables = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    status, out, error = run_process(name, *options or [demo_folder], **variables)
    assert (status, error) == (0, "") and out.decode("ascii")


def test_json_is_utf8_whatever_the_terminal_has(demo_folder, expected):
    status, out, _ = run("generate", demo_folder, PROMPT, *NEW, "--json", encoding="cp1252")
    assert status == 0
    assert json.loads(out.decode("utf-8"))["generated_text"] == expected.removesuffix("\n")


INPUTS = {
    "plain": PROMPT.encode(),
    "ends in a line break": PROMPT.encode() + b"\n",
    "byte order mark": b"\xef\xbb\xbf" + PROMPT.encode(),
    "CR LF": PROMPT.replace("\n", "\r\n").encode() + b"\r\n",
    "mark and CR LF": b"\xef\xbb\xbf" + PROMPT.replace("\n", "\r\n").encode() + b"\r\n",
    "UTF-16": PROMPT.replace("\n", "\r\n").encode("utf-16") + "\r\n".encode("utf-16-le"),
}


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
@pytest.mark.parametrize("kind", INPUTS)
def test_a_prompt_from_standard_input(demo_folder, expected, kind, encoding):
    _, out, error = run("generate", demo_folder, *NEW, stdin=INPUTS[kind], encoding=encoding)
    assert (out, error) == (expected.encode(encoding, "backslashreplace"), "")


@pytest.mark.parametrize("kind", ["latin-1", "cut off"])
def test_standard_input_that_is_no_text(demo_folder, kind):
    stdin = "läs".encode("latin-1") if kind == "latin-1" else b"\xff\xfed"
    status, out, error = run("generate", demo_folder, *NEW, stdin=stdin)
    assert (status, out) == (1, b"")
    check_error_line(error, "standard input: not a text in UTF-8")


def test_a_prompt_that_is_no_utf8_is_refused(demo_folder):
    status, out, error = run_process("generate", demo_folder, b"l\xe4s", *NEW)
    assert (status, out) == (1, b"")
    check_error_line(error, "the prompt is not valid UTF-8 text")


@pytest.mark.parametrize("form", ["txt", "jsonl"])
def test_lines_from_standard_input(demo_folder, form):
    prompts = ["def läs(", "日本"]
    lines = prompts if form == "txt" else [json.dumps({"prompt": prompt}) for prompt in prompts]
    options = ("--input", "-", "--input-format", form, *NEW)
    _, plain, _ = run("generate", demo_folder, *options, stdin="\n".join(lines).encode())
    marked = b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n"
    status, out, error = run("generate", demo_folder, *options, stdin=marked, encoding="cp1252")
    assert (status, error) == (0, "")
    assert out == plain and out.count(b"\n") == 2


def test_a_text_file_with_a_byte_order_mark(tmp_path):
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbfdef f():\r\n    pass\r\n")
    assert read_text(tmp_path / "text") == "def f():\n    pass\n"
