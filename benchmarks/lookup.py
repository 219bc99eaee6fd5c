"""Compares the speed of prompt lookup with that of plain decoding, on texts that repeat themselves or do not.

    python benchmarks/lookup.py MODEL --precision int8 --threads 2

Both ways run in turn, on three texts. The first text repeats itself: a bias on its pairs of tokens makes it do so, and
the weights may therefore be random. The other two texts are sampled. The second one has no pair of tokens twice, so
nothing is guessed. The third one has few different tokens: its pairs come again, but other tokens follow, and so the
guesses fail.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from neo_tf.cli.console import count_progress, results, summary_table
from neo_tf.progress import no_progress
from neo_tf.runtime.device.session import Session
from neo_tf.runtime.engine.engine import Engine
from neo_tf.runtime.engine.request import Request
from neo_tf.runtime.sampling.options import SamplingOptions

_PASSAGE = 48  # the number of tokens in the passage that is repeated
_FEW = 24  # the number of different tokens in the text whose guesses fail
_SURE = 1000.0  # a bias that leaves no other token a chance


def texts(n_vocab, seed=0):
    """Returns the prompts and options that make the texts: {name: (prompt, SamplingOptions)}."""
    passage = np.random.default_rng(seed).choice(n_vocab, _PASSAGE, replace=False).tolist()
    pairs = {(one, other): _SURE for one, other in zip(passage, [*passage[1:], passage[0]], strict=True)}
    few = {(token,): _SURE for token in passage[:_FEW]}
    drawn = {"do_sample": True, "temperature": 50.0, "seed": seed}
    return {
        "repeats itself": (passage * 2, SamplingOptions(sequence_bias=pairs)),
        "does not": (passage, SamplingOptions(**drawn)),
        "guesses fail": (passage, SamplingOptions(sequence_bias=few, **drawn)),
    }


def measure(session, new_tokens, rounds, num_tokens, progress=no_progress):
    """Measures the seconds of each text in both ways: {name: [(plain, with lookup), ...]}.

    Args:
        session: The Session that runs them.
        new_tokens: The number of tokens of each text.
        rounds: The number of samples of each text.
        num_tokens: The value of prompt_lookup_num_tokens.
        progress: Called with 1 after each text, three times a round.

    Raises:
        AssertionError: The tokens of both ways are not the same.
    """
    engine = Engine(session, prefix_cache_bytes=0)
    found = {}
    for _ in range(rounds):
        for name, (prompt, sampling) in texts(session.config.n_vocab).items():
            seconds = []
            tokens = []
            for lookup in (None, num_tokens):
                request = Request(prompt, new_tokens, sampling=sampling, prompt_lookup_num_tokens=lookup)
                began = time.perf_counter()
                (generation,) = engine.generate([request])
                seconds.append(time.perf_counter() - began)
                tokens.append(generation.tokens)
            assert tokens[0] == tokens[1], f"{name}: other tokens with prompt lookup"
            found.setdefault(name, []).append(tuple(seconds))
            progress(1)
    return found


def main():
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, help="an ONNX folder")
    parser.add_argument("--precision", help="the precision to run; by default the folder's first one")
    parser.add_argument("--threads", type=int, help="the number of CPU threads; by default one for each core")
    parser.add_argument("--new-tokens", type=int, default=200, help="the number of tokens of each text (default: 200)")
    parser.add_argument("--rounds", type=int, default=7, help="the number of rounds (default: 7)")
    parser.add_argument(
        "--num-tokens", type=int, default=10, help="the value of prompt_lookup_num_tokens (default: 10)"
    )
    arguments = parser.parse_args()
    session = Session(arguments.model, threads=arguments.threads, precision=arguments.precision)
    with count_progress("measuring", 3 * arguments.rounds) as progress:
        found = measure(session, arguments.new_tokens, arguments.rounds, arguments.num_tokens, progress)
    table = summary_table("text", "plain, tokens/s", "with lookup", "ratio")
    for name, pairs in found.items():
        plain, looked = (arguments.new_tokens / statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(plain / looked for plain, looked in pairs)
        table.add_row(name, f"{plain:.0f}", f"{looked:.0f}", f"{ratio:.2f}")
    results.print(table)


if __name__ == "__main__":
    main()
