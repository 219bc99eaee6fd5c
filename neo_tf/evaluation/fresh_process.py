"""The time until a fresh process has its first token, and the memory that it needs at most."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from neo_tf.errors import NeoTFError
from neo_tf.evaluation.machine import peak_memory
from neo_tf.onnx_folder import OnnxFolder
from neo_tf.runtime.engine.request import Request
from neo_tf.runtime.pipeline import TextGenerationPipeline

_CODE = "from neo_tf.evaluation.fresh_process import main\nmain(sys.argv[1])"


def run_fresh_process(
    folder: OnnxFolder,
    *,
    device: str | None,
    threads: int | None,
    precision: str | None,
    prompt: list[int],
    new_tokens: int,
) -> dict[str, float | None]:
    """Starts a process that continues a prompt with a folder, and waits for its end.

    Args:
        folder: The folder that it loads.
        device, threads, precision: See Session.
        prompt: The token ids that it continues.
        new_tokens: The number of tokens that it adds.

    Returns:
        {"first_token_s": seconds from its start to its first token, of which "imports_s", "load_s" and "generate_s"
        are the parts; "peak_memory_bytes": None where the system does not tell}.

    Raises:
        NeoTFError: It failed; the message holds the last line of what it said.
    """
    task = json.dumps([str(folder.path), device, threads, precision, prompt, new_tokens])
    # It finds its modules where this process finds them: no folder of the user's comes between.
    code = f"import sys; sys.path[:] = {sys.path!r}\n{_CODE}"
    with tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        child = subprocess.Popen([sys.executable, "-c", code, task], stdout=subprocess.PIPE, stderr=errors, text=True)
        assert child.stdout is not None
        try:
            first = child.stdout.readline()
            elapsed = time.perf_counter() - start
            rest = child.stdout.read()
        except BaseException:
            child.kill()
            raise
        finally:
            child.wait()
        errors.seek(0)
        if child.returncode or not first:
            said = errors.read().strip().splitlines() or ["it said nothing"]
            raise NeoTFError(f"the fresh process ended early: {said[-1]}")
    spans = json.loads(first)
    # What comes before it begins to load is the interpreter's start and the imports.
    return {"first_token_s": elapsed, "imports_s": elapsed - sum(spans.values()), **spans, **json.loads(rest)}


def main(task: str) -> None:
    """What the process does: it loads a folder like pipeline does, continues a prompt, and prints two lines of JSON.

    The lines are {"load_s", "generate_s"} at the first token, and {"peak_memory_bytes"} at the end.

    Args:
        task: JSON: [folder, device, threads, precision, prompt, new_tokens].
    """
    folder, device, threads, precision, prompt, new_tokens = json.loads(task)
    started = time.perf_counter()
    generator = TextGenerationPipeline(Path(folder), None, device, 1, threads, precision)
    loaded = time.perf_counter()

    told = False

    def on_token(token: int) -> None:
        nonlocal told
        if not told:
            told = True
            spans = {"load_s": loaded - started, "generate_s": time.perf_counter() - loaded}
            print(json.dumps(spans), flush=True)

    request = Request(prompt, max_new_tokens=new_tokens, on_token=on_token)
    generator.engine.generate([request])
    print(json.dumps({"peak_memory_bytes": peak_memory()}), flush=True)
