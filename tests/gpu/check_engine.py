"""Runs requests of all kinds through the engine on a GPU, in fp16, and has the fp32 graph on the CPU judge each token.

    python check_engine.py --result FILE [--device cpu] [--only NAME]

fp16 may choose another token where two are almost equally likely, and then writes another text. So texts are not
compared: the judge runs each text as it was written, and asks whether every token of it could be chosen there.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from conftest import GOLDEN
from result import Result, command

import neo_tf
from neo_tf.runtime.device.session import Session
from neo_tf.runtime.engine.engine import Engine
from neo_tf.runtime.engine.request import Request
from neo_tf.runtime.engine.service import Service
from neo_tf.runtime.sampling.options import BeamOptions, SamplingOptions

# Local layers, windows of 16 positions, rotary embeddings, a padded vocabulary; and two that cannot be captured.
MODELS = ("tiny-global-local", "tiny-local-radius", "rotary", "vocab-padded", "attn-mix", "mem-kv")
SLOTS = 8
MARGIN = 0.15  # how far below the best log-probability a greedy token's may be, and how far off a reported one
MEAN_MARGIN = 0.02  # the mean over a request's tokens


def requests(config):
    """{kind: requests}; together they need every way through the engine that differs on a GPU."""
    rng = np.random.default_rng(7)
    longest = config.n_ctx - 24

    def prompt(length):
        return rng.integers(0, config.n_vocab, length).tolist()

    beginning = prompt(longest // 2)
    phrase = prompt(5)
    lengths = rng.integers(1, longest, 3 * SLOTS)
    counts = rng.integers(2, 24, 3 * SLOTS)
    return {
        # More than there are slots, each at its own length: rows idle, move, and make the batch larger and smaller.
        "in company": [
            Request(prompt(length), int(count), logprobs=3) for length, count in zip(lengths, counts, strict=True)
        ],
        "with one beginning": [Request(beginning + prompt(1 + number), 12, logprobs=1) for number in range(6)],
        "with lookup": [Request(phrase * (longest // 10), 20, prompt_lookup_num_tokens=5, logprobs=1)],
        "drawn": [
            Request(prompt(9), 16, sampling=SamplingOptions(do_sample=True, top_k=20, seed=seed), logprobs=2)
            for seed in range(SLOTS)
        ],
        "drawn from whole rows": [
            Request(prompt(9), 16, sampling=SamplingOptions(do_sample=True, typical_p=0.9, seed=seed), logprobs=2)
            for seed in range(3)
        ],
        "with beams": [Request(prompt(12), 10, beams=BeamOptions(num_beams=3))],
    }


class Judge:
    """The fp32 graph on the CPU."""

    def __init__(self, folder):
        self._session = Session(folder, device="cpu")

    def logprobs(self, prompt, tokens):
        """The log-probabilities of all tokens at each place of a continuation: float64 [len(tokens), n_vocab]."""
        ids = np.array([*prompt, *tokens][:-1])
        logits = self._session.prefill(0, ids, 0, logits_of=len(tokens)).astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    def failure(self, generation):
        """What is wrong with a generation, in words; None where nothing is."""
        request, tokens = generation.request, list(generation.tokens)
        if generation.error or len(tokens) != request.max_new_tokens:
            return f"ended as {generation.finish_reason} after {len(tokens)} tokens: {generation.error}"
        logprobs = self.logprobs(request.prompt, tokens)
        own = logprobs[np.arange(len(tokens)), tokens]
        gaps = []
        if request.beams is None and not request.sampling.do_sample:
            gaps.append(logprobs.max(-1) - own)
        if generation.token_logprobs:
            gaps.append(np.abs(np.array(generation.token_logprobs) - own))
        for gap in gaps:
            if not (gap.max() <= MARGIN and gap.mean() <= MEAN_MARGIN):
                return f"token {gap.argmax()} is {gap.max():.3f} off in log-probability, the mean {gap.mean():.4f}"
        return None

    def beam_failure(self, generation, other):
        """Whether another engine found a better continuation with the same beams: what is wrong, or None."""
        found, best = (
            float(np.sum(self.logprobs(made.request.prompt, made.tokens)[np.arange(len(made.tokens)), made.tokens]))
            for made in (generation, other)
        )
        return None if found >= best - MARGIN else f"the best beam is {best - found:.3f} worse than the CPU's"


def check(name, device, result, work):
    """Checks one golden model."""
    neo_tf.export_onnx(GOLDEN / name, work / f"{name}-fp32", "fp32")
    neo_tf.export_onnx(GOLDEN / name, work / f"{name}-fp16", "fp16", target="cuda")
    judge = Judge(work / f"{name}-fp32")
    engine = Engine(Session(work / f"{name}-fp16", slots=SLOTS, device=device))
    # The service steps the engine in a thread of its own, to which captured graphs belong.
    with Service(engine) as service:
        for kind, asked in requests(engine.config).items():
            submissions = [service.submit(request) for request in asked]
            generations = [submission.result() for submission in submissions]
            if kind == "with beams":
                peers = Engine(Session(work / f"{name}-fp32", slots=SLOTS, device="cpu")).generate(asked)
                failures = [judge.beam_failure(*pair) for pair in zip(generations, peers, strict=True)]
            else:
                failures = [judge.failure(generation) for generation in generations]
            result.check(f"{name}, requests {kind}", next((failure for failure in failures if failure), None))
    free = engine.slots.free
    result.check(f"{name}, slots", None if free == SLOTS else f"{free} of {SLOTS} are free at the end")


def main():
    """Runs the command."""
    arguments = command(__doc__).parse_args()
    result = Result()
    with tempfile.TemporaryDirectory() as temporary:
        for name in MODELS:
            if arguments.only in (None, name):
                try:
                    check(name, arguments.device, result, Path(temporary))
                except Exception as error:  # one model that cannot run must not hide the others
                    result.check(name, f"{type(error).__name__}: {' '.join(str(error).split())}")
    return result.end(arguments.result)


if __name__ == "__main__":
    sys.exit(main())
