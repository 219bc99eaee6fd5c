"""Compares logits on a GPU with the source's: by prefill, and token by token for rows of different lengths.

    python check_parity.py golden|heads --precisions fp16,int8 --result FILE [--device cpu] [--only NAME]

The judge is the fp32 graph on the CPU, which is itself compared with what the original computed, within 1e-4. Random
weights lose more by rounding than trained ones, so there the CPU runs the same int8 or int4 folder.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from conftest import DECODABLE, GOLDEN, GOLDEN_NAMES, TOLERANCE, Reference
from result import Result, command

import neo_tf
from neo_tf.checkpoints.initialise import random_checkpoint
from neo_tf.evaluation.deviation import Comparison
from neo_tf.runtime.device.session import QUANTISED, Session

STEPS = 40  # the last positions, which are decoded one by one
HEADS = {"head size 64": (64, 2), "head size 128": (128, 2)}
WINDOW = 32
LOGPROB_ERROR = 1e-3


def head_model(name, folder):
    """The path of the config of a model with this head size, for random weights: n_ctx 256, windows of 32 positions."""
    size, heads = HEADS[name]
    config = json.loads((GOLDEN / "tiny-global-local" / "config.json").read_text()) | {
        "n_ctx": 256,
        "n_embd": size * heads,
        "n_head": heads,
        "n_layer": 4,
        "attention_types": [[["global", "local"], 2]],
        "local_attention_radius": WINDOW,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "config.json"


def compare(folder, expected, ids, precision, device):
    """What is wrong with a folder's logits on a device, in words; None where nothing is.

    Args:
        folder: The ONNX folder.
        expected: float32 [rows, n, n_vocab], the right logits.
        ids: int [rows, n].
        precision: The folder's precision, whose limits count.
        device: "cuda" or "cpu".
    """
    session = Session(folder, slots=2, device=device)
    whole = Comparison("decoder.onnx", "prefill", has_text=False)
    for row in range(len(ids)):
        whole.add(session.prefill(0, ids[row], 0, logits_of="all"), expected[row], ids[row], 0)
    failure = whole.deviation().failure(precision)
    if failure:
        return f"prefill: {failure}"
    return compare_steps(session, expected, ids, precision)


def compare_steps(session, expected, ids, precision):
    """Like compare, for two rows that are decoded together, one of them 7 tokens behind the other."""
    length = ids.shape[1]
    steps = min(STEPS, length // 2)
    rows = [0, len(ids) - 1]
    past = np.array([length - steps, length - steps - 7 if length > steps + 7 else 1])
    for slot, row in enumerate(rows):
        session.prefill(slot, ids[row, : past[slot]], 0)
    comparisons = [Comparison("decoder.onnx", "step by step", has_text=False) for _ in rows]
    for _ in range(steps):
        tokens = ids[rows, past]
        decoded = session.decode(0, tokens, past)
        logits = np.stack([decoded.logits(slot) for slot in range(len(rows))])
        for slot, row in enumerate(rows):
            position = past[slot]
            comparisons[slot].add(logits[slot : slot + 1], expected[row, position : position + 1], ids[row], position)
        failure = wrong_choice(decoded, logits)
        if failure:
            return failure
        past = past + 1
    failures = [comparison.deviation().failure(precision) for comparison in comparisons]
    return next((f"step by step: {failure}" for failure in failures if failure), None)


def wrong_choice(decoded, logits):
    """What is wrong with the most likely tokens that a graph chose, in words; None where nothing is, or none are."""
    if decoded.top_ids is None:
        return None
    logits = logits.astype(np.float64)
    logprobs = logits - logits.max(-1, keepdims=True)
    logprobs -= np.log(np.exp(logprobs).sum(-1, keepdims=True))
    found = np.take_along_axis(logprobs, np.asarray(decoded.top_ids), -1)
    best = -np.sort(-logprobs, -1)[:, : found.shape[1]]
    worst = max(np.abs(found - best).max(), np.abs(np.asarray(decoded.top_logprobs) - best).max())
    return None if worst <= LOGPROB_ERROR else f"the most likely tokens are off by {worst:.2e} in log-probability"


def judge(source, work, name):
    """The right logits of a model: (ids [rows, n], float32 logits [rows, n, n_vocab])."""
    folder = work / f"{name}-fp32"
    neo_tf.export_onnx(source, folder, "fp32", force=True)
    session = Session(folder, device="cpu")
    if name not in GOLDEN_NAMES:
        ids = np.random.default_rng(3).integers(0, session.config.n_vocab, (2, session.config.n_ctx))
        return ids, np.stack([session.prefill(0, row, 0, logits_of="all") for row in ids])
    golden = Reference.load(GOLDEN / name)
    ids = golden.inputs[:2]
    logits = np.stack([session.prefill(0, row, 0, logits_of="all") for row in ids])
    if name in DECODABLE:
        error = np.abs(logits[:, golden.positions] - golden.logits[: len(ids)]).max()
        assert error < TOLERANCE, f"{name}: the judge itself is {error:.2e} off the original"
    return ids, logits


def check(names, sources, precisions, device, result, work):
    """Checks each model in each precision, and notes it in the result."""
    for name in names:
        source = sources(name)
        ids, right = judge(source, work, name)
        for precision in precisions:
            folder = work / f"{name}-{precision}"
            neo_tf.export_onnx(source, folder, precision, target="cuda", force=True)
            logits = right
            try:
                if precision in QUANTISED and name not in GOLDEN_NAMES:
                    session = Session(folder, device="cpu")
                    logits = np.stack([session.prefill(0, row, 0, logits_of="all") for row in ids])
                failure = compare(folder, logits, ids, precision, device)
            except Exception as error:  # one model that cannot run must not hide the others
                failure = f"{type(error).__name__}: {' '.join(str(error).split())}"
            result.check(f"{name} in {precision}", failure)


def main():
    """Runs the command."""
    parser = command(__doc__)
    parser.add_argument("models", choices=("golden", "heads"))
    parser.add_argument("--precisions", required=True, help="names, separated by commas")
    arguments = parser.parse_args()
    result = Result()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        if arguments.models == "golden":
            names = GOLDEN_NAMES
            sources = GOLDEN.__truediv__
        else:
            names = tuple(HEADS)

            def sources(name):
                return random_checkpoint(head_model(name, work / name))

        names = [name for name in names if arguments.only in (None, name)]
        check(names, sources, arguments.precisions.split(","), arguments.device, result, work)
    return result.end(arguments.result)


if __name__ == "__main__":
    sys.exit(main())
