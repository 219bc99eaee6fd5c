"""The time of an engine's steps by their size, measured: what the fleet's simulator takes."""

import statistics
import time

import numpy as np

from neo_tf.evaluation.measuring import describe_run
from neo_tf.onnx_folder import OnnxFolder
from neo_tf.runtime.device.session import Session
from neo_tf.runtime.engine.engine import Engine
from neo_tf.runtime.engine.request import Request

_STEPS = 12  # decode steps of one point
_TIMES = 3  # runs of one chunk
_CHUNKS = (16, 64, 128, 256)
_CONTEXTS = (32, 256, 512, 768)  # tokens


def measure_steps(folder, slots, threads=None, precision=None, progress=None):
    """Measures the steps of an engine.

    Args:
        folder: An ONNX folder.
        slots, threads, precision: See Session.
        progress: Called with 1 after each point.

    Returns:
        A dict for JSON: "model", "machine", "versions", "settings" (see describe_run), and "steps": the engine's sizes,
        and the seconds of a chunk of a prompt by its tokens and those before it ("prefill"), and of a step of the whole
        engine by its sequences and their context ("decode"): medians. With one thread it is the thread's processor
        time, in which other programs do not count.
    """
    session = Session(OnnxFolder.read(folder), slots=slots, threads=threads, precision=precision)
    engine = Engine(session)
    clock = time.thread_time if threads == 1 and session.device == "cpu" else time.perf_counter
    chunk = engine._chunk
    n_ctx = session.config.n_ctx
    contexts = [context for context in _CONTEXTS if context + 2 * slots + _STEPS <= n_ctx]
    rows = [2**power for power in range(slots.bit_length())]
    rows = [*rows, slots] if rows[-1] < slots else rows
    if session.in_pairs and len(rows) > 1:
        rows = rows[1:]  # a single row runs beside an idle one
    chunks = [count for count in _CHUNKS if count <= chunk]
    random = np.random.default_rng(0)
    advance = progress or (lambda amount: None)
    _decode_seconds(engine, random, slots, contexts[0], clock)  # buffers are made
    prefill, decode = [], []
    for count in chunks:
        prefill.append([])
        for past in contexts:
            past = past if past > contexts[0] else 0
            prefill[-1].append(_prefill_seconds(session, random, count, past, chunk, clock))
            advance(1)
    for count in rows:
        decode.append([])
        for context in contexts:
            decode[-1].append(_decode_seconds(engine, random, count, context, clock))
            advance(1)
    steps = {
        "slots": slots,
        "chunk": chunk,
        "joins": session.prefers_silent_prompts,
        "in_pairs": session.in_pairs,
        "block": engine.prefixes._block if engine.prefixes else chunk,
        "blocks": engine.prefixes.blocks if engine.prefixes else 0,
        "prefill": {"rows": chunks, "columns": [0, *contexts[1:]], "seconds": prefill},
        # The middle of the steps that were taken.
        "decode": {"rows": rows, "columns": [context + _STEPS // 2 for context in contexts], "seconds": decode},
    }
    return describe_run(session, {"slots": slots, "threads": threads, "precision": precision}) | {"steps": steps}


def mean_steps(first, second):
    """The mean of two measurements of the same engine: a shared machine's speed drifts."""
    found = dict(first)
    for name in ("prefill", "decode"):
        rows = zip(first[name]["seconds"], second[name]["seconds"], strict=True)
        means = [[(one + other) / 2 for one, other in zip(*row, strict=True)] for row in rows]
        found[name] = {**first[name], "seconds": means}
    return found


def _prefill_seconds(session, random, count, past, chunk, clock):
    """How many seconds a chunk of a prompt takes when `past` tokens of the prompt are in the KV cache already."""
    tokens = random.integers(0, session.config.n_vocab, past + count)
    # Where prompts are not silent, the last chunk computes the logits of its last token.
    last = 0 if session.prefers_silent_prompts else 1
    for begin in range(0, past, chunk):
        session.prefill(0, tokens[begin : min(begin + chunk, past)], begin, logits_of=0)
    seconds = []
    for _ in range(_TIMES):
        start = clock()
        session.prefill(0, tokens[past:], past, logits_of=last)
        seconds.append(clock() - start)
    return statistics.median(seconds)


def _decode_seconds(engine, random, count, context, clock):
    """The seconds of a step in which an engine decodes `count` sequences with this context."""
    generations = []
    for number in range(count):
        # The first ones run while the prompts of the others are prefilled: they begin that much shorter.
        prompt = random.integers(0, engine.config.n_vocab, max(1, context - (count - number)))
        request = Request(prompt.tolist(), max_new_tokens=2 * count + _STEPS + 8)
        generations.append(engine.submit(request))
    while not all(generation.tokens or generation.error for generation in generations):
        engine.step()
    seconds = []
    for _ in range(_STEPS):
        start = clock()
        engine.step()
        seconds.append(clock() - start)
    for generation in generations:
        engine.cancel(generation)
    engine.step()
    for generation in generations:
        if generation.error:
            raise generation.error
    return statistics.median(seconds)
