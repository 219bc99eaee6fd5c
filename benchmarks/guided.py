"""What structured output costs: compiling a grammar, a step's mask, and the steps of other requests beside it.

    python benchmarks/guided.py MODEL

MODEL is an ONNX folder with a tokenizer. Masks are measured with GPT-2's 50257 tokens, the steps with the model.
"""

import statistics
import sys
import time

import numpy as np

from neo_tf import Engine, Request, Session
from neo_tf.checkpoints.tokenizer_files import gpt2_tokenizer
from neo_tf.runtime.guided.mask import GrammarMask
from neo_tf.runtime.sampling.options import SamplingOptions
from neo_tf.runtime.tokenizer import Tokenizer, as_tokenizer

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "tags": {"type": "array"}},
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
GUIDES = {
    "regex": {"guided_regex": r"([a-z]{3,8} ){20}[a-z]+@example\.com"},
    "choice": {"guided_choice": [f"answer number {number}" for number in range(100)]},
    "json": {"guided_json": SCHEMA},
    "any object": {"guided_json": {"type": "object"}},
}
STEPS, ROUNDS = 64, 15


def show_masks():
    """The time of a grammar's compilation and of its masks, while random tokens that it allows are taken."""
    import tokenizers

    tokenizer = as_tokenizer(tokenizers.Tokenizer.from_str(gpt2_tokenizer()))
    begin = time.perf_counter()
    tokenizer.grammar(SamplingOptions(guided_regex="a").guide)
    print(f"the tokenizer's tokens, once: {time.perf_counter() - begin:.2f} s")
    random = np.random.default_rng(0)
    logits = random.standard_normal((1, 50257)).astype(np.float32)
    history = np.zeros((1, STEPS + 1), np.int64)
    for name, options in GUIDES.items():
        begin = time.perf_counter()
        grammar = tokenizer.grammar(SamplingOptions(**options).guide)
        compiled = time.perf_counter() - begin
        seconds = []
        for _ in range(5):
            mask = GrammarMask(grammar, 1, [50256])
            for length in range(1, STEPS + 1):
                scores = logits.copy()
                begin = time.perf_counter()
                mask(history[:, :length], scores)
                seconds.append(time.perf_counter() - begin)
                allowed = np.flatnonzero(np.isfinite(scores[0]))
                token = random.choice(allowed)
                if token == 50256:
                    break
                history[0, length] = token
        micro = np.array(seconds) * 1e6
        print(
            f"{name}: compiled in {compiled * 1e3:.1f} ms; a mask takes {np.median(micro):.0f} µs (median), "
            f"{np.mean(micro):.0f} µs (mean), {micro.max():.0f} µs (most)"
        )


def show_steps(folder):
    """The engine's step with four requests, where none of them and where one of them is guided, in turn."""
    session, tokenizer = Session(folder, slots=4), Tokenizer(folder)
    prompt = tokenizer.encode("def read_lines(path):")

    def seconds_of_step(options):
        requests = [Request(prompt, STEPS, tokenizer=tokenizer) for _ in range(3)]
        requests.append(Request(prompt, STEPS, tokenizer=tokenizer, sampling=SamplingOptions(**options)))
        engine = Engine(session)
        for request in requests:
            engine.submit(request)
        for _ in range(8):  # the prefills
            engine.step()
        begin = time.perf_counter()
        for _ in range(STEPS - 16):
            engine.step()
        spent = time.perf_counter() - begin
        while engine.step():
            pass
        return spent / (STEPS - 16)

    kinds = {"free": {}, "with a penalty": {"repetition_penalty": 1.2}, "guided": {"guided_regex": "[a-z ]{500}"}}
    found = {name: [] for name in kinds}
    for _ in range(ROUNDS):
        for name, options in kinds.items():
            found[name].append(seconds_of_step(options))
    for name, seconds in found.items():
        print(f"a step of three free requests and one {name}: {statistics.median(seconds) * 1e6:.0f} µs")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    show_masks()
    show_steps(sys.argv[1])
