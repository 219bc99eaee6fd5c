"""What a fresh process needs until its first token, and at most of memory: run as a child of the benchmark."""

import json
import time
from pathlib import Path

from neo_tf.evaluation.machine import peak_memory
from neo_tf.runtime.engine.request import Request
from neo_tf.runtime.pipeline import TextGenerationPipeline


def main(task):
    """Loads a folder as pipeline does, tokenizer included, continues a prompt of ids, and prints two lines of JSON.

    {"load_s", "generate_s"} at the first token; {"peak_memory_bytes"} at the end.

    Args:
        task: JSON: [folder, device, threads, precision, prompt, new_tokens].
    """
    folder, device, threads, precision, prompt, new_tokens = json.loads(task)
    started = time.perf_counter()
    generator = TextGenerationPipeline(Path(folder), None, device, 1, threads, precision)
    loaded = time.perf_counter()

    tokens = []

    def first(token):
        tokens.append(token)
        if len(tokens) == 1:
            spans = {"load_s": loaded - started, "generate_s": time.perf_counter() - loaded}
            print(json.dumps(spans), flush=True)

    request = Request(prompt, max_new_tokens=new_tokens, on_token=first)
    generator.engine.generate([request])
    print(json.dumps({"peak_memory_bytes": peak_memory()}), flush=True)
