"""Runs many requests of all kinds through one service, and checks memory and slots.

    python benchmarks/soak.py MODEL --requests 10000

MODEL is an ONNX folder; a small one will do. Prints the resident memory as requests end. Fails if memory grew by more
than --tolerance after the first 500 requests, if a slot is not free at the end, or if a request never ends.
"""

import argparse
import random
import sys
from concurrent.futures import FIRST_COMPLETED, wait
from pathlib import Path

from neo_tf.runtime.device.session import Session
from neo_tf.runtime.engine.engine import Engine
from neo_tf.runtime.engine.request import Request
from neo_tf.runtime.engine.service import Service
from neo_tf.runtime.sampling.options import BeamOptions, SamplingOptions

WARM = 500  # requests after which memory must not grow
_PATIENCE = 120  # seconds without any request's end: it is stuck


def resident_bytes():
    """The resident memory of this process, in bytes."""
    fields = Path("/proc/self/status").read_text().split()
    return int(fields[fields.index("VmRSS:") + 1]) * 1024


def random_request(rng, config):
    """A request of a random kind. Its prompt begins like those of some others, which the prefix cache can use."""
    shared = rng.randrange(min(300, config.n_ctx // 2))
    beginning = random.Random(rng.randrange(5))
    prompt = [beginning.randrange(config.n_vocab) for _ in range(shared)]
    prompt += [rng.randrange(config.n_vocab) for _ in range(rng.randint(1, 20))]
    kind = rng.choice(["greedy", "drawn", "drawn", "lookup", "beams", "logprobs"])
    return Request(
        prompt,
        max_new_tokens=rng.randint(1, 40),
        stop_token_ids=(rng.randrange(config.n_vocab),),
        sampling=SamplingOptions(
            do_sample=kind == "drawn",
            top_k=rng.choice([0, 50]),
            top_p=rng.choice([1.0, 0.9]),
            seed=rng.randrange(1000),
            repetition_penalty=rng.choice([1.0, 1.2]),
        ),
        prompt_lookup_num_tokens=5 if kind == "lookup" else None,
        beams=BeamOptions(rng.randint(2, 4)) if kind == "beams" else None,
        logprobs=3 if kind == "logprobs" else None,
    )


def soak(folder, count, seed=0, slots=8, report=print):
    """Runs requests of all kinds, and cancels a tenth of them on the way.

    Args:
        folder: An ONNX folder.
        count: The number of requests.
        seed: The seed of the random requests.
        slots: The number of sequences that run at the same time.
        report: Called with a line of text each time another 500 requests have ended.

    Returns:
        {"ended", "cancelled", "free_slots", "resident": [(requests, bytes)]}.

    Raises:
        TimeoutError: No request has ended for two minutes.
    """
    engine = Engine(Session(folder, slots=slots))
    rng = random.Random(seed)
    found = {"ended": 0, "cancelled": 0, "resident": []}
    with Service(engine) as service:
        running = set()
        made = 0
        while made < count or running:
            while made < count and len(running) < 3 * slots:
                submission = service.submit(random_request(rng, engine.config))
                running.add(submission)
                made += 1
                if rng.random() < 0.1:
                    submission.cancel()
            done, running = wait(running, _PATIENCE, FIRST_COMPLETED)
            if not done:
                raise TimeoutError(f"{len(running)} requests are stuck")
            for future in done:
                found["ended"] += 1
                if future.result().finish_reason == "cancelled":
                    found["cancelled"] += 1
                if found["ended"] % WARM == 0:
                    found["resident"].append((found["ended"], resident_bytes()))
                    report(f"{found['ended']} requests: {found['resident'][-1][1] / 1e6:.1f} MB resident")
    found["free_slots"] = engine.slots.free
    return found


def main():
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, help="an ONNX folder")
    parser.add_argument("--requests", type=int, default=10_000, help="the number of requests (default: 10000)")
    parser.add_argument(
        "--slots", type=int, default=8, help="the number of sequences that run at the same time (default: 8)"
    )
    parser.add_argument("--tolerance", type=float, default=5.0, help="the memory that may be added, in MB (default: 5)")
    arguments = parser.parse_args()
    found = soak(arguments.model, arguments.requests, slots=arguments.slots)
    sizes = [size for _, size in found["resident"]]
    growth = (max(sizes) - sizes[0]) / 1e6
    print(f"{found['ended']} ended, {found['cancelled']} of them cancelled; {found['free_slots']} of {arguments.slots}")
    print(f"slots free; memory grew by {growth:.1f} MB after the first {WARM}")
    if found["free_slots"] != arguments.slots or growth > arguments.tolerance:
        sys.exit(1)


if __name__ == "__main__":
    main()
